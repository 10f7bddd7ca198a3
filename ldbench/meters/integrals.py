"""What power samples tell of the energy between two moments: the true energy is caught between two integrals.

A sensor may be late, and it may smooth: at a moment t it knows p(t), a mean of the power P(t - s) over delays s from 0
to its lag L (`ldbench.meters.lag` measures it; a mean over the last second has at least a second). So the integral S of
p is late as well: S(t) lies between E(t - L) and E(t), E being the energy up to t, and E(a) between S(a) and S(a + L).
The energy of a window from a to b is then caught, whatever the power did, by two integrals of p:

    S(b) - S(a + L)  <=  E(b) - E(a)  <=  S(b + L) - S(a)

the lower one being 0 where the window is shorter than L. The figure is that over [a + L / 2, b + L / 2], which lies in
between; sampling goes on until b + L.

Samples (t_i, p_i) of p say less than p, so its integrals rest on an assumption about p between them. A sensor
publishes a value every ``tick``; what a reading shows is at most one tick old. Two kinds are covered:

* it publishes p of that moment, and between two publications p stays between the two values;
* it publishes the mean of p since the publication before, whatever the power did. A mean over several ticks is of this
  kind where it spans a whole number of them; else power that beats with the ticks may deceive it.

For t in [t_i, t_i+1] take the smallest and the largest of the samples from i to the first one at least a tick after
t_i+1. The publications around t are among them, so for the first kind p lies between the two, and for the
second kind the integral between any two publications does, if every publication was read: where readings were further
apart than a tick, the window is flagged "samples_missed". The integrals of the two enclose that of p, with one
correction for the second kind: the publication interval that an edge cuts through may hold its energy in either part,
at most tick x (largest value around that edge), for each edge.

The figure is the trapezoid rule; the bound the larger distance to the lower and the upper limit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from ldbench.meters.energy import Unavailable


def integrate(
    samples: Sequence[tuple[float, float]], start: float, stop: float, tick: float
) -> tuple[float, float, float]:
    """Lower limit, figure and upper limit of the integral of p in joules between ``start`` and ``stop``, see above.

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


def enclose(
    samples: Sequence[tuple[float, float]], start: float, stop: float, tick: float, lag: float
) -> tuple[float, float, float]:
    """Lower limit, figure and upper limit of the energy in joules between ``start`` and ``stop``, see above.

    Args:
        samples: (seconds, watts) by time; the first not after ``start``, the last at least lag + tick after ``stop``.

    Raises:
        Unavailable: the samples do not reach over the window and its lag.
    """
    _, _, high = integrate(samples, start, stop + lag, tick)
    low = integrate(samples, start + lag, stop, tick)[0] if stop > start + lag else 0.0
    figure = integrate(samples, start + lag / 2, stop + lag / 2, tick)[1]
    return low, min(max(figure, low), high), high
