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


def lefts(text: io.StringIO) -> list[tuple[str, ...]]:
    return re.findall(r"epoch (\d+) of (\d+): .* about (.*) left", text.getvalue())


def test_the_time_left_follows_the_pace_of_each_method_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    cells = plan(experiment_from_dict({"epochs": 10, "short_budgets": [0.25]}))
    [other] = plan(experiment_from_dict({"epochs": 10, "method": "full", "model": "vgg11_bn"}))
    assert [epochs_run(cell) for cell in cells] == [10, 3, 10]
    text = io.StringIO()
    told = ConsoleProgress(Console(file=text, width=200))
    told.cell_started(cells[0], 1, 4, [*cells[1:], other])
    now[0] += 4
    told.epoch(row(7))  # gone on with after an interruption: 2 epochs and the cells of 3, 10 and 10 epochs are left
    now[0] += 1000
    told.cell_started(cells[1], 2, 4, [cells[2], other])  # what lies between two cells is no training
    now[0] += 8
    told.epoch(row(0))  # 2 of these at 8 s, and 10 of each of two that were never seen, at the 6 s of all epochs
    now[0] += 2
    told.epoch(row(1))  # 1 at 5 s; of all three epochs an epoch took 14 / 3 s
    told.cell_started(other, 3, 4, [cells[2]])
    now[0] += 1
    told.epoch(row(0))  # 9 at 1 s, and 10 at what the first network took
    assert lefts(text) == [
        ("8", "10", "1 min 40 s"), ("1", "3", "2 min 16 s"), ("2", "3", "1 min 38 s"), ("1", "10", "56 s"),
    ]  # fmt: skip


def test_what_other_processes_take_over_shortens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    cells = plan(experiment_from_dict({"epochs": 10, "method": "full", "seeds": list(range(9))}))
    text = io.StringIO()
    told = ConsoleProgress(Console(file=text, width=200))
    for own, later in ((0, 8), (2, 6), (4, 4)):  # the cells between them are another's
        told.cell_started(cells[own], own + 1, 9, cells[9 - later :])
        for epoch in range(10):
            now[0] += 1
            told.epoch(row(epoch))
    ends = [left for epoch, _, left in lefts(text) if epoch == "10"]
    assert ends == ["1 min 20 s", "30 s", "20 s"]  # 80 s alone, then two cells gone for one of its own
