"""Energy by integrating power samples, for a GPU without an energy counter; ``integrals.py`` has the bound."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ldbench.meters.edges import Calibration, Clock, Sleep, Spawn, spawn_thread
from ldbench.meters.energy import MINIMUM_SECONDS, Energy, Unavailable, Window, add_windows
from ldbench.meters.integrals import enclose

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
    source: PowerSource, *, least_seconds: float = 1.0, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep
) -> Calibration:
    """Watch the idle device for ``least_seconds``: the longest time without a new value, and mean watts; no lag yet.

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
    return Calibration(_longest(times), sum(watts for _, watts in samples) / len(samples))


def _updates(samples: Sequence[tuple[float, float]], stamped: bool) -> list[float]:
    """When the sensor is known to have published: each sample's own time, or that of each new value."""
    return [b[0] for a, b in itertools.pairwise(samples) if stamped or b[1] != a[1]]


def _longest(times: Sequence[float]) -> float:
    return max(b - a for a, b in itertools.pairwise(times))


class SampledMeter:
    """Energy of the windows between ``start`` and ``stop`` from the power samples of one device.

    A window that follows another one within lag + tick starts that much later: ``start`` waits for the samples.

    Args:
        calibration: of `sample_tick` and `ldbench.meters.lag.with_power_lag`. A driver's average over a second counts
            for a lag of at least that second, and an assumed lag comes on top of it.
        spawn: runs the sampling; None leaves it to the caller, who then calls ``poll``.
    """

    def __init__(
        self,
        source: PowerSource,
        conditions: Conditions,
        calibration: Calibration,
        *,
        minimum_seconds: float = MINIMUM_SECONDS,
        clock: Clock = time.perf_counter,
        spawn: Spawn | None = spawn_thread,
    ) -> None:
        self.source, self.minimum_seconds, self.calibration = source, minimum_seconds, calibration
        self.tick_seconds, self.lag_seconds = calibration.tick_seconds, calibration.lag_seconds
        if source.averaged and calibration.lag_assumed:
            self.lag_seconds += AVERAGING_SECONDS
        elif source.averaged:
            self.lag_seconds = max(self.lag_seconds, AVERAGING_SECONDS)
        self._conditions, self._clock, self._spawn = conditions, clock, spawn
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
        """Close the window; sampling goes on for lag and tick."""
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
            windows,
            method=self.source.method,
            tick_seconds=self.tick_seconds,
            lag_seconds=self.lag_seconds,
            minimum_seconds=self.minimum_seconds,
            idle_watts=(self.calibration.idle_watts,) * 2,
        )

    def _run(self) -> None:
        while self._problem is None and not self._reached():
            time.sleep(self.source.period_seconds)
            self.poll()

    def _reached(self) -> bool:
        """Whether the samples reach lag and tick beyond the end, or never will."""
        if self._stop is None:
            return False
        last, end = self._samples[-1][0] if self._samples else 0.0, self._stop + self.lag_seconds
        return last >= end + self.tick_seconds or self._clock() > end + 5 * self.tick_seconds + 5

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
        if self.calibration.lag_assumed:
            flags.add("lag_assumed")
        try:
            if self._problem is not None:
                raise Unavailable(self._problem)
            low, figure, high = enclose(self._samples, start, stop, self.tick_seconds, self.lag_seconds)
        except Unavailable as reason:
            self._windows.append(Window(seconds, flags=frozenset(flags), invalid=str(reason), conditions=seen))
            return
        if not self.source.stamped and _longest([t for t, _ in self._samples]) > self.tick_seconds:
            flags.add("samples_missed")
        self._windows.append(Window(seconds, low, high, figure, frozenset(flags), None, seen))
