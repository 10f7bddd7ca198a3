"""How late a counter or a power sensor is, measured on a step of the power: an idle device is made to work.

The step happens after the moment t0 just before the work is launched. What is published in answer rises from the idle
power to that of the load and has settled, at the latest, a lag L after the step (`ldbench.meters.edges` says what L
is). So the time from t0 until it has settled for good is L or more: a device that takes its time to reach its full
power, or is throttled later, makes the lag look longer, never shorter.

Settled is what stays within a band around the steady power, which is that of the last 40 % of the load. The band is 5 %
of the step, or half as much again as the steady power wanders, or four times its standard deviation. Published power is
looked at as means over spans of W seconds that begin at every tick, W being a tick or more. With x the begin of the
first span after the last one outside the band, and ``band`` and ``wander`` as parts of the step,

    L  <=  (x - t0 + W / 2) / (1 - band - wander)

* x is the tick after the last one that is known to be too early, so the resolution of a tick is in it;
* for a sensor that is late by d, a span within the band began at most band x W before the settled power: less than
  W / 2;
* for a mean over the last A seconds the last part ``band`` of the ramp is not seen. Of a span that begins at x, the
  mean falls short by 1 - (x + W / 2) / A while it lies on the ramp, by (A - x)^2 / (2 A W) when it reaches over its
  end; set equal to ``band``, both give (x + W / 2) / (1 - band) >= A. A delay before the ramp only adds to it;
* ``wander`` is for noise that lifts a span into the band too early.

Every W gives such a limit, and the smallest is taken. Not seen are a slow tail that holds less than the band, such as
that of an exponential filter, and a device whose power overshoots by just so much as hides the lag.

Where the step cannot be made out (no load, an error while it ran, a step small beside idle power or noise), a second is
assumed, which is the longest average that NVIDIA documents, and said so.
"""

from __future__ import annotations

import itertools
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ldbench.meters.edges import Calibration, Clock, Counter, Sleep
from ldbench.meters.energy import Unavailable

ASSUMED_LAG_SECONDS = 1.0
LOAD_SECONDS = 2.5  # an average over a second settles, and enough is left to tell the steady power
STEADY_SHARE = 0.4
BAND = 0.05
WIDEST_BAND = 0.3  # wander included; noise beyond that hides the step
LEAST_STEP = 0.25  # of the idle power: less may be something else that happened
SPANS_SECONDS = (0.0, 0.04, 0.08, 0.12)  # the least W of each look; 0 is one tick
LEAST_SPANS = 4

Sample = tuple[float, float]  # seconds, and joules or watts


class Load(Protocol):
    """Work that draws clearly more power than idling. What fails raises ``RuntimeError`` or ``Unavailable``."""

    def prepare(self) -> float:
        """Get ready, so that the first work starts at once. The result says for how many seconds this made it work."""
        ...

    def feed(self) -> None:
        """Keep the device busy until the next call some milliseconds later; returns at once."""
        ...

    def finish(self) -> None:
        """Wait for the end of what was fed, and give its memory back."""
        ...


class Power(Protocol):
    """Where power samples come from; see `ldbench.meters.sampled.PowerSource`."""

    def poll(self) -> list[Sample]:
        """Samples since the last call: (seconds, watts)."""
        ...


def settling_seconds(curve: Sequence[Sample], began: float, idle_watts: float) -> float | None:
    """How long after ``began`` published power has settled, at most; None where it cannot be told. See above.

    Args:
        curve: (seconds, joules) at every tick while the load ran.
        idle_watts: power before ``began``.
    """
    times = [t for t, _ in curve]
    if len(curve) < 2 * LEAST_SPANS:
        return None
    steady_from = times[-1] - STEADY_SHARE * (times[-1] - began)
    found = []
    for least in SPANS_SECONDS:
        spans = []  # (begin, length, watts)
        for i, (t, joules) in enumerate(curve):
            j = max(i + 1, bisect_left(times, t + least))
            if j >= len(curve):
                break
            spans.append((t, times[j] - t, (curve[j][1] - joules) / (times[j] - t)))
        steady = [watts for t, _, watts in spans if t >= steady_from]
        if len(steady) < LEAST_SPANS:
            continue
        level = statistics.median(steady)
        step = level - idle_watts
        if step <= LEAST_STEP * idle_watts:
            continue
        wander = max(abs(watts - level) for watts in steady) / step
        band = max(BAND, 1.5 * wander, 4 * statistics.stdev(steady) / step)
        if band + wander > WIDEST_BAND:
            continue
        settled = 1 + max((i for i, (_, _, w) in enumerate(spans) if abs(w - level) > band * step), default=-1)
        width = max(length for _, length, _ in spans[max(0, settled - 1) : settled + 1])
        found.append((spans[settled][0] - began + width / 2) / (1 - band - wander))
    return min(found, default=None)


def with_counter_lag(
    known: Calibration,
    counter: Counter,
    load: Load | None,
    *,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Calibration:
    """``known`` with the lag of ``counter``, whose device is idle now, and again when this returns."""
    ticks: list[tuple[float, float, float]] = []  # seconds, joules, and since when it may have been there
    last: Sample | None = None

    def look() -> None:
        nonlocal last
        begun = clock()
        joules = counter.read()
        if last is not None and joules != last[1]:
            ticks.append((clock(), joules, last[0]))
        last = begun, joules

    def curve() -> list[Sample]:
        # A tick that was seen late, because the thread was not run, says little of when it was: the next one will.
        late = max(0.002, 3 * statistics.median(t - since for t, _, since in ticks)) if ticks else 0.0
        return [(t, joules) for t, joules, since in ticks if t - since <= late]

    return _with_lag(known, load, look, curve, clock, sleep)


def with_power_lag(
    known: Calibration, source: Power, load: Load | None, *, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep
) -> Calibration:
    """``known`` with the lag of a power sensor, whose device is idle now, and again when this returns."""
    samples: list[Sample] = []

    def curve() -> list[Sample]:
        """As if a counter added up each sample until the next."""
        gains = [(b - a) * watts for (a, watts), (b, _) in itertools.pairwise(samples)]
        joules = itertools.accumulate(gains, initial=0.0)
        return [(t, sum_) for (t, _), sum_ in zip(samples, joules, strict=True)]

    return _with_lag(known, load, lambda: samples.extend(source.poll()), curve, clock, sleep)


def _with_lag(
    known: Calibration,
    load: Load | None,
    look: Callable[[], None],
    curve: Callable[[], list[Sample]],
    clock: Clock,
    sleep: Sleep,
) -> Calibration:
    assumed = replace(known, lag_seconds=ASSUMED_LAG_SECONDS, lag_assumed=True)
    if load is None:
        return assumed
    try:
        try:
            warm = load.prepare()
            look()
            began = clock()
            while clock() - began < LOAD_SECONDS:
                load.feed()
                look()
                sleep(0.0005)
        finally:
            load.finish()
    except (RuntimeError, Unavailable):  # what is wrong with the device, if anything, its user will see
        return assumed
    # What was done to prepare may be in an average already, as if the load had begun that much earlier.
    risen = [(t, joules) for t, joules in curve() if t > began]
    lag = settling_seconds(risen, began - warm, known.idle_watts)
    found = assumed if lag is None else replace(known, lag_seconds=lag, lag_assumed=False)
    sleep(found.lag_seconds)  # until nothing of the load is left in what the first window sees
    return found
