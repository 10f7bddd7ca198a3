"""How a budget is spread over the chunks of a stream: evenly, on one chunk first, or by an allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DIGITS = 12  # of an allocation's shares; a run of 10^12 steps is not to be feared


def chunk_steps(
    lengths: Sequence[int],
    epochs: int,
    budget: float | None,
    *,
    early: bool = False,
    allocation: Sequence[float] | None = None,
) -> list[int]:
    """Steps to train on each chunk, at least one and at most all of it.

    Args:
        lengths: steps of an epoch over each chunk.
        budget: the share of each chunk's steps that is trained; None for all.
        early: the budget is a share of all steps instead, and the first chunk is trained in full as far as it reaches;
            the others share what is left evenly.
        allocation: each chunk's share of the budget's steps. What is more than a chunk's full length is spread over the
            others in proportion. To rounding one of the above, it is exactly that.
    """
    shares = _first(lengths, budget or 1.0, 0) if early else _evenly(lengths, budget or 1.0)
    if allocation is not None:
        shares = _placed(lengths, budget or 1.0, allocation)
    return [max(1, round(epochs * length * share)) for length, share in zip(lengths, shares, strict=True)]


def allocations(lengths: Sequence[int], epochs: int, budget: float) -> list[tuple[float, ...]]:
    """What is tried of a budget: evenly; each chunk in full as far as it reaches and the rest evenly; half-way between
    evenly and the first chunk first. Those that come to the same steps once.
    """
    evenly, first = _evenly(lengths, budget), [_first(lengths, budget, chunk) for chunk in range(len(lengths))]
    between = [(one + other) / 2 for one, other in zip(evenly, first[0], strict=True)]
    found: dict[tuple[int, ...], tuple[float, ...]] = {}
    for shares in (evenly, *first, between):
        made = _allocation(lengths, shares)
        found.setdefault(tuple(chunk_steps(lengths, epochs, budget, allocation=made)), made)
    return list(found.values())


def _evenly(lengths: Sequence[int], budget: float) -> list[float]:
    """The trained share of each chunk."""
    return [budget] * len(lengths)


def _first(lengths: Sequence[int], budget: float, chunk: int) -> list[float]:
    """The trained share of each chunk where one is trained in full as far as the budget reaches."""
    if len(lengths) < 2:
        return _evenly(lengths, budget)
    total, others = budget * sum(lengths), sum(lengths) - lengths[chunk]
    most = min(1.0, total / lengths[chunk])
    rest = max(0.0, total - most * lengths[chunk]) / others
    return [most if number == chunk else rest for number in range(len(lengths))]


def _allocation(lengths: Sequence[int], shares: Sequence[float]) -> tuple[float, ...]:
    """Trained shares of the chunks as shares of the steps trained."""
    steps = [length * share for length, share in zip(lengths, shares, strict=True)]
    return tuple(round(some / math.fsum(steps), _DIGITS) for some in steps)


def _placed(lengths: Sequence[int], budget: float, allocation: Sequence[float]) -> list[float]:
    """The trained share of each chunk by an allocation; what a chunk cannot take goes to the others."""
    for known in (_evenly(lengths, budget), _first(lengths, budget, 0)):
        pairs = zip(_allocation(lengths, known), allocation, strict=True)
        if all(math.isclose(one, other, abs_tol=10 * 10**-_DIGITS) for one, other in pairs):
            return known
    steps, full = [0.0] * len(lengths), set[int]()
    while len(full) < len(lengths):
        left = budget * sum(lengths) - sum(lengths[chunk] for chunk in full)
        open_ = [chunk for chunk in range(len(lengths)) if chunk not in full]
        weights = {chunk: allocation[chunk] for chunk in open_}
        if not sum(weights.values()) > 0:  # all that was meant to be trained is full
            weights = {chunk: float(lengths[chunk]) for chunk in open_}
        for chunk in open_:
            steps[chunk] = left * weights[chunk] / sum(weights.values())
        over = {chunk for chunk in open_ if steps[chunk] > lengths[chunk]}
        if not over:
            break
        full |= over
        for chunk in over:
            steps[chunk] = float(lengths[chunk])
    return [min(1.0, some / length) for some, length in zip(steps, lengths, strict=True)]
