"""Energy by phase and by epoch, on counters whose true energy is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.fake_nvml import Clock, FakeNvml, Gpu

from ldbench.costs.table import CostTable
from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.meters import EnergyMeter, NullEnergyMeter, PhaseMeters
from ldbench.meters.counter import CounterMeter
from ldbench.meters.edges import Calibration
from ldbench.meters.nvml import NvmlCounter, NvmlDevice
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.training import run_state as training
from ldbench.training.loop import CellRun, run_cell


def record_of(cell: Cell) -> CellRun:
    """Train a cell that drops nothing."""
    experiment = experiment_from_dict({"train_size": cell.train_size, "test_size": cell.test_size})
    preparation = Preparation(experiment, Path("nowhere"), torch.device("cpu"))
    costs = CostTable.untimed(preparation.check(cell), cell.batch_size)
    return run_cell(cell, preparation.data(cell), costs, Path("nowhere"), device=torch.device("cpu"))


def phases_on(clock: Clock, gpu: Gpu, least: float = 0.0, edges: list[list[float]] | None = None) -> PhaseMeters:
    """Phases metered on ``gpu``; ``edges`` receives a list per phase of when its windows began and ended."""
    nvml = FakeNvml(gpu)

    def meter(_: torch.device) -> EnergyMeter:
        counter, seen = NvmlCounter(NvmlDevice(gpu.uuid, nvml)), list[float]()
        if edges is not None:
            edges.append(seen)

        def spawn(work: Callable[[], None]) -> Callable[[], None]:
            seen.append(clock.now)
            work()
            return lambda: None

        known = Calibration(gpu.longest, 50.0, lag_seconds=gpu.lag)
        return CounterMeter([counter], known, minimum_seconds=least, clock=clock, sleep=clock.sleep, spawn=spawn)

    return PhaseMeters(torch.device("cpu"), meter)


def test_phases_and_epochs_have_windows_of_their_own() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(10.0, 100.0, 100.0), (10.0, 400.0, 400.0), (1e6, 200.0, 200.0)], tick=0.02, lag=0.02)
    edges: list[list[float]] = []
    phases = phases_on(clock, gpu, edges=edges)
    rows: list[dict[str, object]] = [{"epoch": 0}, {"epoch": 1}]
    for epoch in range(2):
        with phases.span("training"):
            clock.sleep(6.0)
            if epoch:
                with phases.span("cache_building"):
                    clock.sleep(3.0)
        with phases.span("evaluation"):
            clock.sleep(1.0)
    phases.epochs(rows, {0: (0, 1), 1: (1, 2)})
    record = phases.record(phases.meters["training"].total())
    for epoch, row in enumerate(rows):
        true = gpu.energy(edges[0][2 * epoch + 1]) - gpu.energy(edges[0][2 * epoch])
        assert abs(row["energy_joules"] - true) <= row["energy_bound_joules"] < 0.01 * true  # type: ignore[operator]
        assert row["energy_unavailable_reason"] is None
    building = record["energy_phases"]["cache_building"]
    true = gpu.energy(edges[1][1]) - gpu.energy(edges[1][0])
    assert abs(building["joules"] - true) <= building["bound_joules"] < 0.02 * true
    assert record["energy_joules"] == sum(row["energy_joules"] for row in rows)  # type: ignore[misc]
    assert record["energy_phases"]["evaluation"]["windows"] == 2
    assert record["energy_lag_seconds"] == 0.02


def test_every_null_of_a_phase_and_an_epoch_has_its_reason() -> None:
    phases = PhaseMeters(torch.device("cpu"), lambda _: NullEnergyMeter("nothing to read"))
    rows: list[dict[str, object]] = [{"epoch": 0}, {"epoch": 1}]
    with phases.span("training"):
        pass
    phases.epochs(rows, {0: (0, 1), 1: (1, 2)})
    record = phases.record(phases.meters["training"].total())
    for entry in (*rows, record):
        assert entry["energy_joules"] is None
        assert entry["energy_unavailable_reason"] == "nothing to read"
    assert all(phase["unavailable_reason"] == "nothing to read" for phase in record["energy_phases"].values())


def test_epochs_trained_before_an_interruption_say_so() -> None:
    clock = Clock()
    phases = phases_on(clock, Gpu(clock, power=[(1e6, 200.0, 200.0)], tick=0.02))
    with phases.span("training"):
        clock.sleep(6.0)
    rows: list[dict[str, object]] = [{"epoch": 0}, {"epoch": 1}]
    phases.epochs(rows, {1: (0, 1)})
    assert rows[0]["energy_unavailable_reason"] == "trained in part before an interruption"
    assert rows[1]["energy_joules"] is not None
    short = phases_on(clock, Gpu(clock, power=[(1e6, 200.0, 200.0)], tick=0.02), least=5.0)
    with short.span("training"):
        clock.sleep(1.0)
    short.epochs(rows[:1], {0: (0, 1)})
    assert "shorter than" in str(rows[0]["energy_unavailable_reason"])


@pytest.mark.parametrize(("every", "windows"), [("last", 1), (1, 3)])
def test_training_without_evaluation_in_between_is_one_window(
    every: object, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of half a second have no figure by themselves; a run that is evaluated at the end alone has one."""
    clock = Clock()
    gpu = Gpu(clock, power=[(1e6, 200.0, 200.0)], tick=0.02)
    monkeypatch.setattr(training, "PhaseMeters", lambda device: phases_on(clock, gpu))
    sizes = {"width": 0.125, "epochs": 3, "train_size": 128, "test_size": 64, "batch_size": 64}
    [cell] = plan(experiment_from_dict({"model": ["resnet18"], "method": ["full"], "eval_every": every} | sizes))
    run = record_of(cell)
    assert run.result["energy_phases"]["training"]["windows"] == windows
    own = [row["energy_joules"] is not None for row in run.epochs]
    assert own == [every == 1] * 3
    if every == "last":
        assert "several epochs" in run.epochs[0]["energy_unavailable_reason"]
