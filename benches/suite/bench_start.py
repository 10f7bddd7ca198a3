"""What a user waits for: the import, the help, and the report over many records."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from . import common
from .places import cells, default_recipe, experiment_from_dict, write_report, write_sealed


class Start:
    """Seconds of a whole process."""

    params = (["import ldbench", "from ldbench import LayerDropper", "--help"],)
    param_names = ("what",)
    unit = "seconds"
    version = "1"
    timeout = 300

    def track_seconds(self, what: str) -> dict[str, object]:
        shown = "import sys; sys.argv = ['ldbench', '--help']; from ldbench.cli import main; main()"
        code = shown if what == "--help" else what
        return common.samples(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True), 2)


class Report:
    """Seconds to read and report a folder of records."""

    params = ([1000, 10_000],)
    param_names = ("records",)
    version = "1"
    timeout = 600
    number = repeat = 1

    def setup(self, records: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        table = {
            "model": ["resnet18", "vgg11_bn"],
            "method": ["full", "short", "learn-and-drop"],
            "short_budgets": [0.5],
        }
        table |= {"seeds": list(range(records // 6))}
        for cell in cells(experiment_from_dict(table), default_recipe):
            folder = Path(self.folder.name) / "cells" / cell.cell_id
            folder.mkdir(parents=True)
            write_sealed(folder / "config.json", dataclasses.asdict(cell))
            result = {
                "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset,
                "method": cell.method, "budget": cell.budget, "seed": cell.seed, "status": "finished", "steps": 100,
                "test_accuracy": 0.9 + 0.001 * (cell.seed % 7), "train_seconds": 10.0 + cell.seed % 3, "stages": [],
                "forward_flops": 10**12, "backward_flops": 2 * 10**12, "forward_flops_full": 10**12,
                "backward_flops_full": 2 * 10**12, "dropped_stages": 0, "drops": [], "declined": [], "environment": {},
                "train_size": 100, "batch_size": 10, "epochs": 10, "at_chance": False, "synthetic": False,
            }  # fmt: skip
            write_sealed(folder / "result.json", result)

    def teardown(self, records: int) -> None:
        self.folder.cleanup()

    def time_report(self, records: int) -> None:
        write_report(Path(self.folder.name))
