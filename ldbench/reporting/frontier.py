"""The frontier of shortened training, and paired comparisons of runs with it, image by image where recorded."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldbench.reporting.stats import Estimate, t_interval, two_way_interval


class Run(NamedTuple):
    """A finished run as the frontier sees it: cost in any unit, accuracy (fraction), bool ``[images]`` or ``None``."""

    cost: float
    accuracy: float
    correct: NDArray[np.bool_] | None = None


class OffFrontier(ValueError):
    """The cost lies outside the runs that make up the frontier; the message says on which side."""


def two_way_difference(method: Mapping[int, Run], control: Mapping[int, Run]) -> Estimate:
    """``two_way_interval`` of the right-or-wrong differences over the seeds that both have."""
    rows = []
    for seed in sorted(method.keys() & control.keys()):
        ours, theirs = method[seed].correct, control[seed].correct
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            rows.append(ours.astype(np.float64) - theirs)
    return _two_way(rows)


def interpolation_weights(costs: Sequence[float], cost: float) -> NDArray[np.float64]:
    """Weights ``[len(costs)]`` that interpolate at ``cost``, piecewise linearly over the logarithm of the cost.

    Accuracy rises about as much from one doubling of the budget to the next, or less: straight lines over the cost
    itself would lie below it between the budgets, and flatter every method. Points of equal cost are averaged. Raises
    ``OffFrontier`` below the smallest and above the largest of ``costs``: the frontier is never extrapolated.
    """
    count = Counter(map(float, costs))
    known = sorted(count)  # a handful of points: plain Python is ten times as quick as arrays
    if not math.isfinite(cost) or len(known) < 2:
        raise OffFrontier("no short run to compare with" if math.isfinite(cost) else "its cost is not known")
    if known[0] <= 0:
        raise OffFrontier("a control without a cost")
    if cost < known[0]:
        raise OffFrontier("costs less than the cheapest budget")
    if cost > known[-1]:
        raise OffFrontier("costs more than the most expensive control")
    right = max(1, bisect_left(known, cost))
    before, after = known[right - 1], known[right]
    share = math.log(cost / before) / math.log(after / before)
    weights = {before: (1.0 - share) / count[before], after: share / count[after]}
    return np.array([weights.get(float(point), 0.0) for point in costs])


def frontier_difference(method: Mapping[int, Run], frontier: Mapping[int, Sequence[Run]]) -> tuple[Estimate, Estimate]:
    """Accuracy of each run minus the same seed's frontier at that run's own cost: (over seeds, over seeds and images).

    ``reason`` of the first names the seeds that had to stay out, so ``n < len(method)`` never goes unsaid.
    """
    differences: list[float] = []
    rows: list[NDArray[np.float64]] = []
    missed: Counter[str] = Counter()
    for seed, run in sorted(method.items()):
        points = frontier.get(seed, ())
        try:
            weights = interpolation_weights([point.cost for point in points], run.cost)
        except OffFrontier as error:
            missed[str(error)] += 1
            continue
        differences.append(run.accuracy - float(weights @ np.array([point.accuracy for point in points])))
        used = [(weight, point.correct) for weight, point in zip(weights, points, strict=True) if weight > 0]
        bits = [(weight, correct) for weight, correct in used if correct is not None]
        if run.correct is not None and len(bits) == len(used) and all(b.shape == run.correct.shape for _, b in bits):
            rows.append(run.correct - np.sum([weight * correct for weight, correct in bits], axis=0))
    every = len(method)
    why = ", ".join(why if count == every else f"{count} of {every} seeds: {why}" for why, count in missed.items())
    over_seeds = t_interval(differences)
    over_both = _two_way(rows) if len(rows) == len(differences) else Estimate(reason="no per-image record")
    return replace(over_seeds, reason=why or over_seeds.reason), over_both


def frontier_slope(frontier: Mapping[int, Mapping[float, float]]) -> Estimate:
    """Least-squares slope of accuracy over log2(budget), per seed, averaged: the gain from doubling the budget.

    ``frontier`` maps a seed to {budget: accuracy}. Where it is surely next to 0, training length does not matter, and
    no comparison with shortened training can tell methods apart.
    """
    slopes = []
    for points in frontier.values():
        if len(points) >= 2:
            x, y = np.log2(list(points)), np.array(list(points.values()))
            slopes.append(float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()))
    return t_interval(slopes) if slopes else Estimate(reason="no short run")


def _two_way(rows: Sequence[NDArray[np.float64]]) -> Estimate:
    if not rows or len({row.size for row in rows}) != 1:
        return Estimate(reason="no per-image record" if not rows else "seeds were tested on different images")
    return two_way_interval(np.stack(rows))
