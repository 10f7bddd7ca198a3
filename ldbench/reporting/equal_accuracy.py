"""How many times cheaper a method is at equal accuracy: what the control pays for the method's accuracy, over its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldbench.reporting.curve import Floats
from ldbench.reporting.frontier import RATIOS, Leads
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


def speed_up(leads: Leads) -> SpeedUp:
    """The ratio r at which the mean lead over a control that spends r times the method's cost vanishes.

    Its interval holds every r at which a t test of the leads does not reject that they vanish (inversion of the test,
    as in Fieller's theorem), so that it lies above 1 just where the lead at equal cost has an interval above 0. The
    lead falls along the logarithm of r, and both ends are found there. Nothing is extrapolated: beyond full training
    and below the cheapest budget there are bounds.
    """
    over, n = leads.over_ratios, len(leads.seeds)
    if over is None or n == 0:
        return SpeedUp(reason=leads.reason or "no value")
    if not leads.lowest < leads.highest:
        return SpeedUp(n=n, reason="the comparisons share no range of costs that controls were run at")
    ends = np.log([leads.lowest, leads.highest])
    grid = np.log(RATIOS)
    x = np.concatenate([ends[:1], grid[(grid > ends[0]) & (grid < ends[1])], ends[1:]])
    table = np.stack([np.interp(x, grid, row) for row in over])
    mean = table.mean(axis=0)
    at, bound = _falls_to_zero(x, mean, last=False), ""
    if math.isinf(at):
        at, bound = (ends[0], "at most") if at < 0 else (ends[1], "at least")
    low = high = math.nan
    if n > 1:
        half = quantile(n - 1.0) * table.std(axis=0, ddof=1) / math.sqrt(n)
        low, high = (
            math.exp(_falls_to_zero(x, side, last=last)) for side, last in ((mean - half, False), (mean + half, True))
        )
    why = leads.reason or ("" if n > 1 else "one seed: no interval")
    return SpeedUp(math.exp(at), low, high, n, bound, leads.lowest, leads.highest, why)  # type: ignore[arg-type]


def _falls_to_zero(x: Floats, y: Floats, *, last: bool) -> float:
    """Where the broken line falls through 0 for the first time, or the last; -inf where it begins at or below, inf
    where it ends above.
    """
    if last:
        if y[-1] > 0:
            return math.inf
        above = np.flatnonzero(y > 0)
        if not len(above):
            return -math.inf
        left = int(above[-1])
    else:
        below = np.flatnonzero(y <= 0)
        if not len(below):
            return math.inf
        if below[0] == 0:
            return -math.inf
        left = int(below[0]) - 1
    return float(x[left] + (x[left + 1] - x[left]) * y[left] / (y[left] - y[left + 1]))
