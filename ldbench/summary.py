"""Cells -> one row per model, data set, scenario, setting and method: paired with the same seeds' controls, with intervals."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ldbench.comparisons import (
    BETWEEN,
    COMPARISON,
    CONTROLS,
    Record,
    Variant,
    comparison_warnings,
    method_labels,
    mixed_seeds,
    records_of,
    setting_labels,
    total_flops,
    variant,
    variant_order,
)
from ldbench.results import unpack_correct
from ldbench.stats import (
    Estimate,
    Run,
    frontier_difference,
    frontier_slope,
    paired_difference,
    paired_ratio,
    ratio_of_sums,
    t_interval,
    two_way_difference,
)

MEANS = (
    "cache_build_seconds", "scoring_seconds", "eval_seconds", "data_seconds", "cost_table_seconds", "compile_seconds",
    "dropped_stages",
)  # fmt: skip
NOTES = ("peak_memory_kind", "store_tier", "augmentation", "augmentation_after_drop", "energy_unavailable_reason")
TARGET_MARGIN = 0.005  # the target accuracy lies half a point below the mean of full
FLAT_SLOPE = 0.005  # half a point per doubled budget: a recipe that surely gains no more is saturated
Pair = tuple[Estimate, Estimate]


def summarize(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per model x data set x scenario x setting x method (x budget, x policy), controls first.

    Units stand in the column names; ``<name>_mean/_low/_high/_n`` belong together. ``warnings`` (text, " | " between)
    is the same in every row of a comparison. ``cells`` is what ``load_results`` gives.
    """
    rows: list[Record] = []
    for key, group in cells.groupby(COMPARISON, sort=True):
        rows += _comparison(dict(zip(COMPARISON, key, strict=True)), records_of(group))
    names = setting_labels({tuple(row[name] for name in COMPARISON) for row in rows})
    for row in rows:
        row["setting_label"] = names[tuple(row[name] for name in COMPARISON)]
    return pd.DataFrame(rows)


def verdict(flops: Pair, time: Pair, *, runs: int, unfinished: int, mixed_hardware: bool) -> tuple[str, str]:
    """("ahead" | "behind" | "undecided" | "n/a", why) against shortened training.

    Ahead needs both equal FLOPs and equal time, behind needs one of them, each with every interval there is (over
    seeds; over seeds and images) clear of 0. Seeds that the frontier does not reach, runs that did not finish and pairs
    timed on different machines forbid a verdict that they could have bent.
    """
    axes = {"FLOPs": flops, "time": time}
    missing = [f"equal {name}: {pair[0].reason}" for name, pair in axes.items() if pair[0].n == 0]
    partial = [f"equal {name}: {pair[0].reason}" for name, pair in axes.items() if 0 < pair[0].n < runs]
    signs = {name: _sign(pair) for name, pair in axes.items() if not (name == "time" and mixed_hardware)}
    if len(missing) == len(axes):
        return "n/a", flops[0].reason if flops[0].reason == time[0].reason else "; ".join(missing)
    if runs < 2:
        return "undecided", "one seed is an anecdote"
    worse = [name for name, sign in signs.items() if sign < 0]
    if worse and not partial:
        return "behind", "at equal " + " and ".join(worse)
    if missing:
        return "n/a", missing[0]
    doubts = partial + ["times come from different machines"] * mixed_hardware
    doubts += [f"{unfinished} runs did not finish"] * (unfinished > 0)
    if all(sign > 0 for sign in signs.values()) and not doubts:
        return "ahead", "at equal FLOPs and at equal time"
    return "undecided", "; ".join(doubts) or "an interval over seeds, or over seeds and images, holds 0"


def _sign(pair: Pair) -> int:
    seeds, both = pair
    return seeds.sign if both.n == 0 or both.sign == seeds.sign else 0


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


def _comparison(key: Record, records: list[Record]) -> list[Record]:
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
    frontier: dict[int, dict[float, Record]] = defaultdict(dict)
    for (method, budget, _), runs in by_method.items():
        if method in CONTROLS:
            for seed, record in runs.items():
                frontier[seed][budget if method == "short" else 1.0] = record
    full = {seed: points[1.0] for seed, points in frontier.items() if 1.0 in points}
    slope = frontier_slope({s: {b: r["test_accuracy"] for b, r in _scored(p).items()} for s, p in frontier.items()})
    shared: Record = dict(key) | _columns("frontier_slope_points_per_doubling", slope.scaled(100))
    shared["frontier_state"] = frontier_state(slope)
    mixed = mixed_seeds(records)
    shared["warnings"] = BETWEEN.join(comparison_warnings(records, mixed, full, twice))
    rows = []
    for name in sorted(by_method.keys() | others.keys(), key=variant_order):
        row = shared | {"method": name[0], "budget": name[1] if name[1] >= 0 else math.nan, "policy": name[2]}
        row["label"] = labels[name]
        runs, rest = by_method.get(name, {}), others.get(name, [])
        row |= _row(runs, rest, full, frontier, name[0] in CONTROLS, name[0] == "full", mixed)
        row |= _costs(runs, full, name[0] == "full")
        rows.append(row | _to_target([*runs.values(), *rest], _scored(full)))
    return rows


def _row(
    runs: dict[int, Record], unfinished: list[Record], full: dict[int, Record],
    frontier: dict[int, dict[float, Record]], control: bool, same: bool, mixed: set[int],
) -> Record:  # fmt: skip
    every = [*runs.values(), *unfinished]
    states = Counter(record["status"] for record in unfinished)
    row: Record = {"runs": len(runs), "diverged": states["diverged"], "failed": states["failed"]}
    row["at_chance"] = sum(bool(record["at_chance"]) for record in runs.values())
    row["synthetic"] = any(record["synthetic"] for record in every)
    scored, base = _scored(runs), _scored(full)
    row |= _columns("test_accuracy_percent", t_interval(r["test_accuracy"] for r in scored.values()).scaled(100))
    itself = Estimate(reason="is the control itself")
    to_full = paired_difference(_pick(scored, "test_accuracy"), _pick(base, "test_accuracy")) if not same else itself
    if row["synthetic"]:
        to_full = Estimate(reason="synthetic data")
    both = two_way_difference(_runs(scored, 1.0), _runs(base, 1.0)) if not same else itself
    row |= _columns("difference_to_full_points", to_full.scaled(100), both.scaled(100))
    pairs: dict[str, Pair] = {}
    for axis in ("flops", "time"):
        points = {seed: list(_runs(_scored(p), axis).values()) for seed, p in frontier.items()}
        points = {seed: [run for run in some if math.isfinite(run.cost)] for seed, some in points.items()}
        reason = "is part of the frontier" if control else "synthetic data" if row["synthetic"] else "no finished run"
        absent = Estimate(reason=reason)
        pairs[axis] = (absent, absent) if control or not scored else frontier_difference(_runs(scored, axis), points)
        over_seeds, over_both = pairs[axis]
        row |= _columns(f"difference_at_equal_{axis}_points", over_seeds.scaled(100), over_both.scaled(100))
    row["verdict"], row["verdict_reason"] = "control", ""
    if not control:
        machines = bool(mixed & runs.keys())
        row["verdict"], row["verdict_reason"] = verdict(
            pairs["flops"], pairs["time"], runs=len(scored), unfinished=len(unfinished), mixed_hardware=machines
        )
    return row


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


def _to_target(every: list[Record], full: dict[int, Record]) -> Record:
    """Expected cost until a run reaches the target: the cost of all runs, misses included, over the number of hits.

    The expected running time of Hansen et al., "COCO: performance assessment" (2016), with one run as the unit.
    """
    target = sum(r["test_accuracy"] for r in full.values()) / len(full) - TARGET_MARGIN if full else math.nan
    hits = sum(r["status"] == "finished" and r["test_accuracy"] >= target for r in every)
    row: Record = {"target_accuracy_percent": 100 * target, "target_hits": hits, "target_runs": len(every)}
    for name in ("train_seconds", "total_flops", "energy_joules"):
        spent = [float(total_flops(r) if name == "total_flops" else r[name]) for r in every]  # NaN: no figure
        row[f"{name}_to_target"] = sum(spent) / hits if hits and full else math.nan
    return row


def _columns(name: str, seeds: Estimate, both: Estimate | None = None) -> Record:
    row: Record = {f"{name}_{part}": getattr(seeds, part) for part in ("mean", "low", "high", "n", "reason")}
    return row if both is None else row | {f"{name}_two_way_low": both.low, f"{name}_two_way_high": both.high}


def _scored(runs: Mapping[Any, Record]) -> dict[Any, Record]:
    return {key: r for key, r in runs.items() if not r["synthetic"] and math.isfinite(r["test_accuracy"])}


def _pick(runs: Mapping[int, Record], name: str) -> dict[int, float]:
    return {seed: float(r[name]) for seed, r in runs.items() if math.isfinite(r[name])}


def _runs(records: Mapping[Any, Record], cost: str | float) -> dict[Any, Run]:
    def price(record: Record) -> float:
        return cost if isinstance(cost, float) else total_flops(record) if cost == "flops" else record["train_seconds"]

    return {key: Run(price(r), r["test_accuracy"], r["correct"]) for key, r in records.items()}
