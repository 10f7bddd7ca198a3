"""Intervals over seeds, paired differences, and the frontier of shortened training: pure functions over plain numbers.

Every interval is two-sided at 95 %. Means of a few seeds use Student's t, which assumes roughly normal seeds; ratios
use it on logarithms. Nothing here knows about files or tables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``low`` and ``high`` are NaN where ``n`` values give none, with the ``reason``."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (``factor`` > 0)."""
        return replace(self, mean=self.mean * factor, low=self.low * factor, high=self.high * factor)

    @property
    def sign(self) -> int:
        """+1 or -1 when the whole interval lies above or below 0, else 0 (no interval included)."""
        return int(self.low > 0) - int(self.high < 0)


class Run(NamedTuple):
    """A finished run as the frontier sees it: cost in any unit, accuracy (fraction), bool ``[images]`` or ``None``."""

    cost: float
    accuracy: float
    correct: NDArray[np.bool_] | None = None


class OffFrontier(ValueError):
    """The cost lies outside the runs that make up the frontier; the message says on which side."""


def t_interval(values: Iterable[float]) -> Estimate:
    """Mean and Student's t interval of independent values; non-finite ones are missing, one value gets no interval."""
    sample = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if sample.size == 0:
        return Estimate(reason="no value")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, n=1, reason="one seed: no interval")
    half = _quantile(sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Estimate(mean, mean - half, mean + half, int(sample.size))


def paired_difference(method: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Mean of ``method - control`` over the seeds that both have."""
    seeds = sorted(method.keys() & control.keys())
    return t_interval(method[s] - control[s] for s in seeds) if seeds else Estimate(reason="no seed in common")


def paired_ratio(method: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Geometric mean of ``method / control`` over the seeds that both have; the interval is taken on logarithms."""
    seeds = [s for s in sorted(method.keys() & control.keys()) if method[s] > 0 and control[s] > 0]
    if not seeds:
        return Estimate(reason="no seed in common")
    logs = t_interval(math.log(method[s] / control[s]) for s in seeds)
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n, logs.reason)


def ratio_of_sums(pairs: Iterable[tuple[float, float]]) -> Estimate:
    """Sum of numerators over sum of denominators, with the delta-method interval (Cochran 1977, section 6.4).

    Steadier than the mean of ratios when some denominators are small. NaN when the denominators do not sum above 0.
    """
    table = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=np.float64).reshape(-1, 2)
    above, below = table.sum(axis=0)
    if not below > 0:
        return Estimate(reason="nothing was predicted to be saved" if len(table) else "no value")
    ratio = float(above / below)
    residual = t_interval((table[:, 0] - ratio * table[:, 1]) / table[:, 1].mean())
    return Estimate(ratio, ratio + residual.low, ratio + residual.high, residual.n, residual.reason)


def two_way_interval(differences: NDArray[np.float64]) -> Estimate:
    """Mean of ``[seeds, images]`` values with an interval over both samplings: other seeds and other test images.

    Crossed random effects by the method of moments: with the mean squares of seeds A, images B and the remainder E,
    var(mean) = (max(A, E) + max(B, E) - E) / (seeds x images), which keeps every variance component from going below 0.
    The t quantile uses Satterthwaite's degrees of freedom, at least seeds - 1. With one seed, only images are sampled.
    """
    seeds, images = differences.shape
    if seeds == 0 or images < 2:
        return Estimate(reason="no per-image record")
    mean = float(differences.mean())
    if seeds == 1:
        half = _quantile(images - 1) * float(differences.std(ddof=1)) / math.sqrt(images)
        return Estimate(mean, mean - half, mean + half, 1, "one seed: images only")
    by_seed = images * float(((differences.mean(axis=1) - mean) ** 2).sum())
    by_image = seeds * float(((differences.mean(axis=0) - mean) ** 2).sum())
    total = float(np.einsum("si,si->", differences, differences)) - seeds * images * mean**2
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    seed_square, image_square, rest = np.array([by_seed, by_image, max(0.0, total - by_seed - by_image)]) / freedom
    variance = max(seed_square, rest) + max(image_square, rest) - rest
    spread = float((np.array([max(seed_square, rest), max(image_square, rest), rest]) ** 2 / freedom).sum())
    effective = max(seeds - 1.0, variance**2 / spread) if spread > 0 else seeds - 1.0
    half = _quantile(effective) * math.sqrt(variance / (seeds * images))
    return Estimate(mean, mean - half, mean + half, seeds)


def two_way_difference(method: Mapping[int, Run], control: Mapping[int, Run]) -> Estimate:
    """``two_way_interval`` of the right-or-wrong differences over the seeds that both have."""
    rows = []
    for seed in sorted(method.keys() & control.keys()):
        ours, theirs = method[seed].correct, control[seed].correct
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            rows.append(ours.astype(np.float64) - theirs)
    return _two_way(rows)


def interpolation_weights(costs: Sequence[float], cost: float) -> NDArray[np.float64]:
    """Weights ``[len(costs)]`` that interpolate piecewise linearly at ``cost``; points of equal cost are averaged.

    Raises ``OffFrontier`` below the smallest and above the largest of ``costs``: the frontier is never extrapolated.
    """
    known, place, count = np.unique(np.asarray(costs, dtype=np.float64), return_inverse=True, return_counts=True)
    if not math.isfinite(cost) or known.size < 2:
        raise OffFrontier("no short run to compare with" if math.isfinite(cost) else "its cost is not known")
    if cost < known[0]:
        raise OffFrontier("costs less than the cheapest budget")
    if cost > known[-1]:
        raise OffFrontier("costs more than the most expensive control")
    right = int(np.clip(np.searchsorted(known, cost), 1, known.size - 1))
    share = (cost - known[right - 1]) / (known[right] - known[right - 1])
    weights = np.zeros(known.size)
    weights[right - 1 : right + 1] = 1.0 - share, share
    result: NDArray[np.float64] = (weights / count)[place]
    return result


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

    ``frontier`` maps a seed to {budget: accuracy}. Where it is surely next to 0, training length does not matter, and no
    comparison with shortened training can tell methods apart.
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


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
