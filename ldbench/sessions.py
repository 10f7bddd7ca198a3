"""Energy of a run that was interrupted: the sum over the processes that worked on it, as far as their work was kept."""

from __future__ import annotations


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
