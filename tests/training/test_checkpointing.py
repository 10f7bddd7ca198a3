"""Resuming: a run that was interrupted anywhere ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.interruptions import ONLINE, Bench, StopAfter, lasting

from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed, write_sealed
from ldbench.io.tensors import read_checkpoint, write_checkpoint
from ldbench.records.cell_files import VOLATILE_FIELDS
from ldbench.records.integrity import verify
from ldbench.runner.run_grid import run_experiment
from ldbench.store.activations import Activations
from ldbench.training.checkpointing import CHECKPOINT, Checkpointer
from ldbench.training.interrupts import Interrupted, StopRequest


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


METHODS = ["full", "short", "learn-and-drop", "freeze", "freezeout", "schedule"]


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_before_between_and_after_drops_a_run_ends_with_the_same_bits(
    method: str, bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell(method)
    plain = bench.run(cell, tmp_path / "plain")
    whole = lasting(plain)
    wanted = {"full": 0, "short": 0, "learn-and-drop": 1}.get(method, 2)
    assert len(plain.result["drops"]) >= wanted
    counter = StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Checkpointer(tmp_path / "counted", counter))
    points = 10**9 - counter.left  # steps, minibatches of stores and evaluations, and the end of training
    assert points > plain.result["steps"]
    for first in range(1, points, 4):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == whole
        assert resumed.result["resumes"] == 1
        assert sum(kind["steps"] for kind in resumed.result["step_seconds"]) == resumed.result["steps"]


def test_a_run_stopped_after_every_few_steps_ends_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell(
        "schedule",
        refresh_statistics=True,
        cache_budget="0,0,100MB",
        optimizer="adamw",
        augment="flip+crop",
        val_size=20,
    )
    whole = lasting(bench.run(cell, tmp_path / "plain"))
    resumed, stopped = bench.interrupted(cell, tmp_path / "often", *[9] * 30)
    assert stopped >= 5
    assert lasting(resumed) == whole


@pytest.mark.parametrize(
    "options", [{"channels_last": True, "cache_dtype": "fp16"}, {"precision": "bf16", "cache_dtype": "int8"}]
)
def test_other_layouts_and_stores_resume_to_the_same_bits(
    options: dict[str, object], bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell("learn-and-drop", refresh_statistics=True, cache_budget="0,0,100MB", **options)
    plain = bench.run(cell, tmp_path / "plain")
    assert plain.result["drops"]
    resumed, stopped = bench.interrupted(cell, tmp_path / "resumed", *[12] * 10)
    assert stopped >= 3
    assert lasting(resumed) == lasting(plain)


@pytest.mark.parametrize("options", [{}, {"refresh_views": 0.3}, {"refresh_views": 1.0, "cache_budget": "0,0,100MB"}])
def test_several_views_resume_to_the_same_bits(options: dict[str, object], bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("schedule", augment="flip+crop", cache_views=3, **options)
    plain = bench.run(cell, tmp_path / "plain")
    assert len(plain.result["drops"]) == 2
    counter = StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Checkpointer(tmp_path / "counted", counter))
    points = 10**9 - counter.left
    for first in range(1, points, 7):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == lasting(plain)
    resumed, stopped = bench.interrupted(cell, tmp_path / "often", *[9] * 30)
    assert stopped >= 5
    assert lasting(resumed) == lasting(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_views": 2},
        {"cache_views": 3, "refresh_views": 0.4, "cache_budget": "0,0,100MB"},
        {
            "cache_views": 2,
            "refresh_views": 0.1,
            "cache_dtype": "int8",
            "change_features": ["mirror=0.5", "cutout=0.1"],
        },
    ],
)
def test_views_of_what_arrives_resume_to_the_same_bits(options: dict[str, Any], bench: Bench, tmp_path: Path) -> None:
    online = bench.online()
    cell = online.cell("schedule", augment="flip+crop", **ONLINE, **options)
    plain = online.run(cell, tmp_path / "plain")
    assert len(plain.result["drops"]) == 2
    for first in (9, 21, 33, 50, 64):
        resumed, stopped = online.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == lasting(plain)
    often, stopped = online.interrupted(cell, tmp_path / "often", *range(7, 60, 5))
    assert stopped >= 2
    assert lasting(often) == lasting(plain)


def test_trying_a_compiled_network_makes_no_view_anew(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, *_, **__: function)
    cell = bench.cell("schedule", augment="flip+crop", cache_views=3, refresh_views=0.3, compile=True)
    plain = bench.run(cell, tmp_path / "plain")
    for first in (15, 25, 36):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == lasting(plain)


def test_the_time_of_making_views_anew_is_building_time_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = Activations.renew

    def slowly(self: Activations, epoch: int) -> int:
        passed = renew(self, epoch)
        time.sleep(0.3 if passed else 0)
        return passed

    monkeypatch.setattr(Activations, "renew", slowly)
    result = bench.run(bench.cell("schedule", augment="flip+crop", cache_views=2, refresh_views=0.2), tmp_path).result
    assert result["cache_build_seconds"] > 0.6
    assert result["typical_train_seconds"] < result["train_seconds"] + 0.25
    steps = sum(kind["counted_seconds"] for kind in result["step_seconds"])
    assert result["typical_train_seconds"] == pytest.approx(steps + result["cache_build_seconds"])


# --- the store -------------------------------------------------------------------------------------------------------


def interrupted_with_a_store(bench: Bench, folder: Path) -> Path:
    """Stop a cell while it trains from a memory-mapped store; returns the store's file."""
    cell = bench.cell("schedule", refresh_statistics=True, cache_budget="0,0,100MB")
    folder.mkdir()
    with pytest.raises(Interrupted):
        bench.run(cell, folder, Checkpointer(folder, StopAfter(36)))
    assert read_checkpoint(folder / CHECKPOINT)["run"]["dropper"]["account"]["drops"]
    [file] = folder.glob("store-*.bin")
    return file


def finish(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, object]]:
    """Go on with that cell; returns how many stores were filled on the way, and what it came to."""
    from ldbench.store import activations

    fill, fills = activations.fill_store, []

    def counted(*arguments: object) -> object:
        fills.append(1)
        return fill(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(activations, "fill_store", counted)
    checkpointer = Checkpointer(folder)
    run = bench.run(bench.cell("schedule", refresh_statistics=True, cache_budget="0,0,100MB"), folder, checkpointer)
    checkpointer.clear()
    return len(fills), lasting(run)


def test_a_kept_store_is_taken_up_again_only_when_every_byte_of_it_is_right(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lasting(bench.run(bench.cell("schedule", refresh_statistics=True, cache_budget="0,0,100MB"), tmp_path))
    interrupted_with_a_store(bench, tmp_path / "intact")
    drops_left = finish(bench, tmp_path / "intact", monkeypatch)
    assert drops_left[1] == whole

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    damages = {
        "flipped": flip, "truncated": lambda file: file.write_bytes(file.read_bytes()[:1000]),
        "gone": Path.unlink, "other prefix": lambda file: relabel(file.with_suffix(".json")),
    }  # fmt: skip
    for name, damage in damages.items():
        damage(interrupted_with_a_store(bench, tmp_path / name))
        fills, end = finish(bench, tmp_path / name, monkeypatch)
        assert fills > drops_left[0], name
        assert end == whole, name
        assert not list((tmp_path / name).glob("store-*")), name


def relabel(card: Path) -> None:
    told = read_sealed(card)
    write_sealed(card, told | {"fingerprint": "0" * 64})


def test_a_store_truncated_while_it_is_read_is_rebuilt(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("schedule", refresh_statistics=True, cache_budget="0,0,100MB")
    whole = lasting(bench.run(cell, tmp_path / "plain"))

    class Truncating(StopRequest):
        """Cuts the files of the first two stores short, one while it is filled and one while it is read."""

        waits: ClassVar[list[int]] = [2, 9]

        def check(self) -> None:
            for file in tmp_path.glob("hit/store-*.bin") if self.waits else ():
                self.waits[0] -= 1
                if self.waits[0] == 0:
                    os.truncate(file, 100)
                    del self.waits[0]

    (tmp_path / "hit").mkdir()
    hit = bench.run(cell, tmp_path / "hit", Checkpointer(tmp_path / "hit", Truncating()))
    assert lasting(hit) == whole
    assert not Truncating.waits
    assert any("truncated" in entry["what"] for entry in hit.result["incidents"])


# --- what does not fit is not gone on with ---------------------------------------------------------------------------


def test_a_checkpoint_that_is_damaged_or_of_other_data_is_set_aside_and_the_cell_starts_anew(
    bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell("full")
    whole = lasting(bench.run(cell, tmp_path / "plain"))

    def edit(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    def of_other_data(path: Path) -> None:
        saved = read_checkpoint(path)
        saved["run"]["identity"]["data_fingerprint"] = "0" * 64
        write_checkpoint(path, saved)

    def of_another_net(path: Path) -> None:
        saved = read_checkpoint(path)
        saved["run"]["model"].popitem()
        write_checkpoint(path, saved)

    for damage, reason in (
        (edit, "checksum"),
        (of_other_data, "data set has changed"),
        (of_another_net, "another network"),
    ):
        folder = tmp_path / damage.__name__
        folder.mkdir()
        with pytest.raises(Interrupted):
            bench.run(cell, folder, Checkpointer(folder, StopAfter(11)))
        damage(folder / CHECKPOINT)
        run = bench.run(cell, folder, Checkpointer(folder))
        assert lasting(run) == whole
        assert reason in run.result["incidents"][0]["what"]
        assert (folder / f"{CHECKPOINT}.damaged-1").exists()


def test_another_thread_count_is_said_and_the_run_goes_on(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("full")
    with pytest.raises(Interrupted):
        bench.run(cell, tmp_path, Checkpointer(tmp_path, StopAfter(11)))
    saved = read_checkpoint(tmp_path / CHECKPOINT)
    saved["environment"]["threads"] = 96
    write_checkpoint(tmp_path / CHECKPOINT, saved)
    said: list[str] = []
    run = bench.run(cell, tmp_path, Checkpointer(tmp_path, note=said.append))
    assert run.result["status"] == "finished"
    assert any("threads 96 -> " in line for line in said)
    assert any("threads 96 -> " in entry["what"] for entry in run.result["incidents"])


def test_lost_work_is_counted_apart(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("full")

    class Killed(Checkpointer):
        """Dies two seconds after its last checkpoint, as far as its heartbeat tells."""

        def save(self, state: Callable[[], dict[str, Any]], step: int, lost_seconds: float = 0.0) -> None:
            super().save(state, step, lost_seconds)
            self._saved -= 2.0
            self._flops -= 1000
            self.beat()

    plain = bench.run(cell, tmp_path)
    with pytest.raises(Interrupted):
        bench.run(cell, tmp_path, Killed(tmp_path, StopAfter(11)))
    run = bench.run(cell, tmp_path, Checkpointer(tmp_path))
    assert 2.0 <= run.result["lost_seconds"] < 4.0
    assert run.result["lost_flops"] == 1000
    assert run.result["forward_flops"] == plain.result["forward_flops"]
    assert plain.result["lost_seconds"] == 0


# --- real processes --------------------------------------------------------------------------------------------------

TABLE = {
    "model": "support.tiny_nets:net", "dataset": "digits", "image_size": 8, "train_size": 400, "test_size": 60,
    "epochs": 20,
    "batch_size": 20, "method": ["full", "schedule"], "policy": {"schedule": {"drops": [[0.3, 0.3], [0.6, 0.6]]}},
    "cache_budget": "0,0,100MB", "save_model": "final", "eval_every": 10, "checkpoint_minutes": 0.001,
}  # fmt: skip


def start(experiment: Path, out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "from ldbench.cli import main; main()",
        "run",
        str(experiment),
        "--out",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def newer_checkpoint(out: Path, since: float) -> bool:
    return any(path.stat().st_mtime > since for path in out.glob(f"cells/*/{CHECKPOINT}"))


def lasting_record(path: Path) -> dict[str, object]:
    return {k: v for k, v in read_sealed(path).items() if k not in (*VOLATILE_FIELDS, "drops", "declined", "stages")}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_real_signals_end_a_run_in_time_and_the_same_command_ends_with_the_same_bits(tmp_path: Path) -> None:
    quiet = ConsoleProgress(Console(), quiet=True)
    table = TABLE | {"threads": torch.get_num_threads()}
    run_experiment(experiment_from_dict(table), tmp_path / "plain", quiet)
    out, experiment = tmp_path / "hit", tmp_path / "experiment.json"
    table |= {"cost_table": str(tmp_path / "plain" / "costs")}
    experiment.write_text(json.dumps(table))
    for number, code, line in (
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, 143, "the same command goes on"),
        (signal.SIGINT, 130, "saving a checkpoint"),
    ):
        process = start(experiment, out)
        wait_for(partial(newer_checkpoint, out, time.time()))
        process.send_signal(number)
        began = time.monotonic()
        said = process.communicate(timeout=20)[1]
        assert time.monotonic() - began < 10
        assert process.returncode == code, said
        assert line in said
        assert "Traceback" not in said
    run_experiment(experiment_from_dict(table), out, quiet)
    for folder in sorted((out / "cells").iterdir()):
        plain = tmp_path / "plain" / "cells" / folder.name
        assert lasting_record(folder / "result.json") == lasting_record(plain / "result.json")
        assert weights(folder) == weights(plain)
        assert not list(folder.glob("store-*"))
        assert not (folder / CHECKPOINT).exists()
    records = [read_sealed(path) for path in out.glob("cells/*/result.json")]
    assert sum(record["resumes"] for record in records) == 3
    assert list(verify(out)) == []


WAITER = """
import time
from ldbench.training.interrupts import StopRequest
stop = StopRequest()
with stop.listening(), stop.deferred():
    print("ready", flush=True)
    time.sleep(60)
    stop.check()
"""


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_the_process_in_the_middle_of_a_step(first: int, second: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(first)
    assert process.stderr.readline() == b"\n"
    assert b"ending this step and saving a checkpoint; once more to stop at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(second)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 128 + second
    assert b"stopped at once; the last checkpoint is kept" in said
    assert b"Traceback" not in said


def test_two_training_processes_share_a_grid_and_its_records_are_those_of_one(tmp_path: Path) -> None:
    table = TABLE | {"threads": 1, "epochs": 6, "seeds": [0, 1], "method": ["full", "learn-and-drop", "freeze"]}
    run_experiment(experiment_from_dict(table), tmp_path / "one", ConsoleProgress(Console(), quiet=True))
    out, experiment = tmp_path / "two", tmp_path / "experiment.json"
    experiment.write_text(json.dumps(table | {"cost_table": str(tmp_path / "one" / "costs")}))
    processes = [start(experiment, out) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    trained = [line for out_text, _ in told for line in out_text.splitlines() if "trained in" in line]
    assert len(trained) == len(set(trained)) == 6
    for folder in sorted((tmp_path / "one" / "cells").iterdir()):
        shared = out / "cells" / folder.name
        assert lasting_record(shared / "result.json") == lasting_record(folder / "result.json")
        assert weights(shared) == weights(folder)
    assert list(verify(out)) == []
