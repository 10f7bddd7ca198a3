"""Rules of other papers for when layers leave training, on this project's engine; what was taken and what differs.

Each is a policy like every other: pure, resumable, and run with either execution, so that a rival is compared by its
rule and not by how well somebody wrote its trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from ldbench.errors import UserError, shown
from ldbench.policies.base import NeverDrop, Observation, is_number


def _check_share(rule: str, **values: object) -> None:
    for name, value in values.items():
        if not is_number(value) or not 0 <= float(value) <= 1:  # type: ignore[arg-type]
            raise UserError(f"{rule}: {name} is a number in [0, 1], not {shown(value)}")


def _check_count(rule: str, least: int = 1, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1_000_000:
            raise UserError(f"{rule}: {name} is a whole number from {least} up, not {shown(value)}")


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
        _check_count("autofreeze", 2, intervals=intervals)
        self.percentile = percentile
        self.needs = MappingProxyType({"gradient": {"intervals": intervals}})
        self.before: list[float | None] = []

    def stopped(self, seen: Observation) -> int:
        if all(value is None for value in seen.gradient):
            return seen.dropped  # in the middle of an interval
        before, self.before = self.before, list(seen.gradient)
        if not before:
            return seen.dropped
        active = range(seen.dropped, seen.stages)
        change = [_relative_change(before[s], seen.gradient[s]) for s in active]
        finite = [value for value in change if math.isfinite(value)]
        threshold = float(np.percentile(finite, self.percentile)) if finite else -math.inf
        stays = next((s for s, value in zip(active, change, strict=True) if value >= threshold), seen.dropped)
        return min(stays, seen.stages - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"before": list(self.before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before = list(state["before"])


def _relative_change(before: float | None, now: float | None) -> float:
    """|before - now| / before; infinite where it cannot be told, so that nothing is frozen for want of a figure."""
    if before is None or now is None or not before > 0 or not math.isfinite(before - now):
        return math.inf
    return abs(before - now) / before


class Egeria(NeverDrop):
    """After Wang et al. 2023, "Egeria: Efficient DNN Training with Knowledge-Guided Layer Freezing" (arXiv:2201.06227).

    The plasticity of a stage is the distance of its output from a reference model's, a snapshot of the training model
    that is renewed now and then: the similarity-preserving loss of Tung and Mori 2019 (arXiv:1907.09682) on a probe
    batch. It is smoothed by a moving average over ``window`` checks, and a straight line is fitted to the last
    ``window`` averages. The first stage that still trains is frozen when the slope of that line has been within
    ``tolerance`` times its largest value of the first three readings for ``patience`` checks in a row.

    What differs: the probe batch is fixed and the reference only as old as ``window`` checks, so that the average
    spans one life of it; the paper's reference is quantised to int8 to run on idle CPU cores, ours needs no pass of
    its own, since only its similarities are kept; every stage's plasticity is read at each check instead of the first
    one's, since runs here have tens of checks and not thousands; instead of watching the training loss to leave the
    initial phase it waits for ``earliest``; what was dropped is never taken back when the learning rate falls tenfold.
    """

    exact = True

    def __init__(
        self, window: int = 4, tolerance: float = 0.2, patience: int = 2, earliest: float = 0.1, samples: int = 32
    ) -> None:
        _check_count("egeria", 2, window=window, samples=samples)
        _check_count("egeria", patience=patience)
        _check_share("egeria", tolerance=tolerance, earliest=earliest)
        self.window, self.tolerance, self.patience, self.earliest = window, tolerance, patience, earliest
        self.needs = MappingProxyType({"plasticity": {"samples": samples, "renewal": window}})
        self.stages: list[dict[str, Any]] = []

    def stopped(self, seen: Observation) -> int:
        while len(self.stages) < seen.stages:
            self.stages.append({"raw": [], "smooth": [], "readings": 0, "steepest": 0.0, "flat": 0})
        for stage, value in zip(self.stages, seen.plasticity, strict=True):
            if value is not None and math.isfinite(value):
                self._read(stage, value)
        cut = seen.dropped
        if seen.progress >= self.earliest:
            while cut < seen.stages - 1 and self.stages[cut]["flat"] >= self.patience:
                cut += 1
        return cut

    def _read(self, stage: dict[str, Any], value: float) -> None:
        stage["raw"] = [*stage["raw"], value][-self.window :]
        if len(stage["raw"]) < self.window:
            return
        stage["smooth"] = [*stage["smooth"], sum(stage["raw"]) / self.window][-self.window :]
        if len(stage["smooth"]) < self.window:
            return
        slope = abs(_slope(stage["smooth"]))
        stage["readings"] += 1
        if stage["readings"] <= 3:
            stage["steepest"] = max(stage["steepest"], slope)
        else:
            stage["flat"] = stage["flat"] + 1 if slope <= self.tolerance * stage["steepest"] else 0

    def state_dict(self) -> dict[str, Any]:
        return {"stages": [dict(stage) for stage in self.stages]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stages = [dict(stage) for stage in state["stages"]]


def _slope(values: Sequence[float]) -> float:
    """Slope of the least-squares line through (0, values[0]), (1, values[1]), ..."""
    middle = (len(values) - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    return sum((i - middle) * value for i, value in enumerate(values)) / spread


class ParameterFreezing(NeverDrop):
    """After Chen et al. 2021, "... Adaptive Parameter Freezing" (ICDCS 2021; github.com/chenc10/APF_Release).

    Their effective perturbation of a scalar parameter is P = |E| / A, with E and A the exponential moving averages of
    its movement between checks and of that movement's magnitude, weight ``memory`` on the past; where P is below
    ``threshold`` the scalar moves about without getting anywhere. A stage has stopped when at least ``share`` of its
    scalars have been settled so at ``patience`` checks in a row.

    What it adds to this project's directness (``ldbench.dropping.scores``): each scalar is judged by itself, and the
    past fades instead of ending after a window. What differs from the paper, which is about what federated clients
    send: its parameters freeze one by one, for a time, and thaw again; ``share`` and ``patience`` make a rule for
    stages of it. Their memory is 0.95 and their threshold 0.1 over hundreds of rounds; a run here has tens of checks.
    For a random walk P is below 0.25 in about 45 % of the scalars at a memory of 0.8; 30 % are two thirds of the way
    there.
    """

    exact = True

    def __init__(
        self, threshold: float = 0.25, memory: float = 0.8, share: float = 0.3, patience: int = 2, earliest: float = 0.1
    ) -> None:
        _check_share("apf", threshold=threshold, memory=memory, share=share, earliest=earliest)
        _check_count("apf", patience=patience)
        self.share, self.patience, self.earliest = share, patience, earliest
        self.needs = MappingProxyType({"settled": {"threshold": threshold, "memory": memory}})
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        self.calm += [0] * (seen.stages - len(self.calm))
        for stage, value in enumerate(seen.settled):
            if value is not None:
                self.calm[stage] = self.calm[stage] + 1 if value >= self.share else 0
        cut = seen.dropped
        if seen.progress >= self.earliest:
            while cut < seen.stages - 1 and self.calm[cut] >= self.patience:
                cut += 1
        return cut

    def state_dict(self) -> dict[str, Any]:
        return {"calm": list(self.calm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calm = list(state["calm"])


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
