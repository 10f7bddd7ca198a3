"""Which of two drop rules is further ahead of training less: a paired comparison over the seeds of an evidence suite.

A run's lead is what it reaches above the frontier of training less at its own cost, with the same seed, of a stream in
the mean over the chunks. Rules that stop at different costs can so be held against each other. Nobody declared this
before the runs: it is exploratory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ldbench.reporting.comparisons import COMPARISON, records_of
from ldbench.reporting.frontier import leads
from ldbench.reporting.runs import controls_of, finished_runs, prepare, runs_of, ways_of
from ldbench.reporting.stats import Estimate, t_interval
from ldbench.reporting.verdicts import AXES

Place = tuple[str, str, int]  # model, scenario, seed


def leads_of_all(cells: pd.DataFrame, axis: str) -> dict[tuple[str, str], dict[Place, float]]:
    """By method and its options (JSON) the lead in points of every finished run."""
    found: dict[tuple[str, str], dict[Place, float]] = defaultdict(dict)
    for _, group in cells.groupby(COMPARISON, sort=True):
        records = records_of(group)
        prepare(records)
        by_method, _, _ = finished_runs(records)
        counts = "average_accuracy" if any(record["chunks"] for record in records) else "test_accuracy"
        ways = ways_of(controls_of(by_method)[1], axis, counts)
        for (method, _, policy), runs in by_method.items():
            some = leads(runs_of(runs, axis, counts), ways)
            for seed, lead in zip(some.seeds, some.differences, strict=True):
                found[method, policy][records[0]["model"], records[0]["scenario"], seed] = 100 * float(lead)
    return found


def leads_of(cells: pd.DataFrame, axis: str) -> dict[str, dict[Place, float]]:
    """By method the lead in points of every finished run with default options."""
    found: dict[str, dict[Place, float]] = defaultdict(dict)
    for (method, policy), runs in leads_of_all(cells, axis).items():
        if not json.loads(policy):
            found[method] |= runs
    return found


def mean_difference(ours: Mapping[Place, float], theirs: Mapping[Place, float], model: str) -> Estimate:
    """How much further ahead ``ours`` is: mean over the scenarios of each seed that has them all, with its interval."""
    differences: dict[int, list[float]] = defaultdict(list)
    for place in ours.keys() & theirs.keys():
        if place[0] == model:
            differences[place[2]].append(ours[place] - theirs[place])
    scenarios = len({place[1] for place in ours if place[0] == model})
    return t_interval(float(np.mean(some)) for some in differences.values() if len(some) == scenarios)


def lead_lines(cells: pd.DataFrame, ours: str = "autofreeze+store", theirs: str = "learn-and-drop") -> list[str]:
    """A Markdown line per model and axis."""
    if not {ours, theirs} <= set(cells["method"]):
        return []
    lines = []
    for axis, name in AXES.items():
        of = leads_of(cells, axis)
        for model in sorted({place[0] for place in of[ours]}):
            found = mean_difference(of[ours], of[theirs], model)
            if found.n > 1:
                lines.append(
                    f"* {model}, {name}: {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] points, n = {found.n}"
                )
    said = (
        f"How much further ahead of training less `{ours}` is than `{theirs}`, each at its own cost, averaged over the "
        "scenarios of a seed (exploratory):"
    )
    return [said, "", *lines, ""] if lines else []
