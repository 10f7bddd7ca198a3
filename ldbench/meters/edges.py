"""Energy from counters that only grow: the true energy is caught between two readings at each edge of a window.

E(t) is the energy since some moment long past; it never falls. A counter moves only at ticks, and what it publishes is
late: at a tick u it shows a value C between E(u - L) and E(u), cut to its resolution q. L is the largest delay, its
*lag*. A counter that is late by a constant d is of this kind with L = d. So is one that publishes power averaged over
the last A seconds, with L = A, or L = d + A where it is late as well: a mean of E(u - s) over delays s from 0 to L lies
between E(u - L) and E(u). `ldbench.meters.lag` measures L. At an edge a of a window

* a reading that ended before a was published by then, so it is too small or right:  E(a) >= C_before;
* a reading begun after a + L tells where the counter stands, and the first one after it that differs was published at
  a tick u > a + L, so it is too large or right:  E(a) <= E(u - L) <= C_after + q.

Both edges a and b give the energy of the window, whatever the power did, whatever phase and jitter the ticks have:

    C_before(b) - C_after(a) - q  <=  E(b) - E(a)  <=  C_after(b) - C_before(a) + q

The middle of this interval is the figure, half its width the bound: half of what the counter gained from the last tick
before each edge to the first one after edge + L. With power P at both edges that is about P x (L + tick), where the
middle is right however late the counter is. Ticks missed by slow polling, and readings taken late, widen the interval
and never break it. A lag longer than L breaks it.

Nothing waits: the readings after an edge are taken by a thread that ends within L and a tick or two.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ldbench.meters.energy import Unavailable

Clock = Callable[[], float]
Sleep = Callable[[float], None]
# Runs a function beside the caller; the result waits for its end.
Spawn = Callable[[Callable[[], None]], Callable[[], None]]


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
    """What watching the idle counters for a moment tells: the longest time between two ticks, and idle watts of all.

    Attributes:
        tick_seconds: longest time between two ticks.
        idle_watts: mean power in that moment, all counters together.
        idle_bound_watts: what the time between two looks leaves open of it.
        lag_seconds: how late a published value may be, see above. Watching an idle counter tells nothing of it:
            `calibrate` leaves it at 0, which is meant for a CPU's counter alone.
        lag_assumed: whether it is an assumption, because it could not be measured.
    """

    tick_seconds: float
    idle_watts: float
    idle_bound_watts: float = 0.0
    lag_seconds: float = 0.0
    lag_assumed: bool = False


def calibrate(
    counters: Sequence[Counter],
    *,
    ticks: int = 5,
    least_seconds: float = 0.3,
    timeout_seconds: float = 2.0,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Calibration:
    """Watch the counters until each has ticked ``ticks`` + 1 times, for ``least_seconds`` to ``timeout_seconds``.

    Raises ``Unavailable`` when one has not ticked twice by then, or runs backwards.
    """
    began = looked = clock()
    unseen = 0.0
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
        now = clock()
        unseen, looked, elapsed = max(unseen, now - looked), now, now - began
        if (elapsed >= least_seconds and all(len(s) > ticks for s in seen)) or elapsed >= timeout_seconds:
            break
        sleep(0.0005)
    if any(len(s) < 2 for s in seen):
        raise Unavailable(f"the energy counter did not move in {timeout_seconds:g} s")
    gaps = [later[0] - earlier[0] for s in seen for earlier, later in itertools.pairwise(s)]
    gained = [(s[-1][1] - s[0][1], s[-1][0] - s[0][0]) for s in seen]
    idle = sum(joules / seconds for joules, seconds in gained)
    most = sum(joules / max(seconds - unseen, seconds / 10) for joules, seconds in gained)
    return Calibration(max(gaps), idle, most - idle)


def spawn_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Run ``work`` in a daemon thread; the returned function waits for its end."""
    thread = threading.Thread(target=work, name="ldbench-energy", daemon=True)
    thread.start()
    return thread.join


class Edge:
    """One edge of a window: per counter a reading before it, and one of the first tick seen later than edge + lag."""

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

    def watch(self, lag_seconds: float, poll_seconds: float, timeout_seconds: float, sleep: Sleep) -> None:
        """Wait for ``lag_seconds`` after the edge, then for a tick of every counter, at most ``timeout_seconds``."""
        if self.problem:
            return
        while (left := self.seconds + lag_seconds - self.clock()) > 0:
            sleep(max(left, 0.0005))
        began = self.clock()
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
                if self.clock() - began > timeout_seconds:
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
