"""Rules of other papers for when layers leave training, on this project's engine; what was taken and what differs.

Each is a policy like every other: pure, resumable, and run with either execution, so that a rival is compared by its
rule and not by how well somebody wrote its trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ldbench.errors import UserError, shown
from ldbench.policies.base import NOTHING_TO_TRAIN, NeverDrop, Observation, is_number, percent, reasons
from ldbench.policies.options import check_count


class FreezeOut(NeverDrop):
    """Brock et al. 2017, "FreezeOut: Accelerate Training by Progressively Freezing Layers" (arXiv:1706.04983).

    Stage i anneals its own learning rate along half a cosine to zero at t_i and is frozen from then on; the t_i run
    linearly from ``t_first`` for the first stage to 1 for the last, cubed where ``cubic``. With ``scaled``, the rate
    of stage i starts at 1 / t_i times the base, so that each stage's rate has the same integral. The authors recommend
    scaled cubic (their default, t_0 = 0.8) and unscaled linear (github.com/ajbrock/FreezeOut). What differs: the unit
    is a stage instead of a layer, a warm-up of the recipe is kept, and the last stage is never frozen before the end.
    """

    exact = True

    def __init__(self, t_first: float = 0.8, cubic: bool = True, scaled: bool = True) -> None:
        if not is_number(t_first) or not 1e-3 <= t_first <= 1:  # its cube is divided by
            raise UserError(f"freezeout: t_first is a number in [0.001, 1], not {shown(t_first)}")
        if not isinstance(cubic, bool) or not isinstance(scaled, bool):
            raise UserError("freezeout: cubic and scaled are true or false")
        self.t_first, self.cubic, self.scaled = t_first, cubic, scaled

    def freeze_times(self, stages: int) -> list[float]:
        """t_i per stage as a share of the run."""
        linear = [self.t_first + (1 - self.t_first) * i / max(stages - 1, 1) for i in range(stages)]
        return [t**3 for t in linear] if self.cubic else linear

    def stopped(self, seen: Observation) -> int:
        done = sum(seen.progress >= t for t in self.freeze_times(seen.stages)[:-1])
        return max(seen.dropped, done)

    def why(self, seen: Observation) -> list[str]:
        times = self.freeze_times(seen.stages)

        def reason(stage: int) -> str:
            return f"its rate reaches zero after {percent(times[stage])} of the run, now {percent(seen.progress)}"

        return reasons(seen, self.stopped(seen), reason)

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        scales = []
        for t in self.freeze_times(stages):
            start = 1 / t if self.scaled else 1.0
            scales.append(start * 0.5 * (1 + math.cos(math.pi * min(progress / t, 1.0))))
        return scales


class AutoFreeze(NeverDrop):
    """Liu, Agarwal, Venkataraman 2021, "AutoFreeze: Automatically Freezing Model Blocks" (arXiv:2102.01386).

    The run is divided into ``intervals``. Over each one the gradient of every parameter is summed up; g_s is the L1
    norm of that sum over stage s, and eta_s = |g_s(before) - g_s(now)| / g_s(before) its relative change from one
    interval to the next. Among the stages that still train, the first one whose eta is at least their
    ``percentile``-th percentile is the first to stay: all before it are frozen. From the authors' code
    (github.com/YuhanLiu11/AutoFreeze): L1 norm, percentile 50, and the comparison among active layers alone.

    What differs: the unit is a stage of any network instead of a block of BERT's encoder; the gradient is summed as
    the optimizer sees it, clipping included; 20 intervals as in the authors' example (their code's default is 10), or
    as many as there are checks. Their cache keeps every block's output in files; ours is the engine's store.
    """

    exact = True

    def __init__(self, percentile: float = 50.0, intervals: int = 20) -> None:
        if not is_number(percentile) or not 0 <= percentile <= 100:
            raise UserError(f"autofreeze: percentile is a number in [0, 100], not {shown(percentile)}")
        check_count("autofreeze", 2, intervals=intervals)
        self.percentile, self.intervals = percentile, intervals
        self.needs = MappingProxyType({"gradient": {"intervals": intervals}})
        self.before: list[float | None] = []
        self.change: list[float | None] = []  # eta of the last decision; None where it cannot be told
        self.threshold: float | None = None
        self.stays: int | None = None  # the first stage to stay, by the last decision

    def stopped(self, seen: Observation) -> int:
        if self._within_interval(seen):
            return seen.dropped
        before, self.before = self.before, list(seen.gradient)
        if not before:
            return seen.dropped
        active = [s for s in range(seen.dropped, seen.stages) if seen.trains(s)]
        change = [_relative_change(before[s], seen.gradient[s]) for s in active]
        finite = [value for value in change if math.isfinite(value)]
        self.threshold = float(np.percentile(finite, self.percentile)) if finite else None
        least = -math.inf if self.threshold is None else self.threshold
        self.stays = next((s for s, value in zip(active, change, strict=True) if value >= least), seen.dropped)
        self.change = [None] * seen.stages
        for stage, value in zip(active, change, strict=True):
            self.change[stage] = value if math.isfinite(value) else None
        return min(self.stays, seen.stages - 1)

    @staticmethod
    def _within_interval(seen: Observation) -> bool:
        """Whether no interval ends at this check."""
        return all(value is None for stage, value in enumerate(seen.gradient) if seen.trains(stage))

    def why(self, seen: Observation) -> list[str]:
        number = min(math.floor(seen.progress * self.intervals + 1e-9) + 1, self.intervals)
        ends = f"at the end of interval {number} of {self.intervals}"
        within, stays = self._within_interval(seen), self.stays
        live = [s for s in range(seen.dropped, seen.stages) if seen.trains(s)]

        def reason(stage: int) -> str:
            if not seen.trains(stage):
                return NOTHING_TO_TRAIN
            if self.before and not any(self.before[s] for s in live):
                return "no gradient was seen"
            if stays is None:
                return f"no two intervals to compare yet: interval {number} of {self.intervals} is under way"
            if stays < seen.dropped or stage < stays:
                return f"between two intervals: decided {ends}"
            said = self._stays(stage) if stage == stays else f"behind stage {stays + 1}, which stays"
            return f"{said}; decided again {ends}" if within else said

        return reasons(seen, seen.dropped if within or stays is None else stays, reason)

    def _stays(self, stage: int) -> str:
        """Why the last decision let this stage be the first to stay."""
        change = self.change[stage]
        if change is None or self.threshold is None:
            return "the change of its gradient cannot be told: the first that stays"
        least = f"at least {self.threshold:.3g} (percentile {self.percentile:g})"
        return f"its gradient changed by {change:.3g} since the interval before, {least}: the first that stays"

    def state_dict(self) -> dict[str, Any]:
        names = ("before", "change", "threshold", "stays")
        return {name: list(value) if isinstance(value := getattr(self, name), list) else value for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before, self.change = list(state["before"]), list(state["change"])
        self.threshold, self.stays = state["threshold"], state["stays"]


def _relative_change(before: float | None, now: float | None) -> float:
    """|before - now| / before; infinite where it cannot be told, so that nothing is frozen for want of a figure."""
    if before is None or now is None or not before > 0 or not math.isfinite(before - now):
        return math.inf
    return abs(before - now) / before


class StochasticDepth(NeverDrop):
    """Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382); Zhang and He 2020
    (arXiv:2010.13369).

    No freezing rule: at every step residual block l of L takes part with probability p_l = 1 - (l / L) (1 - p_L),
    where p_L is ``last``; a block left out for the whole minibatch is its shortcut alone, forward and backward. With
    ``gamma`` this is progressive layer dropping: p_L falls from 1 as (1 - last) exp(-gamma x progress) + last; 100 is
    the paper's gamma. What differs from Huang et al.: while training a block's branch is divided by its probability,
    as Zhang and He do, instead of multiplied by it in evaluation, so that the network evaluated and saved is the plain
    one; of a block that changes the shape the projection of its shortcut is still computed, as it has to be. From
    Zhang and He only the schedule is taken, not their transformer block. Networks without residual blocks are refused.
    """

    def __init__(self, last: float = 0.5, gamma: float | None = None) -> None:
        if not is_number(last) or not 0 < last <= 1:
            raise UserError(f"stochastic-depth: last is a number in (0, 1], not {shown(last)}")
        if gamma is not None and (not is_number(gamma) or not 0 < gamma <= 1e6):
            raise UserError(f"stochastic-depth: gamma is a number above 0, not {shown(gamma)}")
        self.last, self.gamma = last, gamma

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        last = self.last
        if self.gamma is not None:
            last += (1 - last) * math.exp(-self.gamma * progress)
        return [1 - (block + 1) / blocks * (1 - last) for block in range(blocks)]
