"""Cells -> one row per model, data set, scenario, setting and method, paired with the controls of the same seeds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ldbench.policies.registry import shortened_methods
from ldbench.records.results import unpack_correct
from ldbench.reporting.comparisons import (
    BETWEEN,
    COMPARISON,
    Frontier,
    Record,
    Variant,
    comparison_warnings,
    controls,
    method_labels,
    mixed_seeds,
    records_of,
    setting_labels,
    total_flops,
    variant,
    variant_order,
)
from ldbench.reporting.frontier import Run, frontier_difference, frontier_slope, two_way_difference
from ldbench.reporting.stats import Estimate, paired_difference, paired_ratio, ratio_of_sums, seeds_needed, t_interval
from ldbench.reporting.tradeoff import mark_pareto, to_target
from ldbench.reporting.verdicts import Evidence, Pair, judge

TIMED = ("cache_build", "scoring", "eval", "data", "cost_table", "compile")
MEANS = (*(f"{name}_seconds" for name in TIMED), "dropped_stages")
NOTES = ("peak_memory_kind", "store_tier", "augmentation", "augmentation_after_drop", "energy_unavailable_reason")
FLAT_SLOPE = 0.005  # half a point per doubled budget: a recipe that surely gains no more is saturated
PLANNED_HALF_WIDTH = 0.0025  # a quarter point, which most claims about dropping need
# 1: verdicts by plain 95 % intervals. 2: corrected test by test, each axis one of them. 3: row by row; in streams by
# the mean over the chunks.
TABLE_VERSION = 3


def summarize(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per model x data set x scenario x setting x method (x budget, x policy), controls first.

    Units stand in the column names; ``<name>_mean/_low/_high/_n`` belong together. ``warnings`` (text, " | " between)
    is the same in every row of a comparison. Verdicts are corrected over all of ``cells``, which are what
    ``load_results`` gives. ``table_version`` rises when a column changes its meaning.
    """
    rows: list[Record] = []
    evidence: list[Evidence | None] = []
    for key, group in cells.groupby(COMPARISON, sort=True):
        some, of_these = _comparison(dict(zip(COMPARISON, key, strict=True)), records_of(group))
        rows += some
        evidence += of_these
    judge(rows, evidence)
    names = setting_labels({tuple(row[name] for name in COMPARISON) for row in rows})
    for row in rows:
        row["setting_label"] = names[tuple(row[name] for name in COMPARISON)]
    return pd.DataFrame(rows)


def frontier_state(slope: Estimate) -> str:
    """What the slope (fraction of accuracy per doubling of the budget) says of a recipe.

    "sloping", "falling"; "saturated" where the interval holds 0 and excludes any gain worth having; "unclear" where it
    holds 0 and such a gain too; "one seed" and "no short run" where there is no interval.
    """
    if slope.n < 2:
        return "one seed" if slope.n else "no short run"
    if slope.sign:
        return "sloping" if slope.sign > 0 else "falling"
    return "saturated" if slope.high <= FLAT_SLOPE else "unclear"


def _comparison(key: Record, records: list[Record]) -> tuple[list[Record], list[Evidence | None]]:
    labels = method_labels(records)
    for record in records:
        record["correct"] = unpack_correct(record["test_correct"], record["test_images"])
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
    full, frontiers = _controls(by_method)
    counts = "average_accuracy" if any(record["chunks"] for record in records) else "test_accuracy"
    frontier = next((some for some in frontiers.values() if some), {})
    slope = frontier_slope({s: {b: r[counts] for b, r in _scored(p).items()} for s, p in frontier.items()})
    shared: Record = (
        {"table_version": TABLE_VERSION} | key | _columns("frontier_slope_points_per_doubling", slope.scaled(100))
    )
    shared["frontier_state"], shared["streamed"] = frontier_state(slope), counts == "average_accuracy"
    mixed = mixed_seeds(records)
    shared["warnings"] = BETWEEN.join(comparison_warnings(records, mixed, full, twice))
    rows: list[Record] = []
    evidence: list[Evidence | None] = []
    for name in sorted(by_method.keys() | others.keys(), key=variant_order):
        row = shared | {"method": name[0], "budget": name[1] if name[1] >= 0 else math.nan, "policy": name[2]}
        row["label"] = labels[name]
        runs, rest = by_method.get(name, {}), others.get(name, [])
        differences, shown = _row(name[0], runs, rest, full, frontiers, mixed, counts)
        row |= differences | _costs(runs, full, name[0] == "full")
        rows.append(row | to_target([*runs.values(), *rest], _scored(full)))
        evidence.append(shown)
    mark_pareto(rows)
    return rows, evidence


def _controls(by_method: Mapping[Variant, dict[int, Record]]) -> tuple[dict[int, Record], dict[str, Frontier]]:
    """Full training by seed; and for each way of shortening it {seed: {budget: run}}, full at its end."""
    full = {seed: r for (method, *_), runs in by_method.items() if method == "full" for seed, r in runs.items()}
    frontiers: dict[str, Frontier] = {name: defaultdict(dict) for name in shortened_methods()}
    for (method, budget, _), runs in by_method.items():
        for seed, record in runs.items() if method in frontiers else ():
            frontiers[method][seed][budget] = record
    for frontier in frontiers.values():
        for seed, record in full.items() if frontier else ():
            frontier[seed][1.0] = record
    if not any(frontiers.values()):
        frontiers[next(iter(frontiers))] = {seed: {1.0: record} for seed, record in full.items()}
    return full, frontiers


def _row(
    method: str,
    runs: dict[int, Record],
    unfinished: list[Record],
    full: dict[int, Record],
    frontiers: Mapping[str, Frontier],
    mixed: set[int],
    counts: str,
) -> tuple[Record, Evidence | None]:
    control, same, every = method in controls(), method == "full", [*runs.values(), *unfinished]
    states = Counter(record["status"] for record in unfinished)
    row: Record = {"runs": len(runs), "diverged": states["diverged"], "failed": states["failed"]}
    row["at_chance"] = sum(bool(record["at_chance"]) for record in runs.values())
    row["synthetic"] = any(record["synthetic"] for record in every)
    scored, base = _scored(runs), _scored(full)
    reason = "is part of the frontier" if control else "synthetic data" if row["synthetic"] else "no finished run"
    itself = Estimate(reason="is the control itself")
    pairs: dict[str, dict[str, Pair]] = {}
    spreads: dict[str, float] = {}
    for accuracy, prefix in (("test_accuracy", ""), ("average_accuracy", "average_")):
        here = {seed: r for seed, r in scored.items() if math.isfinite(r[accuracy])}
        row |= _columns(f"{accuracy}_percent", t_interval(r[accuracy] for r in here.values()).scaled(100))
        to_full = paired_difference(_pick(here, accuracy), _pick(base, accuracy)) if not same else itself
        if row["synthetic"]:
            to_full = Estimate(reason="synthetic data")
        both = two_way_difference(_runs(here, 1.0, accuracy), _runs(base, 1.0, accuracy)) if not same else itself
        row |= _columns(f"{prefix}difference_to_full_points", to_full.scaled(100), both.scaled(100))
        pairs[accuracy], spreads[accuracy] = {}, to_full.spread
        for axis in ("flops", "time"):
            pair, against = (Estimate(reason=reason), Estimate(reason=reason)), ""
            if here and not control:
                pair, against = _to_frontiers(here, frontiers, axis, accuracy)
            pairs[accuracy][axis] = pair
            name = f"{prefix}difference_at_equal_{axis}"
            row |= _columns(f"{name}_points", pair[0].scaled(100), pair[1].scaled(100)) | {f"{name}_control": against}
    deciding = pairs[counts]
    spread = max((pair[0].spread for pair in deciding.values() if pair[0].n > 1), default=spreads[counts])
    row["seeds_needed_for_quarter_point"] = seeds_needed(spread, PLANNED_HALF_WIDTH)
    if control:
        return row, None
    final = (pairs["test_accuracy"]["flops"], pairs["test_accuracy"]["time"]) if counts != "test_accuracy" else None
    doubtful = bool(mixed & runs.keys())
    return row, Evidence(deciding["flops"], deciding["time"], len(scored), len(unfinished), doubtful, final)


def _to_frontiers(
    runs: Mapping[int, Record], frontiers: Mapping[str, Frontier], axis: str, accuracy: str
) -> tuple[Pair, str]:
    """The difference to that way of shortening which does best at these costs, and its name.

    Best on average over the seeds, among those that reach as many of them: what is left to choice favours the control.
    """
    found: list[tuple[Pair, str]] = []
    for name, frontier in frontiers.items():
        points = {seed: list(_runs(_scored(some), axis, accuracy).values()) for seed, some in frontier.items()}
        points = {seed: [run for run in some if math.isfinite(run.cost)] for seed, some in points.items()}
        found += [(frontier_difference(_runs(runs, axis, accuracy), points), name)] if frontier else []
    if not found:
        return frontier_difference(_runs(runs, axis, accuracy), {}), ""
    return min(found, key=lambda entry: (-entry[0][0].n, entry[0][0].mean))


def _costs(runs: dict[int, Record], full: dict[int, Record], same: bool) -> Record:
    records, itself = list(runs.values()), Estimate(reason="is the control itself")
    seconds, whole = _pick(runs, "train_seconds"), _pick(full, "train_seconds")
    joules, base = _pick(runs, "energy_joules"), _pick(full, "energy_joules")
    saved = [(whole[s] - seconds[s], runs[s]["predicted_saved_seconds"]) for s in seconds.keys() & whole.keys()]
    reduction = {
        "forward": [(r["forward_flops"], r["forward_flops_full"]) for r in records],
        "total": [(total_flops(r), r["forward_flops_full"] + r["backward_flops_full"]) for r in records],
    }
    row = _columns("train_seconds", t_interval(seconds.values()))
    row |= _columns("train_time_ratio", itself if same else paired_ratio(seconds, whole))
    for name, pairs in reduction.items():
        percent = t_interval(100 * (1 - executed / whole) for executed, whole in pairs if whole > 0)
        row |= _columns(f"{name}_flops_reduction_percent", percent)
    row |= _columns("total_flops", t_interval(map(total_flops, records)))
    row |= _columns("realised_over_predicted", itself if same else ratio_of_sums(saved))
    row |= _columns("energy_joules", t_interval(joules.values()))
    row |= _columns("energy_ratio", itself if same else paired_ratio(joules, base))
    for name in MEANS:
        row[f"{name}_mean"] = t_interval(r[name] for r in records).mean
    for name in ("peak_memory_bytes", "store_bytes", "energy_bound_joules", "stage_count"):
        row[f"{name}_max"] = max((r[name] for r in records if math.isfinite(r[name])), default=math.nan)
    for name in NOTES:
        row[name] = "; ".join(sorted({r[name] for r in records if isinstance(r[name], str)}))
    return row


def _columns(name: str, seeds: Estimate, both: Estimate | None = None) -> Record:
    row: Record = {f"{name}_{part}": getattr(seeds, part) for part in ("mean", "low", "high", "n", "reason")}
    if both is None:
        return row
    row |= {f"{name}_two_way_low": both.low, f"{name}_two_way_high": both.high}
    return row | {f"{name}_sd": seeds.spread}  # of the paired differences, from seed to seed


def _scored(runs: Mapping[Any, Record]) -> dict[Any, Record]:
    return {key: r for key, r in runs.items() if not r["synthetic"] and math.isfinite(r["test_accuracy"])}


def _pick(runs: Mapping[int, Record], name: str) -> dict[int, float]:
    return {seed: float(r[name]) for seed, r in runs.items() if math.isfinite(r[name])}


def _runs(records: Mapping[Any, Record], cost: str | float, accuracy: str = "test_accuracy") -> dict[Any, Run]:
    """Of the mean over chunks there is no image by image record."""

    def price(record: Record) -> float:
        return cost if isinstance(cost, float) else total_flops(record) if cost == "flops" else record["train_seconds"]

    def bits(record: Record) -> Any:
        return record["correct"] if accuracy == "test_accuracy" else None

    return {key: Run(price(r), r[accuracy], bits(r)) for key, r in records.items() if math.isfinite(r[accuracy])}
