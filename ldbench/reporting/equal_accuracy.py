"""How many times cheaper a method is at equal accuracy: what the control pays for the method's accuracy, over its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldbench.reporting.curve import Floats
from ldbench.reporting.frontier import RATIOS, Leads
from ldbench.reporting.moderation import NO_PRIOR, Prior, moderated_variance
from ldbench.reporting.stats import quantile


@dataclass(frozen=True)
class SpeedUp:
    """The control's cost at the method's accuracy over the method's cost: above 1, the method is cheaper.

    Attributes:
        ratio: NaN where there is none, with the ``reason``.
        low, high: 95 % interval; 0 and infinity where it runs off the costs that controls were run at, NaN where there
            is no interval.
        n: seeds.
        bound: "at least" where the method ends above all that the control reaches, so that ``ratio`` is the control's
            highest cost over the method's; "at most" where it ends below the cheapest control.
        lowest, highest: the ratios that the controls reach.
    """

    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    bound: Literal["", "at least", "at most"] = ""
    lowest: float = math.nan
    highest: float = math.nan
    reason: str = ""


def speed_up(leads: Leads, prior: Prior = NO_PRIOR) -> SpeedUp:
    """The ratio r at which the mean lead over a control that spends r times the method's cost vanishes.

    Its interval is what a t test of the leads leaves of r (inversion of the test, as in Fieller's theorem), looked for
    from r = 1 on: upwards, to the first r at which a lead is not sure any more, where it is at 1; else downwards, to the
    first at which it is. So it lies above 1 just where the interval of the lead at equal cost lies above 0, whatever
    single seeds' frontiers do far away. Nothing is extrapolated: beyond full training and below the cheapest budget
    there are bounds.

    Args:
        prior: of the variance of leads at equal cost, where their test has one.
    """
    over, n = leads.over_ratios, len(leads.seeds)
    if over is None or n == 0:
        return SpeedUp(reason=leads.reason or "no value")
    if not leads.lowest < leads.highest:
        return SpeedUp(n=n, reason="the comparisons share no range of costs that controls were run at")
    ends = np.log([leads.lowest, leads.highest])
    grid = np.log(RATIOS)
    equal = [0.0] if ends[0] < 0 < ends[1] else []
    x = np.unique(np.concatenate([ends, grid[(grid > ends[0]) & (grid < ends[1])], equal]))
    table = np.stack([np.interp(x, grid, row) for row in over])
    mean = table.mean(axis=0)
    at, bound = _crossing(x, mean), ""
    if math.isinf(at):
        at, bound = (ends[0], "at most") if at < 0 else (ends[1], "at least")
    low = high = math.nan
    if n > 1:
        variance, freedom = moderated_variance(table, prior)
        wide = {value: quantile(value) for value in set(freedom.tolist())}
        half = np.array([wide[value] for value in freedom.tolist()]) * np.sqrt(variance / n)
        # Where even that holds at the end of what was run, the end is the bound: nothing is known beyond.
        low = math.exp(min(_crossing(x, mean - half), ends[1]))
        high = math.exp(max(_crossing(x, mean + half), ends[0]))
    why = leads.reason or ("" if n > 1 else "one seed: no interval")
    return SpeedUp(math.exp(at), low, high, n, bound, leads.lowest, leads.highest, why)  # type: ignore[arg-type]


def _crossing(x: Floats, y: Floats) -> float:
    """Where the broken line falls through 0, looked for from x = 0 on (or the end next to it): upwards where it is above
    0 there, else downwards. Infinite where it does not.
    """
    start = int(np.argmin(np.abs(x)))
    if y[start] > 0:
        below = np.flatnonzero(y[start:] <= 0)
        return _zero(x, y, start + int(below[0]) - 1) if len(below) else math.inf
    above = np.flatnonzero(y[: start + 1] > 0)
    return _zero(x, y, int(above[-1])) if len(above) else -math.inf


def _zero(x: Floats, y: Floats, left: int) -> float:
    return float(x[left] + (x[left + 1] - x[left]) * y[left] / (y[left] - y[left + 1]))
