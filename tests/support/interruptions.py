"""Runs a tiny cell, interrupted where a test wants it, and compares what it came to."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from ldbench.costs.table import CostTable
from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.records.cell_files import VOLATILE_FIELDS
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.training.checkpointing import Checkpointer
from ldbench.training.interrupts import Interrupted, StopRequest
from ldbench.training.loop import CellRun, run_cell
from ldbench.training.setup import Resident

CPU = torch.device("cpu")
TABLE: dict[str, Any] = {
    "model": "support.tiny_nets:net", "dataset": "digits", "image_size": 8, "train_size": 100, "test_size": 60,
    "epochs": 4,
    "batch_size": 20, "check_every": 2, "momentum": 0.9, "lr": 0.05, "decide_by": "time",
    "policy": {
        "schedule": {"drops": [[0.25, 0.3], [0.6, 0.6]]}, "learn-and-drop": {"remaining": 0.8, "patience": 1},
        "freezeout": {"t_first": 0.4}, "apf+store": {"share": 0.05, "patience": 1},
        "egeria": {"window": 2, "patience": 1, "tolerance": 1.0}, "egeria+store": {"window": 2, "patience": 1,
        "tolerance": 1.0},
        "simfreeze": {"variation": 0.2, "patience": 1}, "simfreeze+store": {"variation": 0.2, "patience": 1},
    },
}  # fmt: skip

ONLINE: dict[str, Any] = {
    "scenario": "online", "chunks": 3, "memory": 20, "train_size": 120, "epochs": 4, "batch_size": 10,
}  # fmt: skip


class StopAfter(StopRequest):
    """A signal that comes at the n-th point where a run may be stopped: steps, minibatches of stores and of
    evaluations.
    """

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.number = 15
        super().check()


class Bench:
    """Data and a cost table in which every drop pays, shared by the runs of a test module."""

    def __init__(self, folder: Path, model: str = TABLE["model"]) -> None:
        self.folder, self.table = folder, TABLE | {"model": model}
        cell = self.cell("full")
        preparation = Preparation(experiment_from_dict(self.table), folder, CPU)
        self.data: Resident = preparation.data(cell)
        measured = preparation.costs(cell)
        count = len(measured.stages)
        tiers = {
            k: dataclasses.replace(v, read_overhead=0.0, read_per_byte=0.0, write_per_byte=0.0)
            for k, v in measured.tiers.items()
        }
        self.costs: CostTable = dataclasses.replace(
            measured,
            inference=[0.0] * count,
            forward=[0.0] * count,
            tiers=tiers,
            steps=[float(count - cut) for cut in range(count)],
        )

    def online(self) -> Bench:
        """The same with data that are enough for cells of ``ONLINE``."""
        made = copy.copy(self)
        experiment = experiment_from_dict(self.table | ONLINE)
        made.data = Preparation(experiment, self.folder / "online", CPU).data(plan(experiment)[0])
        return made

    def cell(self, method: str, **options: Any) -> Cell:
        """The cell of a method."""
        methods = ["learn-and-drop", "freeze"] if method == "freeze" else [method]
        planned = plan(experiment_from_dict(self.table | {"method": methods, "short_budgets": [0.55]} | options))
        return planned[-1]

    def run(self, cell: Cell, folder: Path, checkpointer: Checkpointer | None = None) -> CellRun:
        """Train a cell in ``folder``."""
        folder.mkdir(exist_ok=True, parents=True)
        replay = [(6, 1), (12, 3)] if cell.method == "freeze" else None
        return run_cell(cell, self.data, self.costs, folder, device=CPU, replay=replay, checkpointer=checkpointer)

    def interrupted(self, cell: Cell, folder: Path, *checks: int) -> tuple[CellRun, int]:
        """Train a cell, stopped after so many checks in one process after the other; also tells how often it was."""
        folder.mkdir(exist_ok=True, parents=True)
        stopped = 0
        for number in checks:
            torch.manual_seed(number)  # a new process has other random states
            try:
                return self.run(cell, folder, Checkpointer(folder, StopAfter(number))), stopped
            except Interrupted:
                stopped += 1
        return self.run(cell, folder, Checkpointer(folder)), stopped


def lasting(run: CellRun) -> dict[str, Any]:
    """What must be the same to the bit: the record without its volatile fields, epochs and scores, and every weight."""
    record = {key: value for key, value in run.result.items() if key not in VOLATILE_FIELDS}
    for name in ("drops", "declined", "chunks"):
        gone = [field.removeprefix(f"{name}.") for field in VOLATILE_FIELDS if field.startswith(f"{name}.")]
        record[name] = [{k: v for k, v in entry.items() if k not in gone} for entry in record[name]]
    epochs = [{k: v for k, v in row.items() if f"epochs.{k}" not in VOLATILE_FIELDS} for row in run.epochs]
    weights = {name: tensor.numpy().tobytes() for name, tensor in run.model.state_dict().items()}
    return {"record": record, "epochs": epochs, "scores": run.scores, "weights": weights}


def check_resuming(bench: Bench, cell: Cell, folder: Path, once: int, often: int) -> None:
    """Hold a cell stopped after ``once`` checks, and one stopped after every ``often``, against one that was not."""
    plain = bench.run(cell, folder / "plain")
    assert plain.result["drops"]
    resumed, stopped = bench.interrupted(cell, folder / "once", once)
    assert stopped == 1
    assert lasting(resumed) == lasting(plain)
    resumed, stopped = bench.interrupted(cell, folder / "often", *[often] * 30)
    assert stopped >= 3
    assert lasting(resumed) == lasting(plain)
