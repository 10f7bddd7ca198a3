"""Records of one comparison as runs against its frontiers: what they cost, how accurate they were, image by image."""

from __future__ import annotations

import base64
import binascii
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldbench.policies.registry import shortened_methods
from ldbench.records.results import unpack_correct
from ldbench.reporting.comparisons import Frontier, Record, Variant, controls, total_flops, variant
from ldbench.reporting.frontier import FULL, Run, Way, way_of

MEDIAN, RAW = "median step time", "raw seconds"


def prepare(records: Sequence[Record]) -> str:
    """Add to every record what it is compared by, and tell what time means here.

    ``seconds``: by the median step times or raw, whichever scatters less over the controls, see ``steadier``.
    ``correct``: per test image whether it was right (bool), ``correct_average``: of a stream after what share of the
    chunks (float32); None where unknown.
    """
    basis, said = steadier(records)
    for record in records:
        record["seconds"] = record[basis]
        record["correct"] = unpack_correct(record["test_correct"], record["test_images"])
        record["correct_average"] = _over_chunks(record)
    return said


def steadier(records: Sequence[Record]) -> tuple[str, str]:
    """Which figure of a run's time is compared, and in words.

    The median step time times the steps passes over a stall of the machine, but is noisier than the seconds on the
    clock where a neighbour slows half of a run. The controls tell which is the case: a step of theirs costs the same in
    all of them. What is taken scatters less there, beside what a seed's runs share; no method has a say in it.
    """
    finished = [record for record in records if record["status"] == "finished"]
    if not finished or not all(math.isfinite(record["typical_train_seconds"]) for record in finished):
        return "train_seconds", RAW
    noise = {name: step_noise(finished, name) for name in ("typical_train_seconds", "train_seconds")}
    typical, raw = noise.values()
    if math.isnan(typical):
        return "typical_train_seconds", MEDIAN
    best, said = ("typical_train_seconds", MEDIAN) if typical <= raw else ("train_seconds", RAW)
    return (
        best,
        f"{said}, the steadier of both over the controls ({100 * typical:.1f} % by medians, {100 * raw:.1f} % raw)",
    )


def step_noise(records: Sequence[Record], name: str) -> float:
    """Standard deviation of the logarithm of a control's seconds per step, beside its seed's and its budget's mean.

    NaN without two seeds of two controls.
    """
    of: dict[tuple[str, float], dict[int, float]] = defaultdict(dict)
    for record in records:
        known = record[name] > 0 and record["steps"] > 0
        if known and record["method"] in controls():
            of[variant(record)[:2]][record["seed"]] = math.log(record[name] / record["steps"])
    seeds = sorted(set.intersection(*(set(some) for some in of.values()))) if of else []
    if len(seeds) < 2 or len(of) < 2:
        return math.nan
    table = np.array([[some[seed] for seed in seeds] for some in of.values()])
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return math.sqrt(float((rest**2).sum()) / ((len(seeds) - 1) * (len(of) - 1)))


def _over_chunks(record: Record) -> Any:
    bits = [entry.get("test_correct_base64") for entry in record["chunks"]]
    if not bits or not math.isfinite(record["test_images"]):
        return None
    found = [_unpacked(text, record["test_images"]) for text in bits]
    known = [some for some in found if some is not None]
    return np.mean(known, axis=0, dtype=np.float32) if len(known) == len(bits) else None


def _unpacked(text: Any, images: float) -> Any:
    try:
        return unpack_correct(base64.b64decode(text, validate=True), images)
    except (TypeError, ValueError, binascii.Error):
        return None


def finished_runs(
    records: Iterable[Record],
) -> tuple[dict[Variant, dict[int, Record]], dict[Variant, list[Record]], list[str]]:
    """By method the finished runs of every seed, and the others; and the cells that repeat a seed."""
    by_method: dict[Variant, dict[int, Record]] = defaultdict(dict)
    others: dict[Variant, list[Record]] = defaultdict(list)
    twice = []
    for record in records:
        name = variant(record)
        if record["status"] != "finished":
            others[name].append(record)
        elif record["seed"] in by_method[name]:
            twice.append(record["cell"])
        else:
            by_method[name][record["seed"]] = record
    return by_method, others, twice


def controls_of(by_method: Mapping[Variant, dict[int, Record]]) -> tuple[dict[int, Record], dict[str, Frontier]]:
    """Full training by seed; and for each way of shortening it {seed: {budget: run}}, full at its end."""
    full = {seed: r for (method, *_), runs in by_method.items() if method == "full" for seed, r in runs.items()}
    frontiers: dict[str, Frontier] = {name: defaultdict(dict) for name in shortened_methods()}
    for (method, budget, _), runs in by_method.items():
        for seed, record in runs.items() if method in frontiers else ():
            frontiers[method][seed][budget] = record
    for frontier in frontiers.values():
        for seed, record in full.items() if frontier else ():
            frontier[seed][FULL] = record
    if not any(frontiers.values()):
        frontiers[next(iter(frontiers))] = {seed: {FULL: record} for seed, record in full.items()}
    return full, frontiers


def scored(runs: Mapping[Any, Record]) -> dict[Any, Record]:
    """Those whose accuracy means something."""
    return {key: r for key, r in runs.items() if not r["synthetic"] and math.isfinite(r["test_accuracy"])}


def as_run(record: Record, axis: str, accuracy: str, budget: float = math.nan) -> Run:
    """``axis``: flops or time; ``accuracy``: test_accuracy or average_accuracy."""
    cost = total_flops(record) if axis == "flops" else float(record["seconds"])
    bits = record["correct" if accuracy == "test_accuracy" else "correct_average"]
    return Run(cost, record[accuracy], bits, budget)


def runs_of(records: Mapping[int, Record], axis: str, accuracy: str) -> dict[int, Run]:
    """By seed, where the accuracy is known."""
    return {seed: as_run(r, axis, accuracy) for seed, r in records.items() if math.isfinite(r[accuracy])}


def points_of(frontier: Frontier, axis: str, accuracy: str) -> dict[int, list[Run]]:
    """The controls of every seed with their budgets, where accuracy and cost are known."""
    points = {
        seed: [as_run(r, axis, accuracy, budget) for budget, r in scored(some).items()]
        for seed, some in frontier.items()
    }
    return {
        seed: [run for run in some if math.isfinite(run.accuracy) and math.isfinite(run.cost)]
        for seed, some in points.items()
    }


def ways_of(frontiers: Mapping[str, Frontier], axis: str, accuracy: str) -> dict[str, Way]:
    """The curve of every seed, by way of training less."""
    return {name: way_of(points_of(some, axis, accuracy)) for name, some in frontiers.items() if some}
