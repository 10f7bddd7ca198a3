"""Energy from counters that only grow: the true energy is caught between two readings at each edge of a window.

A counter shows the energy E since some moment long past, but moves only at ticks: at a time t it shows
C(t) = E(u), u being its last tick before t, cut to its resolution q. E never falls. At an edge a of a window

* a reading that ended before a is too small or right:  E(a) >= C_before;
* a reading after a tells where the counter stands, and the first one after it that differs was made by a tick later
  than a, so it is too large or right:  E(a) <= C_after + q.

Both edges a and b give the energy of the window, whatever the power did, whatever the phase and the jitter of the ticks:

    C_before(b) - C_after(a) - q  <=  E(b) - E(a)  <=  C_after(b) - C_before(a) + q

The middle of this interval is the figure, half its width the bound: half of what the counter gained in the ticks that
straddle the two edges, which is tick x (power at a + power at b) / 2. Ticks missed by slow polling widen the interval
and never break it. Assumed is that a tick publishes the energy up to that tick; a counter that lags behind by a
constant shifts both edges alike, which matters where the power at the edges differs from that before them.

Nothing waits: the readings after an edge are taken by a thread that ends within a tick or so.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ldbench.meters.energy import MINIMUM_SECONDS, Energy, Unavailable, Window, add_windows

Clock = Callable[[], float]
Spawn = Callable[
    [Callable[[], None]], Callable[[], None]
]  # runs a function beside this one; the result waits for its end


class Counter(Protocol):
    """Joules used since some moment long past, by one device."""

    method: str
    resolution_joules: float
    heartbeat_seconds: float | None  # a counter that wraps must be read at least this often

    def open_window(self) -> None:
        """A window opens: what the counter did before does not matter. Raises ``Unavailable``."""
        ...

    def read(self) -> float:
        """Joules. Raises ``Unavailable``."""
        ...

    def conditions(self) -> dict[str, Any]:
        """Co-tenants, clocks, temperature and the like, as far as they can be read; never raises."""
        ...

    def spoilt(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> set[str]:
        """Flags that follow from the conditions at the two edges of a window."""
        ...


@dataclass(frozen=True)
class Calibration:
    """What watching the idle counters for a moment tells: the longest time between two ticks, and idle watts of all."""

    tick_seconds: float
    idle_watts: float


def calibrate(
    counters: Sequence[Counter], *, ticks: int = 5, least_seconds: float = 0.3, timeout_seconds: float = 2.0,
    clock: Clock = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
) -> Calibration:  # fmt: skip
    """Watch the counters until each has ticked ``ticks`` + 1 times, at least ``least_seconds``, at most ``timeout_seconds``.

    Raises ``Unavailable`` when one has not ticked twice by then, or runs backwards.
    """
    began = clock()
    seen: list[list[tuple[float, float]]] = [[] for _ in counters]
    last = [counter.read() for counter in counters]
    while True:
        for i, counter in enumerate(counters):
            value = counter.read()
            if value < last[i]:
                raise Unavailable("the energy counter ran backwards at start-up")
            if value != last[i]:
                last[i] = value
                seen[i].append((clock(), value))
        elapsed = clock() - began
        if (elapsed >= least_seconds and all(len(s) > ticks for s in seen)) or elapsed >= timeout_seconds:
            break
        sleep(0.0005)
    if any(len(s) < 2 for s in seen):
        raise Unavailable(f"the energy counter did not move in {timeout_seconds:g} s")
    gaps = [later[0] - earlier[0] for s in seen for earlier, later in itertools.pairwise(s)]
    idle = sum((s[-1][1] - s[0][1]) / (s[-1][0] - s[0][0]) for s in seen)
    return Calibration(max(gaps), idle)


def spawn_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Run ``work`` in a daemon thread; the returned function waits for its end."""
    thread = threading.Thread(target=work, name="ldbench-energy", daemon=True)
    thread.start()
    return thread.join


class Edge:
    """One edge of a window: per counter a reading before it, and one after the first tick behind it."""

    def __init__(self, counters: Sequence[Counter], clock: Clock, *, opens: bool) -> None:
        self.counters, self.clock, self.problem, self.flags = counters, clock, "", set[str]()
        self.before = self.after = [0.0] * len(counters)
        try:
            for counter in counters if opens else ():
                counter.open_window()
            self.before = [counter.read() for counter in counters]
        except Unavailable as reason:
            self.problem = str(reason)
        self.seconds = clock()

    def watch(self, poll_seconds: float, timeout_seconds: float, sleep: Callable[[float], None]) -> None:
        """Read every counter until it has ticked, or for ``timeout_seconds``."""
        if self.problem:
            return
        try:
            base = [counter.read() for counter in self.counters]
            after: list[float | None] = [None] * len(base)
            while True:
                for i, counter in enumerate(self.counters):
                    if after[i] is None and (value := counter.read()) != base[i]:
                        after[i] = value
                known = [value for value in after if value is not None]
                if len(known) == len(base):
                    break
                if self.clock() - self.seconds > timeout_seconds:
                    self.problem = f"the energy counter did not move in {timeout_seconds:g} s"
                    self.flags.add("counter_stalled")
                    return
                sleep(poll_seconds)
        except Unavailable as reason:
            self.problem = str(reason)
            return
        self.after = known
        if any(not before <= first <= then for before, first, then in zip(self.before, base, known, strict=True)):
            self.problem = "the energy counter ran backwards (driver reloaded?)"
            self.flags.add("counter_reset")


class CounterMeter:
    """Energy of the windows between ``start`` and ``stop``, from one counter a device, added up over the devices.

    Args:
        counters: all with one method.
        calibration: of these counters, taken while the devices were idle.
        minimum_seconds: a shorter window has no figure, see `ldbench.meters.energy.add_windows`.
        idle_after: how the idle power is measured once more by ``total``; None leaves it at the calibration's.
        spawn: runs the watching of an edge.
    """

    def __init__(
        self, counters: Sequence[Counter], calibration: Calibration, *, minimum_seconds: float = MINIMUM_SECONDS,
        idle_after: Callable[[], Calibration] | None = None, clock: Clock = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep, spawn: Spawn = spawn_thread,
    ) -> None:  # fmt: skip
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
        """The sum over all closed windows. Waits for the last edge's tick, and measures the idle power once more."""
        self._windows += [window() for window in self._closed]
        self._closed.clear()
        before = after = self.calibration.idle_watts
        energy = self._sum((before, after))
        if energy.joules is None or self._idle_after is None:
            return energy
        try:
            return self._sum((before, self._idle_after().idle_watts))
        except Unavailable:
            return energy

    def _sum(self, idle_watts: tuple[float, float]) -> Energy:
        return add_windows(
            self._windows, method=self.counters[0].method, tick_seconds=self.calibration.tick_seconds,
            minimum_seconds=self.minimum_seconds, idle_watts=idle_watts,
        )  # fmt: skip

    def _edge(self, *, opens: bool) -> tuple[Edge, Callable[[], None]]:
        edge = Edge(self.counters, self._clock, opens=opens)
        return edge, self._spawn(lambda: edge.watch(self._poll, self._timeout, self._sleep))

    def _keep_reading(self, heartbeat_seconds: float, ended: threading.Event) -> None:
        while not ended.wait(heartbeat_seconds):
            for counter in self.counters:
                try:
                    counter.read()
                except Unavailable:
                    return  # the edge finds out too

    def _window(self, first: Edge, last: Edge, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Window:
        seconds, flags = last.seconds - first.seconds, first.flags | last.flags
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
