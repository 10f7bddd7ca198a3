"""The lines of a run: how far it is, and how long it will take."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from ldbench.cli import progress as module
from ldbench.cli.progress import ConsoleProgress, duration, epochs_run
from ldbench.experiment.validation import experiment_from_dict
from ldbench.runner.plan import plan


def row(epoch: int) -> dict[str, Any]:
    scores = {"train_loss": 1.0, "test_accuracy": 0.5, "val_accuracy": None}
    return {"epoch": epoch, **scores, "live_stages": 3, "dropped_stages": 1}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7_800, "2 h 10 min")]
)
def test_durations_are_read_by_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_follows_the_pace_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    cells = plan(experiment_from_dict({"epochs": 10, "short_budgets": [0.25]}))
    assert [epochs_run(cell) for cell in cells] == [10, 3, 10]
    text = io.StringIO()
    told = ConsoleProgress(Console(file=text, width=200))
    told.cell_started(cells[0], 1, 3, cells[1:])
    now[0] += 4
    told.epoch(row(7))  # gone on with after an interruption: 2 epochs and the cells of 3 and 10 epochs are left
    now[0] += 1000
    told.cell_started(cells[1], 2, 3, cells[2:])  # what lies between two cells is no training
    now[0] += 8
    told.epoch(row(0))  # 12 s for 2 epochs: 2 and 10 left
    lefts = re.findall(r"epoch (\d+) of (\d+): .* about (.*) left", text.getvalue())
    assert lefts == [("8", "10", "1 min 00 s"), ("1", "3", "1 min 12 s")]
