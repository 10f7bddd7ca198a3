"""What an energy figure says, how windows are added up, and when there is no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

# Shorter windows are noisy and read low: at a tick of 0.1 s the two edges alone are 2 % of 5 s.
MINIMUM_SECONDS = 5.0


class Unavailable(Exception):
    """There is no energy figure; the message is the reason, one line."""


@dataclass(frozen=True)
class Energy:
    """Energy of one window, or of several added up.

    Attributes:
        joules: gross energy, or None. None exactly when ``unavailable_reason`` is set; never 0 for "unknown".
        bound_joules: the true energy is within ``joules`` +- this, as far as tick, lag, resolution and sampling go (see
            `ldbench.meters.edges` and `ldbench.meters.sampled`); the accuracy of the sensor itself, which its maker
            gives as a few per cent, is not part of it, and neither is a lag longer than ``lag_seconds``.
        unavailable_reason: why there is no figure.
        net_joules, net_bound_joules: the same after idle power x seconds is taken off; None where idle power is not
            known. For a counter idle power was measured before and after, its figure is the middle of the two and
            their distance goes into the bound; for power samples it was measured before.
        method: "nvml counter", "nvml power samples", "nvml power polled" or "powercap".
        tick_seconds: the longest time between two updates of the reading, as measured.
        seconds: length of the windows.
        windows: how many there were.
        flags: what may spoil the figure: "co_tenant", "throttled", "too_short", "counter_reset", "counter_stalled",
            "lag_assumed", "averaged_power", "samples_missed", "summed_windows".
            "lag_assumed": the lag could not be measured, and a second or more was taken for it.
            Co-tenants are those seen at an edge; throttling is what the driver counted in the window.
        conditions: per window and device what was seen at both edges.
        lag_seconds: all energy used longer ago than that is in what is read. Measured, or assumed where ``flags`` say
            so, or taken for 0 for powercap, whose counters are renewed every millisecond; None where it is not known.
    """

    joules: float | None
    bound_joules: float | None
    unavailable_reason: str | None
    net_joules: float | None = None
    net_bound_joules: float | None = None
    method: str | None = None
    tick_seconds: float | None = None
    seconds: float = 0.0
    windows: int = 0
    flags: tuple[str, ...] = ()
    conditions: tuple[dict[str, Any], ...] = ()
    lag_seconds: float | None = None

    def __post_init__(self) -> None:
        """A figure has a bound, no figure has a reason: never both, never neither."""
        if (self.joules is None) != (self.unavailable_reason is not None) or (self.joules is None) != (
            self.bound_joules is None
        ):
            raise ValueError("an energy has joules and a bound, or a reason why not")


@dataclass(frozen=True)
class Window:
    """What one window measured: the energy lies in ``[low_joules, high_joules]``, best guessed by ``estimate_joules``.

    ``invalid`` says why the readings are worth nothing, else None.
    """

    seconds: float
    low_joules: float = 0.0
    high_joules: float = 0.0
    estimate_joules: float = 0.0
    flags: frozenset[str] = frozenset()
    invalid: str | None = None
    conditions: tuple[dict[str, Any], ...] = field(default=())

    @property
    def bound_joules(self) -> float:
        """Largest distance of the true energy from the estimate."""
        return max(self.high_joules - self.estimate_joules, self.estimate_joules - self.low_joules)


class EnergyMeter(Protocol):
    """Adds up the energy of the windows between ``start`` and ``stop``. Neither raises: ``total`` tells what failed."""

    def start(self) -> None:
        """Open a window; the device is synchronised."""
        ...

    def stop(self) -> None:
        """Close the window; the device is synchronised."""
        ...

    def total(self) -> Energy:
        """The sum over all closed windows."""
        ...

    def sums(self, spans: Sequence[tuple[int, int]]) -> list[Energy]:
        """For each (first, end) the windows with these numbers added up; the first window is number 0."""
        ...


class NullEnergyMeter:
    """Where energy cannot be read: gives the reason instead of a number."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def start(self) -> None:
        """Nothing to read."""

    def stop(self) -> None:
        """Nothing to read."""

    def total(self) -> Energy:
        """No joules, and why."""
        return Energy(None, None, self.reason)

    def sums(self, spans: Sequence[tuple[int, int]]) -> list[Energy]:
        """No joules, and why."""
        return [self.total()] * len(spans)


def add_windows(
    windows: Sequence[Window],
    *,
    method: str,
    tick_seconds: float,
    lag_seconds: float | None = None,
    minimum_seconds: float = MINIMUM_SECONDS,
    idle_watts: tuple[float, float] | None = None,
) -> Energy:
    """The energy of all windows together.

    A sum is judged by the mean length of its windows: what goes wrong at an edge does so once an edge, so n windows of
    mean length T have the relative error of one window of length T. A run whose training is cut by evaluations every
    second therefore has no figure, however long it is, and one that evaluates at the end, or every minute, has one.
    The bound of a sum is the sum of the bounds: errors of many windows may all have one sign.

    Args:
        idle_watts: least and most idle power, or None where it is not known.
    """
    seconds = sum(window.seconds for window in windows)
    flags = set().union(*(window.flags for window in windows))
    if len(windows) > 1:
        flags.add("summed_windows")
    reason = next((window.invalid for window in windows if window.invalid is not None), None)
    if not windows:
        reason = "nothing was measured"
    elif reason is None and seconds / len(windows) < minimum_seconds:
        flags.add("too_short")
        what = "the window lasted" if len(windows) == 1 else f"the {len(windows)} windows lasted on average"
        reason = f"{what} {seconds / len(windows):.2f} s, shorter than the {minimum_seconds:g} s a metered window needs"
    known = Energy(
        None,
        None,
        reason or "",
        method=method,
        tick_seconds=tick_seconds,
        seconds=seconds,
        windows=len(windows),
        flags=tuple(sorted(flags)),
        conditions=tuple(c for window in windows for c in window.conditions),
        lag_seconds=lag_seconds,
    )
    if reason is not None:
        return known
    joules, bound = sum(w.estimate_joules for w in windows), sum(w.bound_joules for w in windows)
    net = net_bound = None
    if idle_watts is not None:
        net = joules - seconds * sum(idle_watts) / 2
        net_bound = bound + seconds * abs(idle_watts[1] - idle_watts[0]) / 2
    return replace(
        known, joules=joules, bound_joules=bound, unavailable_reason=None, net_joules=net, net_bound_joules=net_bound
    )


def add_devices(energies: Sequence[Energy]) -> Energy:
    """Several devices, or processes, at work side by side: joules add up, the longest time counts.

    One device without a figure leaves the sum without one.
    """
    if not energies:
        return Energy(None, None, "nothing was measured")
    reasons = [
        f"device {i}: {e.unavailable_reason}" for i, e in enumerate(energies) if e.unavailable_reason is not None
    ]
    methods = sorted({e.method for e in energies if e.method is not None})
    ticks = [e.tick_seconds for e in energies if e.tick_seconds is not None]
    lags = [e.lag_seconds for e in energies if e.lag_seconds is not None]
    return Energy(
        joules=None if reasons else _sum(e.joules for e in energies),
        bound_joules=None if reasons else _sum(e.bound_joules for e in energies),
        unavailable_reason=reasons[0] if reasons else None,
        net_joules=None if reasons else _sum(e.net_joules for e in energies),
        net_bound_joules=None if reasons else _sum(e.net_bound_joules for e in energies),
        method=" + ".join(methods) or None,
        tick_seconds=max(ticks, default=None),
        seconds=max(e.seconds for e in energies),
        windows=max(e.windows for e in energies),
        flags=tuple(sorted({flag for e in energies for flag in e.flags})),
        conditions=tuple(c for e in energies for c in e.conditions),
        lag_seconds=max(lags, default=None),
    )


def _sum(values: Any) -> float | None:
    """The sum, or None when a part of it is not known."""
    parts = list(values)
    return None if any(part is None for part in parts) else float(sum(parts))


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
        None if reason else _sum((before.joules, now.joules)),
        None if reason else _sum((before.bound_joules, now.bound_joules)),
        reason,
        None if reason else _sum((before.net_joules, now.net_joules)),
        None if reason else _sum((before.net_bound_joules, now.net_bound_joules)),
        method=now.method if now.method == before.method else f"{before.method} + {now.method}",
        tick_seconds=max((t for t in (before.tick_seconds, now.tick_seconds) if t is not None), default=None),
        seconds=before.seconds + now.seconds,
        windows=before.windows + now.windows,
        flags=tuple(sorted({*before.flags, *now.flags, "summed_windows"})),
        conditions=(*before.conditions, *now.conditions),
        lag_seconds=max((t for t in (before.lag_seconds, now.lag_seconds) if t is not None), default=None),
    )
