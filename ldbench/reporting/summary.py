"""Cells -> one row per model, data set, scenario, setting and method, paired with the controls of the same seeds; and
one row per rule and group of comparisons.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ldbench.experiment.tuning import values_text
from ldbench.records.declared import Declared
from ldbench.reporting.columns import columns, speed_columns
from ldbench.reporting.comparisons import (
    BETWEEN,
    COMPARISON,
    Frontier,
    Record,
    by_comparison,
    comparison_warnings,
    controls,
    method_labels,
    mixed_seeds,
    setting_labels,
    total_flops,
    variant_order,
)
from ldbench.reporting.equal_accuracy import speed_up
from ldbench.reporting.frontier import (
    FULL,
    Leads,
    Way,
    frontier_check,
    frontier_slope,
    leads,
    two_way_difference,
)
from ldbench.reporting.groups import group_rows
from ldbench.reporting.runs import controls_of, finished_runs, points_of, prepare, runs_of, scored, ways_of
from ldbench.reporting.stats import Estimate, paired_difference, paired_ratio, ratio_of_sums, seeds_needed, t_interval
from ldbench.reporting.tradeoff import mark_pareto, to_target
from ldbench.reporting.verdicts import AXES, Evidence, Pair

TIMED = ("cache_build", "scoring", "eval", "data", "cost_table", "compile")
MEANS = (*(f"{name}_seconds" for name in TIMED), "dropped_stages")
NOTES = ("peak_memory_kind", "store_tier", "augmentation", "augmentation_after_drop", "energy_unavailable_reason")
FLAT_SLOPE = 0.005  # half a point per doubled budget: a recipe that surely gains no more is saturated
PLANNED_HALF_WIDTH = 0.0025  # a quarter point, which most claims about dropping need
# 1: verdicts by plain 95 % intervals. 2: corrected test by test, each axis one of them. 3: row by row; in streams by
# the mean over the chunks. 4: of what was declared alone, group by group; on curves instead of lines.
TABLE_VERSION = 4


class Tables(NamedTuple):
    """What a report is made of: a row per method of a comparison, and a row per rule and group of comparisons."""

    lines: pd.DataFrame
    groups: pd.DataFrame


def summarize(cells: pd.DataFrame) -> pd.DataFrame:
    """``lines`` of ``tabulate``."""
    return tabulate(cells).lines


def tabulate(cells: pd.DataFrame) -> Tables:
    """One row per model x data set x scenario x setting x method (x budget, x policy), controls first; and the groups.

    Units stand in the column names; ``<name>_mean/_low/_high/_n`` belong together. ``warnings`` (text, " | " between)
    is the same in every row of a comparison. ``cells`` are what ``load_results`` gives, with what was declared in their
    ``attrs``. ``table_version`` rises when a column changes its meaning.
    """
    declared: Declared | None = cells.attrs.get("declared")
    rows: list[Record] = []
    evidence: list[Evidence | None] = []
    comparisons = by_comparison(cells)
    for key in sorted(comparisons):
        named = dict(zip(COMPARISON, key, strict=True))
        # Taken out: which images a run had right is unpacked for one comparison at a time.
        some, of_these = _comparison(named, comparisons.pop(key), declared)
        rows += some
        evidence += of_these
    names = setting_labels({tuple(row[name] for name in COMPARISON) for row in rows})
    for row in rows:
        row["setting_label"] = names[tuple(row[name] for name in COMPARISON)]
    groups = group_rows(rows, evidence, declared)
    return Tables(pd.DataFrame(rows), pd.DataFrame(groups))


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


def _comparison(
    key: Record, records: list[Record], declared: Declared | None
) -> tuple[list[Record], list[Evidence | None]]:
    labels, basis = method_labels(records), prepare(records)
    by_method, others, twice = finished_runs(records)
    full, frontiers = controls_of(by_method)
    counts = "average_accuracy" if any(record["chunks"] for record in records) else "test_accuracy"
    compared = _Compared(frontiers, counts)
    frontier = next((some for some in frontiers.values() if some), {})
    slope = frontier_slope({s: {b: r[counts] for b, r in scored(p).items()} for s, p in frontier.items()})
    shared: Record = (
        {"table_version": TABLE_VERSION} | key | columns("frontier_slope_points_per_doubling", slope.scaled(100))
    )
    shared["frontier_state"], shared["streamed"] = frontier_state(slope), counts == "average_accuracy"
    shared |= _frontier_columns(frontier, counts) | {"time_basis": basis}
    mixed = mixed_seeds(records)
    shared["warnings"] = BETWEEN.join(comparison_warnings(records, mixed, full, twice))
    rows: list[Record] = []
    evidence: list[Evidence | None] = []
    for name in sorted(by_method.keys() | others.keys(), key=variant_order):
        row = shared | {"method": name[0], "budget": name[1] if name[1] >= 0 else math.nan, "policy": name[2]}
        row["label"] = labels[name]
        runs, rest = by_method.get(name, {}), others.get(name, [])
        row["tuned"], row["tuned_edge"] = _tuned([*runs.values(), *rest])
        row["seeds"] = json.dumps(sorted({record["seed"] for record in (*runs.values(), *rest)}))
        differences, shown = _row(name[0], runs, rest, full, compared, bool(mixed & runs.keys()))
        row |= differences | _costs(runs, full, name[0] == "full")
        rows.append(row | to_target([*runs.values(), *rest], scored(full)))
        if shown is not None and declared is not None and name[0] == declared.method:
            used = [*runs.values(), *rest, *_beside(frontiers, runs)]
            shown = shown._replace(undeclared=sum(record["claims_sha256"] != declared.digest for record in used))
        evidence.append(shown)
    mark_pareto(rows)
    return rows, evidence


class _Compared:
    """The frontiers of a comparison as curves, made once for all its methods.

    Attributes:
        counts: the accuracy that decides.
    """

    def __init__(self, frontiers: Mapping[str, Frontier], counts: str) -> None:
        self.counts = counts
        self._ways: dict[tuple[str, str], dict[str, Way]] = {}
        self._frontiers = frontiers

    def leads(self, runs: Mapping[int, Record], axis: str, accuracy: str) -> Leads:
        if (axis, accuracy) not in self._ways:
            self._ways[axis, accuracy] = ways_of(self._frontiers, axis, accuracy)
        return leads(runs_of(runs, axis, accuracy), self._ways[axis, accuracy], ratios=accuracy == self.counts)


def _beside(frontiers: Mapping[str, Frontier], runs: Mapping[int, Record]) -> list[Record]:
    return [record for some in frontiers.values() for seed in runs for record in some.get(seed, {}).values()]


def _tuned(records: Sequence[Record]) -> tuple[str, str]:
    """The values that tuning chose for a method's runs, as "lr=0.05", and those at the edge of their grid."""
    for record in records:
        chosen = json.loads(record["tuned"])
        if chosen:
            return values_text(chosen), record["tuned_edge"]
    return "", ""


def _frontier_columns(frontier: Frontier, accuracy: str) -> Record:
    """How many budgets the frontier runs through, and what leaving one out at a time says of it."""
    points = points_of(frontier, "flops", accuracy)
    found = frontier_check(points)
    budgets = {run.budget for some in points.values() for run in some} - {FULL}
    every = [estimate.mean for estimate in found.values()]
    said = [f"{budget:g}: {_in_points(estimate)}" for budget, estimate in found.items()]
    return {
        "frontier_budgets": len(budgets),
        "frontier_check": "; ".join(said),
        "frontier_check_points_mean": 100 * float(np.mean(every)) if every else math.nan,
    }


def _in_points(estimate: Estimate) -> str:
    said = f"{100 * estimate.mean:+.2f}"
    interval = f" [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"
    return said + interval if math.isfinite(estimate.low) else said


def _row(
    method: str,
    runs: dict[int, Record],
    unfinished: list[Record],
    full: dict[int, Record],
    compared: _Compared,
    mixed: bool,
) -> tuple[Record, Evidence | None]:
    control, same, every = method in controls(), method == "full", [*runs.values(), *unfinished]
    states = Counter(record["status"] for record in unfinished)
    row: Record = {"runs": len(runs), "diverged": states["diverged"], "failed": states["failed"]}
    row["at_chance"] = sum(bool(record["at_chance"]) for record in runs.values())
    row["synthetic"] = any(record["synthetic"] for record in every)
    here_scored, base = scored(runs), scored(full)
    reason = "is part of the frontier" if control else "synthetic data" if row["synthetic"] else "no finished run"
    itself = Estimate(reason="is the control itself")
    found: dict[str, dict[str, Leads]] = {}
    spreads: dict[tuple[str, str], float] = {}
    for accuracy, prefix in (("test_accuracy", ""), ("average_accuracy", "average_")):
        here = {seed: r for seed, r in here_scored.items() if math.isfinite(r[accuracy])}
        row |= columns(f"{accuracy}_percent", t_interval(r[accuracy] for r in here.values()).scaled(100))
        to_full = paired_difference(_pick(here, accuracy), _pick(base, accuracy)) if not same else itself
        if row["synthetic"]:
            to_full = Estimate(reason="synthetic data")
        ours, theirs = (runs_of(some, "flops", accuracy) for some in (here, base))
        both = two_way_difference(ours, theirs) if not same else itself
        row |= columns(f"{prefix}difference_to_full_points", to_full.scaled(100), both.scaled(100))
        found[accuracy], spreads[accuracy, "full"] = {}, to_full.spread
        for axis in AXES:
            some = compared.leads(here, axis, accuracy) if here and not control else Leads(reason=reason)
            found[accuracy][axis] = some
            seeds, with_images = some.pair()
            spreads[accuracy, axis] = seeds.spread
            name = f"{prefix}difference_at_equal_{axis}"
            row |= columns(f"{name}_points", seeds.scaled(100), with_images.scaled(100))
            row[f"{name}_control"] = some.control
    deciding = found[compared.counts]
    for axis, some in deciding.items():
        row |= speed_columns(f"speed_up_{axis}", speed_up(some))
    known = [spreads[compared.counts, axis] for axis in AXES if math.isfinite(spreads[compared.counts, axis])]
    spread = max(known, default=spreads[compared.counts, "full"])
    row["seeds_needed_for_quarter_point"] = seeds_needed(spread, PLANNED_HALF_WIDTH)
    if control:
        return row, None
    final: tuple[Pair, ...] = ()
    if compared.counts != "test_accuracy":
        final = tuple(found["test_accuracy"][axis].pair() for axis in AXES)
    return row, Evidence(deciding, len(here_scored), len(unfinished), mixed, final)


def _costs(runs: dict[int, Record], full: dict[int, Record], same: bool) -> Record:
    records, itself = list(runs.values()), Estimate(reason="is the control itself")
    seconds, whole = _pick(runs, "seconds"), _pick(full, "seconds")
    raw, raw_whole = _pick(runs, "train_seconds"), _pick(full, "train_seconds")
    joules, base = _pick(runs, "energy_joules"), _pick(full, "energy_joules")
    saved = [(raw_whole[s] - raw[s], runs[s]["predicted_saved_seconds"]) for s in raw.keys() & raw_whole.keys()]
    reduction = {
        "forward": [(r["forward_flops"], r["forward_flops_full"]) for r in records],
        "total": [(total_flops(r), r["forward_flops_full"] + r["backward_flops_full"]) for r in records],
    }
    row = columns("train_seconds", t_interval(raw.values()))
    row |= columns("compared_seconds", t_interval(seconds.values()))
    row |= columns("train_time_ratio", itself if same else paired_ratio(seconds, whole))
    row |= columns("raw_time_ratio", itself if same else paired_ratio(raw, raw_whole))
    for name, pairs in reduction.items():
        percent = t_interval(100 * (1 - executed / whole) for executed, whole in pairs if whole > 0)
        row |= columns(f"{name}_flops_reduction_percent", percent)
    row |= columns("total_flops", t_interval(map(total_flops, records)))
    row |= columns("realised_over_predicted", itself if same else ratio_of_sums(saved))
    row |= columns("energy_joules", t_interval(joules.values()))
    row |= columns("energy_ratio", itself if same else paired_ratio(joules, base))
    for name in MEANS:
        row[f"{name}_mean"] = t_interval(r[name] for r in records).mean
    for name in ("peak_memory_bytes", "store_bytes", "energy_bound_joules", "stage_count"):
        row[f"{name}_max"] = max((r[name] for r in records if math.isfinite(r[name])), default=math.nan)
    for name in NOTES:
        row[name] = "; ".join(sorted({r[name] for r in records if isinstance(r[name], str)}))
    return row


def _pick(runs: Mapping[int, Record], name: str) -> dict[int, float]:
    return {seed: float(r[name]) for seed, r in runs.items() if math.isfinite(r[name])}
