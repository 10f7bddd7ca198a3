"""Energy per stage and per cut, with a meter of constant power: joules are then seconds times watts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import pytest
import torch
from support.cost_table import TABLE
from torch import nn

from ldbench.costs.break_even import StorePlan
from ldbench.costs.profile import as_dict, cut_rows, stage_rows
from ldbench.costs.stage_energy import StageEnergy, measure_stage_energy
from ldbench.meters import Energy, EnergyMeter, NullEnergyMeter
from ldbench.store.budget import StoreBudget

WATTS = 100.0


class Clock:
    """Time that passes only in ``Wait``."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", CLOCK)


class ConstantPower:
    """A meter of a device that draws ``WATTS``; it gives no figure for windows under ``least`` seconds."""

    def __init__(self, least: float = 0.0) -> None:
        self.least, self.began, self.seconds = least, 0.0, 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.began

    def total(self) -> Energy:
        if self.seconds < self.least:
            return Energy(None, None, f"the window lasted {self.seconds:.2f} s", method="test")
        return Energy(WATTS * self.seconds, 1.0, None, method="test", seconds=self.seconds, windows=1)

    def sums(self, spans: Sequence[tuple[int, int]]) -> list[Energy]:
        return [self.total()] * len(spans)


class Wait(nn.Module):
    """A layer whose forward pass takes ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CLOCK.now += self.seconds
        return x * self.scale


def metered(meter: object, seconds: float = 0.05) -> StageEnergy:
    stages = nn.Sequential(Wait(0.004), Wait(0.012), Wait(0.002))
    optimizer = torch.optim.SGD(stages.parameters(), 0.1)
    batch = torch.ones(2, 4), torch.tensor([0, 1])
    before = [p.clone() for p in stages.parameters()]
    found = measure_stage_energy(
        stages,
        lambda: batch,
        optimizer,
        nn.functional.cross_entropy,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        seconds=seconds,
        meter=lambda _: meter(),  # type: ignore[operator]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, stages.parameters(), strict=True))
    assert all(p.grad is None for p in stages.parameters())
    return found


def test_each_stage_and_each_cut_gets_what_it_draws() -> None:
    found = metered(ConstantPower)
    assert found.unavailable_reason is None
    assert found.stages is not None
    assert found.steps is not None
    assert found.stages == pytest.approx([0.4, 1.2, 0.2])
    assert found.steps == pytest.approx([1.8, 1.4, 0.2])
    assert found.bounds is not None
    assert all(bound > 0 for bound in found.bounds)


@pytest.mark.parametrize(
    ("meter", "reason"),
    [(lambda: NullEnergyMeter("no NVML here"), "no NVML here"), (lambda: ConstantPower(9.0), "the window lasted")],
)
def test_without_a_figure_there_is_the_reason(meter: EnergyMeter, reason: str) -> None:
    found = metered(meter, 0.01)
    assert (found.stages, found.steps, found.bounds) == (None, None, None)
    assert reason in (found.unavailable_reason or "")


def test_the_profile_says_what_a_cut_saves_in_joules() -> None:
    plan = StorePlan(100, "fp32", StoreBudget(10**9, 0, 0))
    energy = StageEnergy([5.0, 20.0, 3.0], [29.0, 22.0, 4.0], [0.1] * 3, None, "test")
    cuts = cut_rows(TABLE, plan, [True] * 3, energy)
    assert [row.saved_joules for row in cuts] == [70.0, 250.0]  # ten steps an epoch
    stages = stage_rows(TABLE, [1, 1, 1], energy)
    assert [row.joules for row in stages] == [5.0, 20.0, 3.0]
    assert as_dict(TABLE, stages, cuts, 100, energy)["energy_unavailable_reason"] is None
    silent = as_dict(TABLE, stage_rows(TABLE, [1, 1, 1]), cut_rows(TABLE, plan, [True] * 3), 100)
    assert silent["stages"][0]["joules"] is None
    assert silent["energy_unavailable_reason"]
