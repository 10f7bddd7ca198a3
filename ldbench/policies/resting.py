"""What rules have in common under which a stage leaves once its figure has come to rest, and those before it have."""

from __future__ import annotations

from collections.abc import Callable

from ldbench.policies.base import NOTHING_TO_TRAIN, Observation, percent, reasons


def resting_prefix(seen: Observation, earliest: float, rests: Callable[[int], bool], most: int | None = None) -> int:
    """Leading stages that are gone or have come to rest.

    Args:
        earliest: share of the run before which none leaves.
        rests: of a stage with a trainable parameter; one without always does.
        most: stages that may be gone; None: all but the last one.
    """
    cut, last = seen.dropped, seen.stages - 1
    if seen.progress >= earliest:
        while cut < (last if most is None else min(last, most)) and (not seen.trains(cut) or rests(cut)):
            cut += 1
    return cut


def why_not_gone(
    seen: Observation,
    earliest: float,
    rests: Callable[[int], bool],
    restless: Callable[[int], str],
    *,
    resting: str,
    most: int | None = None,
    limit: str = "",
) -> list[str]:
    """The texts of ``Policy``'s ``why`` for a rule that goes by ``resting_prefix``.

    Args:
        restless: why a stage hasn't come to rest, in words.
        resting: the word for a stage that has.
        limit: what ``most`` says, in words.
    """
    cut = resting_prefix(seen, earliest, rests, most)

    def reason(stage: int) -> str:
        if not seen.trains(stage):
            return NOTHING_TO_TRAIN
        if not rests(stage):
            return restless(stage)
        if seen.progress < earliest:
            return f"{resting}, but before {percent(earliest)} of the run nothing leaves"
        blocking = next((before for before in range(cut, stage) if seen.trains(before) and not rests(before)), None)
        return f"{resting}, but {limit if blocking is None else f'stage {blocking + 1} before it is not'}"

    return reasons(seen, cut, reason)


def in_a_row(wanted: int, found: int) -> str:
    """How often a figure has to be found at rest, and has been; "" where once is enough."""
    return f", {wanted} checks in a row ({found} so far)" if wanted > 1 else ""
