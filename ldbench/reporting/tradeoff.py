"""What accuracy costs: who is not dominated, and what reaching a target takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ldbench.reporting.comparisons import Record, total_flops
from ldbench.reporting.stats import mean_over_hits

TARGET_MARGIN = 0.005  # the target accuracy lies half a point below the mean of full
COST_AXES = {"FLOPs": "total_flops", "time": "train_seconds", "energy": "energy_joules"}


def mark_pareto(rows: Sequence[Record]) -> None:
    """Set ``pareto`` of each row of a comparison: the axes, "; " between, on which no other row dominates its means.

    Else it is "dominated", or "n/a" with the reason.

    A row is dominated where another is at least as accurate at no more cost, and better in one of the two. Only rows
    whose runs all finished stand for themselves; an axis counts where every one of them has a cost. Means, no test.
    """
    whole: list[Record] = []
    counts = "average_accuracy" if rows and rows[0]["streamed"] else "test_accuracy"
    for row in rows:
        lost, known = row["diverged"] or row["failed"], math.isfinite(row[f"{counts}_percent_mean"])
        row["pareto"] = "n/a: runs did not finish" if lost else "dominated" if known else "n/a: no accuracy"
        whole += [row] if known and not lost else []
    fronts: list[list[str]] = [[] for _ in whole]
    for axis, name in COST_AXES.items():
        if all(math.isfinite(row[f"{name}_mean"]) for row in whole):
            points = [(float(row[f"{name}_mean"]), float(row[f"{counts}_percent_mean"])) for row in whole]
            for front, kept in zip(fronts, undominated(points), strict=True):
                front += [axis] if kept else []
    for row, front in zip(whole, fronts, strict=True):
        row["pareto"] = "; ".join(front) or "dominated"


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the (cost, accuracy) points no other dominates; equal points do not dominate each other."""
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def to_target(every: Sequence[Record], full: Mapping[int, Record]) -> Record:
    """Expected cost until a run reaches the target accuracy, per kind of cost: see ``mean_over_hits``.

    ``every``: all runs of a method, also those that diverged or failed, which are misses; ``full``: the scored runs
    that set the target. Its own uncertainty is not in the intervals.
    """
    target = sum(r["test_accuracy"] for r in full.values()) / len(full) - TARGET_MARGIN if full else math.nan
    hits = [r["status"] == "finished" and r["test_accuracy"] >= target for r in every]
    row: dict[str, Any] = {"target_accuracy_percent": 100 * target, "target_hits": sum(hits), "target_runs": len(every)}
    for name in ("train_seconds", "total_flops", "energy_joules"):
        spent = [total_flops(r) if name == "total_flops" else float(r[name]) for r in every]  # NaN: no figure
        expected = mean_over_hits(spent, hits)
        row[f"{name}_to_target"] = expected.mean
        row[f"{name}_to_target_low"], row[f"{name}_to_target_high"] = expected.low, expected.high
    return row
