"""Faults of files, memory and clocks, the real thing where it can be had: no work is lost, and one line says what
happened.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support.interruptions import Bench, StopAfter, lasting
from torch import nn

from ldbench.cli.progress import ConsoleProgress
from ldbench.data.batch_source import TensorSource
from ldbench.data.stream import Stream
from ldbench.errors import UserError
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed
from ldbench.io.tensors import read_checkpoint, write_checkpoint
from ldbench.runner.run_grid import run_experiment
from ldbench.store.activation_store import ActivationStore
from ldbench.store.activations import Activations
from ldbench.store.fill import NoRoom
from ldbench.training.checkpointing import CHECKPOINT, Checkpointer
from ldbench.training.interrupts import Interrupted

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@contextlib.contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    """A real limit of the operating system on this process."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


# --- disk full -------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    write_checkpoint(path, {"step": 1, "weights": torch.ones(10)})
    with limited(resource.RLIMIT_FSIZE, 20_000), pytest.raises(OSError, match="too large"):
        write_checkpoint(path, {"step": 2, "weights": torch.ones(10_000)})
    assert read_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_training_goes_on_where_checkpoints_and_stores_find_no_room(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("schedule", cache_budget="0,0,100MB")
    with limited(resource.RLIMIT_FSIZE, 4096):
        run = bench.run(cell, tmp_path, Checkpointer(tmp_path, minutes=0))
    said = " ".join(entry["what"] for entry in run.result["incidents"])
    assert "checkpoint not written" in said
    assert "no room for a store" in said
    assert run.result["drops"] == []
    assert "no room" in run.result["declined"][0]["reason"]
    assert not list(tmp_path.glob(".*.part"))
    full = bench.run(bench.cell("full"), tmp_path / "full")
    assert lasting(run)["weights"] == lasting(full)["weights"]  # the drop that fell through left no trace


def test_a_disk_too_full_for_the_result_ends_in_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    options = [
        "--model",
        "support.tiny_nets:net",
        "--dataset",
        "digits",
        "--image-size",
        "8",
        "--train-size",
        "60",
        "--test-size",
    ]
    options += [
        "20",
        "--epochs",
        "1",
        "--batch-size",
        "20",
        "--method",
        "full",
        "--quiet",
        "--out",
        str(tmp_path / "r"),
    ]
    code = "import resource, sys\nfrom ldbench.cli import main\nlimit = int(sys.argv.pop(1))\n"
    code += "if limit:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\nmain()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}

    def ldbench(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(limit), "run", *options]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)

    full = ldbench(3000)
    assert full.returncode == 2, full.stderr
    assert full.stderr.count("\n") == 1
    assert "File too large" in full.stderr
    assert not list(tmp_path.glob("r/cells/*/result.json"))
    assert not list(tmp_path.glob("r/**/.*.part"))
    table = {
        "model": "support.tiny_nets:net", "dataset": "digits", "image_size": 8, "train_size": 60, "test_size": 20,
        "epochs": 1,
        "batch_size": 20, "method": "full",
    }  # fmt: skip
    run_experiment(experiment_from_dict(table), tmp_path / "r", ConsoleProgress(Console(), quiet=True))
    assert len(list(tmp_path.glob("r/cells/*/result.json"))) == 1


# --- folders that cannot be written ----------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root may write anywhere: be somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        with nobody(), pytest.raises(UserError, match=r"cannot be written.*Permission denied.*another --out"):
            run_experiment(experiment_from_dict({"method": "full"}), folder, ConsoleProgress(Console(), quiet=True))
        folder.chmod(0o755)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_device_out_of_memory_passes_the_store_to_the_next_tier_and_says_so(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = bench.cell("schedule")
    whole = bench.run(cell, tmp_path / "plain")
    allocate = ActivationStore._allocate

    def exhausted(self: ActivationStore, stride: int, folder: Path | None) -> torch.Tensor:
        if self.tier == "device":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return allocate(self, stride, folder)

    monkeypatch.setattr(ActivationStore, "_allocate", exhausted)
    run = bench.run(cell, tmp_path / "hit")
    assert [drop["store_tier"] for drop in run.result["drops"]] == ["disk", "disk"]
    assert "went to tier disk" in run.result["incidents"][0]["what"]
    assert lasting(run)["weights"] == lasting(whole)["weights"]


def test_memory_that_runs_out_halfway_through_a_store_passes_it_on_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = bench.cell("schedule")
    whole = bench.run(cell, tmp_path / "plain")
    write = ActivationStore.write

    def exhausted(self: ActivationStore, indices: torch.Tensor, activations: torch.Tensor) -> None:
        if self.tier == "device" and int(indices[0]) > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        write(self, indices, activations)

    monkeypatch.setattr(ActivationStore, "write", exhausted)
    run = bench.run(cell, tmp_path / "hit")
    assert [drop["store_tier"] for drop in run.result["drops"]] == ["disk", "disk"]
    assert lasting(run)["weights"] == lasting(whole)["weights"]


def test_a_host_without_memory_or_disk_for_a_store_says_there_is_no_room(tmp_path: Path) -> None:
    stages = nn.Sequential(nn.Flatten(), nn.Linear(1, 200_000, bias=False), nn.Identity())
    feed = TensorSource(torch.ones(20_000, 1), torch.zeros(20_000), CPU)  # a store of 16 GB
    activations = Activations(
        stages,
        feed,
        Stream.whole(20_000),
        batch_size=10,
        dtype="fp32",
        device=CPU,
        folder=tmp_path,
        channels_last=False,
        autocast=contextlib.nullcontext,
        identity=None,
    )
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, held + 2**28), limited(resource.RLIMIT_FSIZE, 2**20), pytest.raises(NoRoom):
        activations.fill(2, "device")
    assert list(tmp_path.iterdir()) == []


# --- data, numbers, clocks -------------------------------------------------------------------------------------------


def test_data_that_changed_between_runs_is_refused_before_anything_is_mixed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(15):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i:02}.png")
    table = {
        "model": "support.tiny_nets:net", "dataset": f"folder:{tmp_path / 'images'}", "method": "full", "epochs": 1,
        "batch_size": 8, "seeds": 1,
    }  # fmt: skip
    quiet = ConsoleProgress(Console(), quiet=True)
    assert run_experiment(experiment_from_dict(table), tmp_path / "r", quiet).finished == 1
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a" / "03.png")
    with pytest.raises(UserError, match="its files have changed since"):
        run_experiment(experiment_from_dict(table | {"seeds": 2}), tmp_path / "r", quiet)
    assert len(list(tmp_path.glob("r/cells/*/result.json"))) == 1


def test_a_loss_that_is_no_number_ends_the_same_way_after_an_interruption(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("full", lr=1e30, check_every=8, warmup_fraction=0.0, schedule="constant")
    plain = bench.run(cell, tmp_path / "plain")
    assert plain.result["status"] == "diverged"
    resumed, stopped = bench.interrupted(cell, tmp_path / "hit", 3, 1)
    assert stopped == 2
    assert (resumed.result["status"], resumed.result["error"]) == ("diverged", plain.result["error"])
    assert resumed.result["steps"] == plain.result["steps"]


def test_a_clock_that_jumps_leaves_every_duration_sane(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    began = time.perf_counter()
    with pytest.raises(Interrupted):
        bench.run(bench.cell("schedule"), tmp_path, Checkpointer(tmp_path, StopAfter(20)))
    result = bench.run(bench.cell("schedule"), tmp_path, Checkpointer(tmp_path)).result
    spent = time.perf_counter() - began
    durations = [value for key, value in result.items() if key.endswith("_seconds") and isinstance(value, float)]
    durations = [
        value for value in durations if value not in (result["predicted_saved_seconds"], result["data_seconds"])
    ]
    assert all(0 <= value < spent + bench.costs.seconds_to_measure for value in durations)


def test_a_newer_record_is_named_set_aside_and_its_cell_run_again(tmp_path: Path) -> None:
    table = {
        "model": "support.tiny_nets:net",
        "image_size": 8,
        "train_size": 40,
        "test_size": 20,
        "epochs": 1,
        "batch_size": 20,
    }
    experiment = experiment_from_dict(table | {"method": "full"})
    said: list[str] = []

    class Listening(ConsoleProgress):
        def note(self, text: str) -> None:
            said.append(text)

    run_experiment(experiment, tmp_path, Listening(Console(), quiet=True))
    [path] = tmp_path.glob("cells/*/result.json")
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    outcome = run_experiment(experiment, tmp_path, Listening(Console(), quiet=True))
    assert (outcome.finished, outcome.skipped) == (1, 0)
    assert any("newer ldbench" in line and "result.json.damaged-1" in line for line in said)
    assert read_sealed(path)["status"] == "finished"
    assert run_experiment(experiment, tmp_path, Listening(Console(), quiet=True)).skipped == 1
