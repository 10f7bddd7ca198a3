"""Which of two drop rules is further ahead of training less: a paired comparison over the seeds of an evidence folder.

A run's lead is its accuracy (of a stream the mean over the chunks) less what training less reaches at the same cost
with the same seed, between the budgets on lines over the logarithm of the cost, by the better of ``short`` and
``short-early`` there. Rules that stop at different costs can so be held against each other.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ldbench.policies.registry import shortened_methods
from ldbench.reporting.comparisons import Record, controls, total_flops
from ldbench.reporting.frontier import OffFrontier, interpolation_weights
from ldbench.reporting.stats import Estimate, t_interval

COSTS = {"equal FLOPs": total_flops, "equal time": lambda record: float(record["train_seconds"])}


def lead(run: Record, beside: Sequence[Record], axis: str) -> float:
    """Points by which ``run`` is ahead of the controls ``beside`` it at its own cost; NaN where they do not reach."""
    name, cost = "average_accuracy" if run["chunks"] else "test_accuracy", COSTS[axis]
    reached = []
    for shortened in shortened_methods():
        points = [control for control in beside if control["method"] in (shortened, "full")]
        try:
            weights = interpolation_weights([cost(point) for point in points], cost(run))
        except OffFrontier:
            continue
        reached.append(float(weights @ np.array([point[name] for point in points])))
    return 100 * (run[name] - max(reached)) if reached else math.nan


def leads(records: Sequence[Record], method: str, axis: str) -> dict[tuple[str, str, int], float]:
    """The lead of every finished run of ``method`` with its default options, by (model, scenario, seed)."""
    by_seed: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in records:
        if record["status"] == "finished":
            by_seed[record["model"], record["scenario"], record["seed"]].append(record)
    return {
        place: lead(run, [r for r in some if r["method"] in controls()], axis)
        for place, some in by_seed.items()
        for run in some
        if run["method"] == method and json.loads(run["policy"]) == {}
    }


def mean_difference(
    ours: Mapping[tuple[str, str, int], float], theirs: Mapping[tuple[str, str, int], float], model: str
) -> Estimate:
    """How much further ahead ``ours`` is: mean over the scenarios of each seed that has them all, with its interval."""
    differences: dict[int, list[float]] = defaultdict(list)
    for place in ours.keys() & theirs.keys():
        if place[0] == model:
            differences[place[2]].append(ours[place] - theirs[place])
    scenarios = len({place[1] for place in ours if place[0] == model})
    return t_interval(float(np.mean(some)) for some in differences.values() if len(some) == scenarios)


def lead_lines(records: Sequence[Record], ours: str = "autofreeze+store", theirs: str = "learn-and-drop") -> list[str]:
    """A Markdown line per model and axis."""
    if not {ours, theirs} <= {record["method"] for record in records}:
        return []
    lines = []
    for axis in COSTS:
        of = [leads(records, method, axis) for method in (ours, theirs)]
        for model in sorted({place[0] for place in of[0]}):
            found = mean_difference(*of, model)
            if found.n > 1:
                lines.append(
                    f"* {model}, {axis}: {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] points, n = {found.n}"
                )
    said = (
        f"How much further ahead of training less `{ours}` is than `{theirs}`, each at its own cost, averaged over the "
    )
    said += "scenarios of a seed:"
    return [said, "", *lines, ""] if lines else []
