"""Trainings with and without dropping, seed by seed until the time is up, and what the whole groups among them say.

    python -m benches.lab_trainings --data-root DATA --folder FOLDER [--out FILE.json] [--seconds 180] [--device cuda:0]

Two networks at full width on 10,000 images of five classes of Fashion-MNIST, from scratch and from weights made on the
other five, bfloat16, channels last, evaluated at the end alone: every method of seed 0 first, then of seed 1, and so
on. One process trains them all, so that torch starts once, and one cost table per network serves all. When the time is
up the training that runs is broken off; FOLDER is an ordinary results folder, and the same line goes on. A model,
scenario and seed of which a method is missing says nothing: it is left out of the findings.

Exit code 3: there are seeds left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.records.results import load_results
from ldbench.reporting.comparisons import records_of
from ldbench.reporting.summary import summarize
from ldbench.runner.plan import plan
from ldbench.runner.run_grid import run_experiment
from ldbench.training.interrupts import Interrupted

from .lab_results import Results, device_of, options, surroundings

GRID: dict[str, Any] = {
    "model": ["vgg11_bn", "resnet18"], "dataset": ["fashion-mnist[5-9]"], "scenario": ["scratch", "fine-tune"],
    "method": ["full", "short", "paced", "autofreeze+store"], "short_budgets": [0.25, 0.5],
    "pretrain_dataset": "fashion-mnist[0-4]", "eval_every": "last", "checkpoint_minutes": 60.0,
}  # fmt: skip
GPU = {
    "epochs": 16, "pretrain_epochs": 8, "train_size": 10_000, "pretrain_size": 10_000, "precision": "bf16",
    "channels_last": True, "cache_dtype": "bf16",
}  # fmt: skip
CPU = {
    "epochs": 2, "pretrain_epochs": 1, "train_size": 320, "pretrain_size": 320, "test_size": 250, "width": 0.125,
    "batch_size": 32,
}  # fmt: skip
ENDING = 7.0  # seconds kept back for breaking off, reading the records and writing the findings
# What the tables are made of, and what tells how far to believe them.
ESTIMATES = (
    "test_accuracy_percent", "train_seconds", "train_time_ratio", "energy_joules", "energy_ratio",
    "difference_to_full_points", "difference_at_equal_flops_points", "difference_at_equal_time_points",
    "forward_flops_reduction_percent", "total_flops_reduction_percent", "realised_over_predicted",
)  # fmt: skip
PLAIN = (
    "model", "dataset", "scenario", "method", "budget", "label", "runs", "failed", "diverged", "at_chance", "warnings",
    "verdict", "energy_bound_joules_max", "energy_unavailable_reason", "peak_memory_bytes_max", "store_bytes_max",
    "store_tier", "cache_build_seconds_mean", "scoring_seconds_mean", "eval_seconds_mean", "dropped_stages_mean",
    "stage_count_max", "frontier_state",
)  # fmt: skip
OF_A_RUN = (
    "model", "scenario", "method", "budget", "seed", "status", "test_accuracy", "train_seconds", "energy_joules",
    "energy_bound_joules", "energy_unavailable_reason", "dropped_stages", "store_bytes", "steps", "pretrain_seconds",
)  # fmt: skip


class Told:
    """Progress as lines in the log."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """A line worth keeping."""
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)

    def cell_started(self, cell: Cell, number: int, total: int, later: Sequence[Cell], trying: str = "") -> None:
        """A training begins."""
        self.note(f"{number} of {total}: {cell.cell_id}")

    def epoch(self, row: dict[str, Any]) -> None:
        """Epochs are many and short."""

    def cell_ended(self, result: dict[str, Any]) -> None:
        """A training is over."""
        seconds, accuracy = result.get("train_seconds") or 0, result.get("test_accuracy")
        self.note(f"  {result['status']}, {seconds:.1f} s, accuracy {accuracy}")


@contextlib.contextmanager
def alarm(seconds: float) -> Any:
    """Interrupt this process, as Ctrl-C would, when the time is up."""
    timer = threading.Timer(max(seconds, 0.1), os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def whole_groups(cells: pd.DataFrame, planned: Sequence[Cell]) -> tuple[pd.DataFrame, list[str]]:
    """The runs of models, scenarios and seeds of which every method is there, and which of these were cut short."""
    wanted: dict[tuple[Any, ...], set[str]] = {}
    for cell in planned:
        wanted.setdefault((cell.model, cell.scenario, cell.seed), set()).add(cell.cell_id)
    keep = pd.Series(False, index=cells.index)
    incomplete = []
    for (model, scenario, seed), names in wanted.items():
        here = cells["cell"].isin(names)
        if set(cells.loc[here & cells["status"].isin(["finished", "diverged"]), "cell"]) == names:
            keep |= here
        elif here.any():
            incomplete.append(f"{model}, {scenario}, seed {seed}")
    return cells[keep].reset_index(drop=True), incomplete


def findings(folder: Path, planned: Sequence[Cell]) -> dict[str, Any]:
    """Rows of the summary and of the runs it is made of."""
    cells = load_results(folder)
    whole, incomplete = whole_groups(cells, planned)
    failures = cells.loc[cells["status"] == "failed", ["cell", "error"]].to_dict("records")
    return {"runs_in_all": len(cells), "groups_cut_short": incomplete, "failures": failures} | told_of(whole)


def told_of(whole: pd.DataFrame) -> dict[str, Any]:
    """Rows of the summary over these runs, the runs, and their seeds."""
    if whole.empty:
        return {"rows": [], "runs": [], "seeds": []}
    ends = ("mean", "low", "high", "n", "reason")
    columns = [*PLAIN, *(f"{name}_{end}" for name in ESTIMATES for end in ends)]
    return {
        "rows": [{name: row[name] for name in columns if name in row} for row in records_of(summarize(whole))],
        "runs": [{name: row[name] for name in OF_A_RUN if name in row} for row in records_of(whole)],
        "seeds": sorted({int(seed) for seed in whole["seed"]}),
    }


def remove_cut_short(folder: Path, planned: Sequence[Cell]) -> None:
    """Begin those groups anew that an earlier call left incomplete.

    Its machine is another one, and its weights to begin with are gone.
    """
    if not (folder / "cells").is_dir():
        return
    whole, _ = whole_groups(load_results(folder), planned)
    for name in {cell.cell_id for cell in planned} - set(whole["cell"]):
        shutil.rmtree(folder / "cells" / name, ignore_errors=True)


def main() -> int:
    """Train until the time is up."""
    parser = options(__doc__)
    parser.add_argument("--data-root")
    parser.add_argument("--folder", type=Path, required=True, help="results folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="16 on a GPU: full training must last longer than 5 s for a meter")
    chosen = parser.parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    sizes = GPU if device.type == "cuda" else CPU
    values = GRID | sizes | {"seeds": chosen.seeds, "device": str(device), "data_root": chosen.data_root}
    values |= {"epochs": chosen.epochs} if chosen.epochs else {}
    experiment: Experiment = experiment_from_dict({k: v for k, v in values.items() if v is not None})
    planned = plan(experiment)
    results.put("environment", surroundings(device))
    results.put("experiment", {k: v for k, v in experiment.to_dict().items() if k != "data_root"})
    remove_cut_short(chosen.folder, planned)
    left = failed = True
    try:
        with alarm(results.left - ENDING):
            outcome = run_experiment(experiment, chosen.folder, Told())
        left, failed = False, bool(outcome.failed)
    except (Interrupted, KeyboardInterrupt) as reason:
        failed = False
        results.put("broken_off", str(reason))
    finally:
        if (chosen.folder / "cells").is_dir():
            for name, value in findings(chosen.folder, planned).items():
                results.put(name, value)
    told = ("runs_in_all", "groups_cut_short", "seeds", "failures")
    print(json.dumps({name: results.found.get(name) for name in told}))
    return 1 if failed or results.found.get("failures") else 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
