"""Variances of few seeds, steadied by those of the other lines: moderated t tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, polygamma

from ldbench.reporting.curve import Floats
from ldbench.reporting.stats import Estimate, quantile


class Prior(NamedTuple):
    """What the lines say together of a line's variance: a scaled inverse chi-square around ``variance``.

    Attributes:
        variance: NaN where nothing is known.
        freedom: degrees of freedom it is worth; infinite where the lines' variances differ by chance alone.
        pooled: degrees of freedom of all lines together: to none of them is it worth more than what the others have.
    """

    variance: float
    freedom: float
    pooled: float


def variance_prior(variances: Sequence[float], freedoms: Sequence[float]) -> Prior:
    """Empirical-Bayes estimate of the prior by the moments of the log variances.

    Smyth, "Linear models and empirical Bayes methods for assessing differential expression" (Statistical Applications
    in Genetics and Molecular Biology 3, 2004), section 6.2, as limma's ``fitFDist`` does it. With e = log(variance) -
    digamma(freedom/2) + log(freedom/2) per line, their spread beyond mean trigamma(freedom/2) is trigamma of half the
    prior's freedom. One line alone has no prior: its freedom is 0.

    Args:
        variances: of the single values of each line.
        freedoms: degrees of freedom of each.
    """
    known = [(v, f) for v, f in zip(variances, freedoms, strict=True) if f > 0 and math.isfinite(v)]
    if len(known) < 2:
        return Prior(math.nan, 0.0, sum(f for _, f in known))
    s, f = (np.array(column) for column in zip(*known, strict=True))
    s = np.maximum(s, 1e-5 * max(float(np.median(s)), 1e-300))
    e = np.log(s) - digamma(f / 2) + np.log(f / 2)
    beyond = float(e.var(ddof=1) - polygamma(1, f / 2).mean())
    if beyond <= 0:
        return Prior(float((s * f).sum() / f.sum()), math.inf, float(f.sum()))
    half = inverse_trigamma(beyond)
    return Prior(math.exp(float(e.mean()) + float(digamma(half)) - math.log(half)), 2 * half, float(f.sum()))


def moderated(values: Sequence[float] | Floats, prior: Prior, further_variance: float = 0.0) -> Estimate:
    """Mean with a t interval whose variance is the prior's and the values' own, weighted by degrees of freedom.

    What scatters more than that keeps its own variance and degrees of freedom: it is not to profit from steadier lines.
    Else the noisiest of four groups would be called ahead by chance in 3 to 6 % of the tests instead of 2.5 %
    (``benches.calibration``, "by FLOPs alone in one group of four").

    Args:
        values: one per seed, at least two.
        further_variance: of the mean, beyond that between seeds, such as that of the choice of test images.
    """
    sample = np.asarray(values, dtype=np.float64)
    variance, freedom = (float(found[0]) for found in moderated_variance(sample[:, None], prior))
    half = quantile(freedom) * math.sqrt(variance / len(sample) + further_variance)
    mean = float(sample.mean())
    return Estimate(mean, mean - half, mean + half, len(sample), freedom=freedom)


def moderated_variance(values: Floats, prior: Prior) -> tuple[Floats, Floats]:
    """Variance of each column of ``values`` [seeds, columns], at least two seeds, and its degrees of freedom."""
    own, freedom = values.var(axis=0, ddof=1), len(values) - 1.0
    borrowed = min(prior.freedom, max(0.0, prior.pooled - freedom))
    if not borrowed > 0 or not math.isfinite(prior.variance):
        return own, np.full(own.shape, freedom)
    total = borrowed + freedom
    shared = (borrowed * prior.variance + freedom * own) / total
    return np.maximum(own, shared), np.where(own >= shared, freedom, total)


NO_PRIOR = Prior(math.nan, 0.0, 0.0)


def inverse_trigamma(value: float) -> float:
    """x > 0 with trigamma(x) = ``value``, by Newton's method on 1/trigamma, which is convex (Smyth 2004, appendix)."""
    if value > 1e7:
        return 1 / math.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        tri = float(polygamma(1, x))
        step = tri * (1 - tri / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x
