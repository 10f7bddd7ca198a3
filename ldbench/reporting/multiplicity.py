"""Correction for many tests at once: Holm's adjusted p-values, and the level that makes intervals simultaneous."""

from __future__ import annotations

from collections.abc import Sequence

from ldbench.reporting.stats import CONFIDENCE

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


def simultaneous_confidence(tests: int) -> float:
    """Confidence of each of ``tests`` intervals at which all cover together with 95 % at least.

    Bonferroni's 1 - 0.05 / m (Dunn, "Multiple comparisons among means", JASA 56, 1961), under any dependence. Holm's
    steps have no two-sided intervals that stay informative where they reject, so these are a little wider than his
    tests: one that leaves out 0 is always a rejection, a narrow rejection may keep 0 in.
    """
    return 1 - LEVEL / max(1, tests)
