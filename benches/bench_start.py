"""What a user waits for: the import, the help, and the report over many records."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from ldbench.experiment.grid import cells
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import write_sealed
from ldbench.models.recipes import default_recipe
from ldbench.reporting.report import write_report

from . import common


class Start:
    """Seconds of a whole process."""

    params = (["import ldbench", "from ldbench import LayerDropper", "--help"],)
    param_names = ("what",)
    version = "1"
    timeout = 300

    def track_seconds(self, what: str) -> dict[str, object]:
        code = (
            "import sys; sys.argv = ['ldbench', '--help']; from ldbench.cli import main; main()"
            if what == "--help"
            else what
        )
        return common.samples(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True), 2)

    track_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_seconds.version = "1"  # type: ignore[attr-defined]


class Report:
    """Seconds to read and report a folder of records."""

    params = ([1000, 10_000],)
    param_names = ("records",)
    version = "1"
    timeout = 600

    def setup(self, records: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        methods = ["full", "short", "learn-and-drop"]
        table = {
            "model": ["resnet18", "vgg11_bn"],
            "method": methods,
            "short_budgets": [0.5],
            "seeds": list(range(records // 6)),
        }
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

    time_report.version = "1"  # type: ignore[attr-defined]
    time_report.number = 1  # type: ignore[attr-defined]
    time_report.repeat = 1  # type: ignore[attr-defined]
