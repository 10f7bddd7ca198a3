"""Intervals over seeds, paired differences and what they take: pure functions over plain numbers.

Every interval is two-sided at 95 % unless asked for at another level. Means of a few seeds use Student's t, which
assumes roughly normal seeds; ratios use it on logarithms. Nothing here knows about files or tables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``low`` and ``high`` are NaN where ``n`` values give none, with the ``reason``.

    ``freedom``: degrees of freedom of a symmetric t interval at 95 %, NaN for any other kind.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""
    freedom: float = field(default=math.nan, compare=False)

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (``factor`` > 0)."""
        return replace(self, mean=self.mean * factor, low=self.low * factor, high=self.high * factor)

    @property
    def sign(self) -> int:
        """+1 or -1 when the whole interval lies above or below 0, else 0 (no interval included)."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN where there is no t interval."""
        return (self.high - self.low) / 2 / quantile(self.freedom) if math.isfinite(self.freedom) else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the single values behind a mean over ``n`` of them."""
        return self.standard_error * math.sqrt(self.n)

    @property
    def p_value(self) -> float:
        """Two-sided, of the t test against 0: at most 0.05 exactly where the interval leaves out 0. NaN without one."""
        error = self.standard_error
        if not error > 0:  # no spread at all, or no interval
            return error if math.isnan(error) else float(self.mean == 0)
        return float(2 * stdtr(self.freedom, -abs(self.mean) / error))


def t_interval(values: Iterable[float]) -> Estimate:
    """Mean and Student's t interval of independent values; non-finite ones are missing, one value gets no interval."""
    sample = [
        float(value) for value in values if math.isfinite(value)
    ]  # a handful: plain Python is quicker than arrays
    n = len(sample)
    if n == 0:
        return Estimate(reason="no value")
    mean = math.fsum(sample) / n
    if n == 1:
        return Estimate(mean, n=1, reason="one seed: no interval")
    squares = math.fsum((value - mean) ** 2 for value in sample)
    half = quantile(n - 1.0) * math.sqrt(squares / (n - 1) / n)
    return Estimate(mean, mean - half, mean + half, n, freedom=n - 1.0)


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
        half = quantile(images - 1) * float(differences.std(ddof=1)) / math.sqrt(images)
        return Estimate(mean, mean - half, mean + half, 1, "one seed: images only")
    seed_square, image_square, rest, freedom = _mean_squares(differences)
    variance = max(seed_square, rest) + max(image_square, rest) - rest
    spread = float((np.array([max(seed_square, rest), max(image_square, rest), rest]) ** 2 / freedom).sum())
    effective = max(seeds - 1.0, variance**2 / spread) if spread > 0 else seeds - 1.0
    half = quantile(effective) * math.sqrt(variance / (seeds * images))
    return Estimate(mean, mean - half, mean + half, seeds, freedom=effective)


def image_variance(differences: NDArray[np.float64]) -> float:
    """What the choice of the test images adds to the variance of the mean of ``[seeds, images]`` values.

    The images' component of ``two_way_interval``, never below 0; 0 where there is one seed, which cannot tell it apart.
    """
    seeds, images = differences.shape
    if seeds < 2 or images < 2:
        return 0.0
    _, image_square, rest, _ = _mean_squares(differences)
    return float(max(0.0, image_square - rest)) / float(seeds * images)


def _mean_squares(differences: NDArray[np.float64]) -> tuple[float, float, float, NDArray[np.float64]]:
    """Mean squares of seeds, images and the remainder, and their degrees of freedom."""
    seeds, images = differences.shape
    mean = float(differences.mean())
    by_seed = images * float(((differences.mean(axis=1) - mean) ** 2).sum())
    by_image = seeds * float(((differences.mean(axis=0) - mean) ** 2).sum())
    total = float(np.einsum("si,si->", differences, differences)) - seeds * images * mean**2
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    first, second, rest = np.array([by_seed, by_image, max(0.0, total - by_seed - by_image)]) / freedom
    return float(first), float(second), float(rest), freedom


def mean_over_hits(costs: Sequence[float], hits: Sequence[bool]) -> Estimate:
    """Expected cost until a hit: the cost of all tries over the number of hits (expected running time).

    Hansen et al., "COCO: performance assessment" (arXiv 1605.03560), with one run as the try. It is the mean cost over
    the rate of hits: their intervals, Student's and Wilson's (JASA 22, 1927), are combined on logarithms by MOVER (Zou
    and Donner, Statistics in Medicine 27, 2008), as if cost and hit were independent. Wilson's keeps in mind that few
    tries which all hit do not prove that every one will. NaN without a hit, and where any cost is not known.
    """
    n, found = len(costs), sum(hits)
    if not found or not all(cost > 0 and math.isfinite(cost) for cost in costs):
        return Estimate(reason="not known of every run" if found else "no run reached it")
    mean = sum(costs) / found
    if n == 1:
        return Estimate(mean, n=1, reason="one seed: no interval")
    cost, rate, square = t_interval(costs), found / n, float(ndtri(0.5 + CONFIDENCE / 2)) ** 2
    centre, half = rate + square / (2 * n), math.sqrt(square * (rate * (1 - rate) / n + square / (4 * n**2)))
    rarest, most = ((centre + side * half) / (1 + square / n) for side in (-1, 1))
    cheaper = math.log(cost.mean / cost.low) if cost.low > 0 else math.inf
    dearer = math.log(cost.high / cost.mean)
    below, above = math.hypot(cheaper, math.log(most / rate)), math.hypot(dearer, math.log(rate / rarest))
    return Estimate(mean, mean * math.exp(-below), mean * math.exp(above), n)


def seeds_needed(spread: float, half_width: float) -> float:
    """Fewest seeds whose t interval is expected to reach ``half_width``, if ``spread`` is their standard deviation.

    The smallest n >= 2 with t(n - 1) x spread / sqrt(n) <= half_width, in whatever unit both are; NaN where the spread
    is not known. The normal quantile gives too few, so it is where the search begins.
    """
    if not math.isfinite(spread):
        return math.nan
    n = max(2, math.ceil((float(ndtri(0.5 + CONFIDENCE / 2)) * spread / half_width) ** 2))
    while quantile(n - 1.0) * spread / math.sqrt(n) > half_width:
        n += 1
    return float(n)


@functools.lru_cache(maxsize=4096)
def quantile(freedom: float) -> float:
    """Student's t quantile that a two-sided 95 % interval takes, at ``freedom`` degrees of freedom."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


LEVEL = 1 - CONFIDENCE


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: rejecting where they are at most 0.05 errs anywhere with 5 % at most.

    Step-down: of m sorted p-values the k-th (from 1) is multiplied by m - k + 1, never below the one before, at most 1
    (Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6, 1979). Holds under any
    dependence, which tests that share their controls need, and rejects all that Bonferroni rejects.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
