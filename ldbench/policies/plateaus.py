"""Rules of other papers under which a stage leaves once a figure of its own has levelled off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ldbench.policies.base import NeverDrop, Observation, percent
from ldbench.policies.options import check_count, check_share
from ldbench.policies.resting import in_a_row, resting_prefix, why_not_gone


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
        check_count("egeria", 2, window=window, samples=samples)
        check_count("egeria", patience=patience)
        check_share("egeria", tolerance=tolerance, earliest=earliest)
        self.window, self.tolerance, self.patience, self.earliest = window, tolerance, patience, earliest
        self.needs = MappingProxyType({"plasticity": {"samples": samples, "renewal": window}})
        self.stages: list[dict[str, Any]] = []

    def stopped(self, seen: Observation) -> int:
        while len(self.stages) < seen.stages:
            self.stages.append({"raw": [], "smooth": [], "readings": 0, "steepest": 0.0, "flat": 0})
        for number, value in enumerate(seen.plasticity):
            if value is not None and math.isfinite(value) and seen.trains(number):
                self._read(self.stages[number], value)
        return resting_prefix(seen, self.earliest, self._flat)

    def _flat(self, stage: int) -> bool:
        return bool(self.stages[stage]["flat"] >= self.patience)

    def why(self, seen: Observation) -> list[str]:
        return why_not_gone(seen, self.earliest, self._flat, self._slope_text, resting="flat")

    def _slope_text(self, stage: int) -> str:
        it = self.stages[stage]
        if it["readings"] <= 3:
            judged = 2 * self.window + 2  # values to the first slope, 2 slopes more for the steepest, and one to judge
            known = len(it["raw"]) + max(0, len(it["smooth"]) - 1) + max(0, it["readings"] - 1)
            return f"its plasticity is judged from {judged} readings on, {known} so far"
        slope, least = abs(_slope(it["smooth"])), self.tolerance * it["steepest"]
        said = f"its plasticity changes by {slope:.3g} a check; stops at {least:.3g} or less"
        return said + in_a_row(self.patience, it["flat"])

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
        check_share("apf", threshold=threshold, memory=memory, share=share, earliest=earliest)
        check_count("apf", patience=patience)
        self.share, self.patience, self.earliest = share, patience, earliest
        self.needs = MappingProxyType({"settled": {"threshold": threshold, "memory": memory}})
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        self.calm += [0] * (seen.stages - len(self.calm))
        for stage, value in enumerate(seen.settled):
            if value is not None and seen.trains(stage):
                self.calm[stage] = self.calm[stage] + 1 if value >= self.share else 0
        return resting_prefix(seen, self.earliest, self._settled)

    def _settled(self, stage: int) -> bool:
        return self.calm[stage] >= self.patience

    def why(self, seen: Observation) -> list[str]:
        def moving(stage: int) -> str:
            share = seen.settled[stage] if seen.settled else None
            said = "not measured at this check" if share is None else f"{percent(share)} of its scalars are settled"
            return f"{said}; stops at {percent(self.share)} or more" + in_a_row(self.patience, self.calm[stage])

        return why_not_gone(seen, self.earliest, self._settled, moving, resting="settled")

    def state_dict(self) -> dict[str, Any]:
        return {"calm": list(self.calm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calm = list(state["calm"])


class SimFreeze(NeverDrop):
    """After Li et al. 2024, "EdgeOL: Efficient in-situ Online Learning on Edge Devices" (arXiv:2401.16694): SimFreeze.

    The similarity of a stage's output to that of the initial model is its linear CKA (Kornblith et al. 2019,
    arXiv:1905.00414) on a probe batch. A stage is at rest once its CKA has varied by less than ``variation`` of the
    value before (their 1 %) at ``patience`` checks in a row, and those before it are.

    What differs: their layers freeze each by itself, here the first stages do; the initial model is not kept, only its
    similarities (``ldbench.dropping.similarity.CkaMonitor``), and in a stream each chunk's probe batch is compared with
    the network at that chunk's beginning, so that readings of two chunks are never compared; they examine frozen
    layers again when the scenario changes and may thaw them, here nothing thaws; ``patience`` and ``earliest`` are
    ours, since under a warm-up from random weights nothing moves yet. How often to train at all, the other half of
    their paper, is not taken. It is in the manner of the paper, of which abstract and summaries were at hand and not
    how far apart its checks are; no code of its authors was consulted.
    """

    exact = True

    def __init__(self, variation: float = 0.01, patience: int = 2, earliest: float = 0.1, samples: int = 32) -> None:
        check_share("simfreeze", variation=variation, earliest=earliest)
        check_count("simfreeze", patience=patience)
        check_count("simfreeze", 2, samples=samples)
        self.variation, self.patience, self.earliest = variation, patience, earliest
        self.needs = MappingProxyType({"cka": {"samples": samples}})
        self.last: list[float | None] = []
        self.varied: list[float | None] = []  # between the last two checks, as a share; None where it cannot be told
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        missing = seen.stages - len(self.calm)
        self.last, self.varied, self.calm = (
            self.last + [None] * missing,
            self.varied + [None] * missing,
            self.calm + [0] * missing,
        )
        for stage, value in enumerate(seen.cka):
            before = self.last[stage]
            known = value is not None and math.isfinite(value) and seen.trains(stage)
            self.last[stage], self.varied[stage] = value if known else None, None
            if known and value is not None and before:
                self.varied[stage] = varied = abs(value - before) / abs(before)
                self.calm[stage] = self.calm[stage] + 1 if varied < self.variation else 0
            else:
                self.calm[stage] = 0
        return resting_prefix(seen, self.earliest, self._at_rest)

    def _at_rest(self, stage: int) -> bool:
        return self.calm[stage] >= self.patience

    def why(self, seen: Observation) -> list[str]:
        def varying(stage: int) -> str:
            varied = self.varied[stage]
            if varied is None:
                return "no two readings of its similarity to compare yet"
            said = f"its similarity varied by {percent(varied)} since the check before"
            return f"{said}; stops below {percent(self.variation)}" + in_a_row(self.patience, self.calm[stage])

        return why_not_gone(seen, self.earliest, self._at_rest, varying, resting="at rest")

    def state_dict(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) for name in ("last", "varied", "calm")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last, self.varied, self.calm = (list(state[name]) for name in ("last", "varied", "calm"))
