"""Energy of a run that was interrupted: the sum over the processes that worked on it, as far as their work was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldbench.meters import Energy


def energy_from(state: Mapping[str, Any]) -> Energy:
    """An energy out of ``dataclasses.asdict`` or JSON."""
    values = dict(state)
    return Energy(**values | {"flags": tuple(values["flags"]), "conditions": tuple(values["conditions"])})


def add_sessions(before: Energy | None, now: Energy, trained: bool) -> Energy:
    """Both together: joules, bounds, seconds and windows add up; without a figure for one there is none for the sum.

    ``trained`` says whether there was any training now: a session that only evaluated has nothing to add.
    """
    if before is None:
        return now
    if not trained:
        return before
    reason = now.unavailable_reason or before.unavailable_reason
    return Energy(
        None if reason else _sum(before.joules, now.joules),
        None if reason else _sum(before.bound_joules, now.bound_joules),
        reason,
        None if reason else _sum(before.net_joules, now.net_joules),
        None if reason else _sum(before.net_bound_joules, now.net_bound_joules),
        method=now.method if now.method == before.method else f"{before.method} + {now.method}",
        tick_seconds=max((t for t in (before.tick_seconds, now.tick_seconds) if t is not None), default=None),
        seconds=before.seconds + now.seconds,
        windows=before.windows + now.windows,
        flags=tuple(sorted({*before.flags, *now.flags, "summed_windows"})),
        conditions=(*before.conditions, *now.conditions),
        lag_seconds=max((t for t in (before.lag_seconds, now.lag_seconds) if t is not None), default=None),
    )


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
