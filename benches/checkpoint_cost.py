"""What checkpoints cost: seconds to write one, as a share of training at the default interval.

    python -m benches.checkpoint_cost --model resnet18 --width 1.0

A checkpoint holds weights, momentum and the scores' snapshots of the live stages. The share is the time of one write
over the default interval; ``Checkpointer`` stretches the interval where it would pass 1 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldbench.devices import resolve_device
from ldbench.experiment.validation import experiment_from_dict
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.training.checkpointing import CHECKPOINT, DEFAULT_MINUTES, MOST_SHARE, Checkpointer
from ldbench.training.interrupts import Interrupted
from ldbench.training.loop import run_cell


class Measured(Checkpointer):
    """Writes one checkpoint ``rounds`` times in the middle of training, then stops it."""

    def __init__(self, folder: Path, after: int, rounds: int) -> None:
        super().__init__(folder)
        self.steps_left, self.rounds, self.seconds = after, rounds, list[float]()

    def due(self) -> bool:
        """After the step by which the scores have their snapshots."""
        self.steps_left -= 1
        return self.steps_left == 0

    def save(self, state: Callable[[], dict[str, Any]], step: int, lost_seconds: float = 0.0) -> None:
        """Measure; the checkpoint that the stopped training asks for is not written."""
        if self.seconds:
            return
        for _ in range(self.rounds):
            before = self.checkpoint_seconds
            super().save(state, step, lost_seconds)
            self.seconds.append(self.checkpoint_seconds - before)
        raise Interrupted(15)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    table = {
        "model": options.model, "width": options.width, "dataset": "digits", "train_size": 160, "test_size": 20,
        "batch_size": 16, "epochs": 4, "check_every": 1, "method": "learn-and-drop", "device": options.device,
    }  # fmt: skip
    experiment = experiment_from_dict(table)
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparation, [cell] = Preparation(experiment, folder, device), plan(experiment)
        measured = Measured(folder, after=8, rounds=options.rounds)
        data, costs = preparation.data(cell), preparation.costs(cell)
        with contextlib.suppress(Interrupted):
            run_cell(cell, data, costs, folder, device=device, checkpointer=measured)
        size = (folder / CHECKPOINT).stat().st_size
    seconds = statistics.median(measured.seconds)
    interval = max(60 * DEFAULT_MINUTES, seconds / MOST_SHARE)
    result = {
        "model": options.model, "width": options.width, "device": str(device), "torch": torch.__version__,
        "checkpoint_bytes": size, "seconds_median": seconds, "seconds_worst": max(measured.seconds),
        "interval_seconds": interval, "share": seconds / interval, "share_most": MOST_SHARE,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
