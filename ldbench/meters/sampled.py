"""Energy by integrating power samples, for a GPU without an energy counter.

Samples (t_i, p_i) say less than a counter, so the bound rests on an assumption about the power between them. A sensor
publishes a value every ``tick``; what a reading shows is at most one tick old. Two kinds are covered:

* it publishes the power of that moment, and between two publications the power stays between the two values;
* it publishes the mean power since the publication before, whatever the power did.

For t in [t_i, t_i+1] take the smallest and the largest of the samples from i to the first one at least a tick after
t_i+1. The publications around t are among them, so for the first kind the power lies between the two, and for the
second kind the energy between any two publications does, if every publication was read: where readings were further
apart than a tick, the window is flagged "samples_missed". The integrals of the two over the window enclose its energy,
with one correction for the second kind: the publication interval that an edge cuts through may hold its energy in
either part, at most tick x (largest value around that edge), for each edge.

The figure is the trapezoid rule; the bound the larger distance to the two integrals plus the two edge terms. A driver
that publishes the average over a whole second (``averaged``) delays the power by up to that second, which moves energy
across each edge: at most half a second x the largest power seen.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ldbench.meters.edges import Clock, Spawn, spawn_thread
from ldbench.meters.energy import MINIMUM_SECONDS, Energy, Unavailable, Window, add_windows

AVERAGING_SECONDS = 1.0
LEAST_UPDATES = 20


class PowerSource(Protocol):
    """Where power samples come from."""

    method: str
    averaged: bool  # each value is the mean of a second
    stamped: bool  # times are those of the samples, not those of reading them
    period_seconds: float

    def poll(self) -> list[tuple[float, float]]:
        """Samples since the last call: (seconds of the monotonic clock, watts). Raises ``Unavailable``."""
        ...


class Conditions(Protocol):
    """What is recorded at the edges of a window."""

    def conditions(self) -> dict[str, Any]:
        """Clocks, co-tenants and the like; never raises."""
        ...

    def spoilt(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> set[str]:
        """Flags that follow."""
        ...


def sample_tick(
    source: PowerSource, *, least_seconds: float = 1.0, clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float, float]:  # fmt: skip
    """Watch the idle device for ``least_seconds``: the longest time without a new value in seconds, and mean watts.

    Raises ``Unavailable`` when there is no sample at all.
    """
    began = clock()
    samples = source.poll()
    while clock() - began < least_seconds:
        sleep(min(source.period_seconds, 0.005))
        samples += source.poll()
    if not samples:
        raise Unavailable(f"the driver gave no power sample in {least_seconds:g} s")
    # A value that never changes tells nothing: the whole watch is then the only safe answer.
    times = [began, *_updates(samples, source.stamped), clock()]
    return _longest(times), sum(watts for _, watts in samples) / len(samples)


def _updates(samples: Sequence[tuple[float, float]], stamped: bool) -> list[float]:
    """When the sensor is known to have published: each sample's own time, or that of each new value."""
    return [b[0] for a, b in itertools.pairwise(samples) if stamped or b[1] != a[1]]


def _longest(times: Sequence[float]) -> float:
    return max(b - a for a, b in itertools.pairwise(times))


def integrate(
    samples: Sequence[tuple[float, float]], start: float, stop: float, tick: float
) -> tuple[float, float, float]:
    """Lower limit, figure and upper limit of the energy in joules between ``start`` and ``stop``, see above.

    Args:
        samples: (seconds, watts) by time; the first not after ``start``, the last at least a ``tick`` after ``stop``.

    Raises:
        Unavailable: the samples do not reach over the window.
    """
    times = [t for t, _ in samples]
    if not samples or times[0] > start or times[-1] < stop + tick:
        raise Unavailable("the power samples do not reach over the window")
    low = high = figure = 0.0
    for i in range(bisect_right(times, start) - 1, bisect_left(times, stop)):
        (t0, p0), (t1, p1) = samples[i], samples[i + 1]
        a, b = max(t0, start), min(t1, stop)
        if b <= a:
            continue
        around = [watts for _, watts in samples[i : bisect_left(times, b + tick) + 1]]
        low += min(around) * (b - a)
        high += max(around) * (b - a)
        middle = ((a + b) / 2 - t0) / (t1 - t0)
        figure += (p0 + (p1 - p0) * middle) * (b - a)
    for edge in (start, stop):
        near = samples[max(0, bisect_right(times, edge - tick) - 1) : bisect_left(times, edge + 2 * tick) + 1]
        low, high = low - tick * max(p for _, p in near), high + tick * max(p for _, p in near)
    return max(0.0, low), figure, high


class SampledMeter:
    """Energy of the windows between ``start`` and ``stop`` from the power samples of one device.

    Args:
        tick_seconds, idle_watts: of `sample_tick`.
        spawn: runs the sampling; None leaves it to the caller, who then calls ``poll``.
    """

    def __init__(
        self, source: PowerSource, conditions: Conditions, tick_seconds: float, idle_watts: float, *,
        minimum_seconds: float = MINIMUM_SECONDS, clock: Clock = time.perf_counter, spawn: Spawn | None = spawn_thread,
    ) -> None:  # fmt: skip
        self.source, self.tick_seconds, self.minimum_seconds = source, tick_seconds, minimum_seconds
        self._conditions, self._idle, self._clock, self._spawn = conditions, idle_watts, clock, spawn
        self._lock = threading.Lock()
        self._samples: list[tuple[float, float]] = []
        self._problem: str | None = None
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] = {}
        self._start: float | None = None
        self._stop: float | None = None
        self._wait: Callable[[], None] = lambda: None
        self._windows: list[Window] = []

    def start(self) -> None:
        """Open a window."""
        self._settle()
        self._before = self._conditions.conditions()
        self._samples, self._problem, self._stop = self._samples[-1:], None, None
        for _ in range(10):  # the driver may have nothing new at the first call
            self.poll()
            if self._samples or self._problem is not None:
                break
            time.sleep(self.tick_seconds / 5)
        self._start = self._clock()
        if self._spawn is not None:
            self._wait = self._spawn(self._run)

    def stop(self) -> None:
        """Close the window; sampling goes on for a tick."""
        if self._start is not None:
            self._stop = self._clock()
            self._after = self._conditions.conditions()

    def poll(self) -> None:
        """Take the samples there are."""
        with self._lock:
            try:
                self._samples += self.source.poll()
            except Unavailable as reason:
                self._problem = self._problem or str(reason)

    def total(self) -> Energy:
        """The sum over all closed windows."""
        self._settle()
        return self._sum(self._windows)

    def sums(self, spans: Sequence[tuple[int, int]]) -> list[Energy]:
        """Sums over some of the windows."""
        self._settle()
        return [self._sum(self._windows[first:end]) for first, end in spans]

    def _sum(self, windows: Sequence[Window]) -> Energy:
        return add_windows(
            windows, method=self.source.method, tick_seconds=self.tick_seconds,
            minimum_seconds=self.minimum_seconds, idle_watts=(self._idle, self._idle),
        )  # fmt: skip

    def _run(self) -> None:
        while self._problem is None and not self._reached():
            time.sleep(self.source.period_seconds)
            self.poll()

    def _reached(self) -> bool:
        """Whether the samples reach a tick beyond the end, or never will."""
        if self._stop is None:
            return False
        last = self._samples[-1][0] if self._samples else 0.0
        return last >= self._stop + self.tick_seconds or self._clock() > self._stop + 5 * self.tick_seconds + 5

    def _refine_tick(self) -> None:
        """An idle sensor repeats its value and looks slower than it is; under load every update shows."""
        updates = _updates(self._samples, self.source.stamped)
        if len(updates) >= LEAST_UPDATES:
            unseen = 0.0 if self.source.stamped else _longest([t for t, _ in self._samples])
            self.tick_seconds = min(self.tick_seconds, _longest(updates) + unseen)

    def _settle(self) -> None:
        """Make a window of what was sampled since ``start``."""
        if self._start is None or self._stop is None:
            return
        self._wait()
        start, stop, self._start = self._start, self._stop, None
        seconds, seen = stop - start, ({"start": self._before, "stop": self._after},)
        flags = self._conditions.spoilt(self._before, self._after, seconds)
        self._refine_tick()
        if self.source.averaged:
            flags.add("averaged_power")
        try:
            if self._problem is not None:
                raise Unavailable(self._problem)
            low, figure, high = integrate(self._samples, start, stop, self.tick_seconds)
        except Unavailable as reason:
            self._windows.append(Window(seconds, flags=frozenset(flags), invalid=str(reason), conditions=seen))
            return
        if not self.source.stamped and _longest([t for t, _ in self._samples]) > self.tick_seconds:
            flags.add("samples_missed")
        moved = AVERAGING_SECONDS / 2 * max(watts for _, watts in self._samples) if self.source.averaged else 0.0
        low = max(0.0, low - moved)
        self._windows.append(Window(seconds, low, high + moved, figure, frozenset(flags), None, seen))
