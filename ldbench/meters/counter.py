"""A meter for devices with energy counters, see `ldbench.meters.edges` for how the bound comes about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ldbench.meters.edges import Calibration, Clock, Counter, Edge, Sleep, Spawn, spawn_thread
from ldbench.meters.energy import MINIMUM_SECONDS, Energy, Unavailable, Window, add_windows


class CounterMeter:
    """Energy of the windows between ``start`` and ``stop``, from one counter a device, added up over the devices.

    A window costs one GPU about 31 calls: 9 block at each edge, the rest are made by the threads that wait for the lag
    to pass and for a tick. Seen on a CPU core with calls that return at once: 2 ms of processor time, 1.2 ms of it
    before and after the work.

    Args:
        counters: all with one method.
        calibration: of these counters, taken while the devices were idle.
        minimum_seconds: a shorter window has no figure, see `ldbench.meters.energy.add_windows`.
        idle_after: how the idle power is measured once more by ``total``; None leaves it at the calibration's.
        spawn: runs the watching of an edge.
    """

    def __init__(
        self,
        counters: Sequence[Counter],
        calibration: Calibration,
        *,
        minimum_seconds: float = MINIMUM_SECONDS,
        idle_after: Callable[[], Calibration] | None = None,
        clock: Clock = time.perf_counter,
        sleep: Sleep = time.sleep,
        spawn: Spawn = spawn_thread,
    ) -> None:
        self.counters, self.calibration, self.minimum_seconds = list(counters), calibration, minimum_seconds
        self._idle_after, self._clock, self._sleep, self._spawn = idle_after, clock, sleep, spawn
        self._poll = min(max(calibration.tick_seconds / 10, 0.0005), 0.01)
        self._timeout = max(1.0, 10 * calibration.tick_seconds)
        self._open: tuple[Edge, Callable[[], None], list[dict[str, Any]], threading.Event] | None = None
        self._closed: list[Callable[[], Window]] = []
        self._windows: list[Window] = []

    def start(self) -> None:
        """Open a window. The reading of the counters comes last, nearest to the work."""
        conditions = [counter.conditions() for counter in self.counters]
        ended = threading.Event()
        edge, wait = self._edge(opens=True)
        self._open = edge, wait, conditions, ended
        heartbeats = [c.heartbeat_seconds for c in self.counters if c.heartbeat_seconds is not None]
        if heartbeats:
            spawn_thread(lambda: self._keep_reading(min(heartbeats), ended))

    def stop(self) -> None:
        """Close the window. The reading of the counters comes first, nearest to the work."""
        if self._open is None:
            return
        (first, wait_first, before, ended), self._open = self._open, None
        last, wait_last = self._edge(opens=False)
        ended.set()
        after = [counter.conditions() for counter in self.counters]

        def window() -> Window:
            wait_first()
            wait_last()
            return self._window(first, last, before, after)

        self._closed.append(window)

    def total(self) -> Energy:
        """The sum over all closed windows. Waits for the last edge, and measures the idle power once more."""
        energy = self._sum(self._settled(), self.calibration, self.calibration)
        if energy.joules is None or self._idle_after is None:
            return energy
        try:
            return self._sum(self._windows, self.calibration, self._idle_after())
        except Unavailable:
            return energy

    def sums(self, spans: Sequence[tuple[int, int]]) -> list[Energy]:
        """Sums over some of the windows. Waits for lag and tick of the last edge; idle power is the calibration's."""
        windows = self._settled()
        return [self._sum(windows[first:end], self.calibration, self.calibration) for first, end in spans]

    def _settled(self) -> list[Window]:
        self._windows += [window() for window in self._closed]
        self._closed.clear()
        return self._windows

    def _sum(self, windows: Sequence[Window], before: Calibration, after: Calibration) -> Energy:
        low = min(c.idle_watts - c.idle_bound_watts for c in (before, after))
        high = max(c.idle_watts + c.idle_bound_watts for c in (before, after))
        return add_windows(
            windows,
            method=self.counters[0].method,
            tick_seconds=self.calibration.tick_seconds,
            lag_seconds=self.calibration.lag_seconds,
            minimum_seconds=self.minimum_seconds,
            idle_watts=(low, high),
        )

    def _edge(self, *, opens: bool) -> tuple[Edge, Callable[[], None]]:
        edge = Edge(self.counters, self._clock, opens=opens)
        lag = self.calibration.lag_seconds
        return edge, self._spawn(lambda: edge.watch(lag, self._poll, self._timeout, self._sleep))

    def _keep_reading(self, heartbeat_seconds: float, ended: threading.Event) -> None:
        while not ended.wait(heartbeat_seconds):
            for counter in self.counters:
                try:
                    counter.read()
                except Unavailable:
                    return  # the edge finds out too

    def _window(self, first: Edge, last: Edge, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Window:
        seconds, flags = last.seconds - first.seconds, first.flags | last.flags
        if self.calibration.lag_assumed:
            flags.add("lag_assumed")
        conditions = []
        for counter, at_start, at_end in zip(self.counters, before, after, strict=True):
            flags |= counter.spoilt(at_start, at_end, seconds)
            conditions += [{"start": at_start, "stop": at_end}] if at_start or at_end else []
        problem = first.problem or last.problem
        if not problem and any(b < a for a, b in zip(first.before, last.before, strict=True)):
            problem = "the energy counter ran backwards (driver reloaded?)"
            flags.add("counter_reset")
        if problem:
            return Window(seconds, flags=frozenset(flags), invalid=problem, conditions=tuple(conditions))
        q = sum(counter.resolution_joules for counter in self.counters)
        low = max(0.0, sum(last.before) - sum(first.after) - q)
        high = sum(last.after) - sum(first.before) + q
        return Window(seconds, low, high, (low + high) / 2, frozenset(flags), None, tuple(conditions))
