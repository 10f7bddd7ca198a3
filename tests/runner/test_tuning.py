"""Controls tuned like the method: what is tried is trained once, the best is taken, and whoever reads it can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support.hostile import ldbench, refused
from support.interruptions import StopAfter

from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError
from ldbench.experiment.allocation import allocations, chunk_steps
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed, write_sealed
from ldbench.records.integrity import verify
from ldbench.records.plan_file import Outcome, all_finished
from ldbench.records.results import load_results
from ldbench.records.tuning import read_tuning
from ldbench.runner.run_grid import run_experiment
from ldbench.training.interrupts import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")
TABLE: dict[str, Any] = {
    "model": "support.tiny_nets:net", "dataset": "digits", "image_size": 8, "train_size": 200, "test_size": 60,
    "val_size": 100, "epochs": 6, "batch_size": 10, "short_budgets": [0.5], "eval_every": "last",
    "optimizer": "sgd", "method": ["full", "short"], "tune": {"lr": [1e-6, 0.02, 0.05]},
}  # fmt: skip
ONLINE: dict[str, Any] = TABLE | {
    "scenario": "online", "chunks": 3, "memory": 20, "train_size": 220, "epochs": 6, "method": ["full", "short-placed"],
}  # fmt: skip


class Listening(ConsoleProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(Console(), quiet=True)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def run(table: Mapping[str, Any], out: Path, progress: ConsoleProgress | None = None) -> Outcome:
    return run_experiment(experiment_from_dict(table), out, progress or Listening())


def written(out: Path) -> dict[str, int]:
    """When each record was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("result.json")}


def values_run(out: Path, key: str = "lr") -> dict[tuple[str, int], Any]:
    configs = [read_sealed(path) for path in out.glob("cells/*/config.json")]
    return {(config["method"], config["seed"]): config[key] for config in configs}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods tuned over three rates, one of which cannot learn; not to be written to."""
    out = tmp_path_factory.mktemp("tuned")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run(TABLE | {"method": ["full", "short", "learn-and-drop", "freeze"], "save_model": "final"}, out)
    torch.set_num_threads(before)
    return out


def test_a_rate_that_cannot_learn_loses_and_the_best_is_what_the_cells_are_run_with(tuned: Path) -> None:
    told = read_sealed(tuned / "tuning.json")
    assert told["seeds"] == [1000, 1001]
    groups = read_tuning(tuned)
    assert [(group["method"], group["budget"]) for group in groups] == [
        ("full", None), ("short", 0.5), ("learn-and-drop", None), ("freeze", None),
    ]  # fmt: skip
    for group in groups[:3]:
        assert group["keys"] == ["lr"]
        assert [trial["values"] for trial in group["tried"]] == [{"lr": rate} for rate in TABLE["tune"]["lr"]]
        assert group["chosen"]["lr"] > 0.01
        assert group["edge"] == (["lr"] if group["chosen"]["lr"] == 0.05 else [])
        best = max(group["tried"], key=lambda trial: trial["mean"])
        assert best["values"] == group["chosen"]
        for trial in group["tried"]:
            records = [read_sealed(tuned / "tuning" / "cells" / cell / "result.json") for cell in trial["cells"]]
            assert [record["seed"] for record in records] == [1000, 1001]
            assert trial["val_accuracy"] == [record["val_accuracy"] for record in records]
            assert trial["mean"] == pytest.approx(sum(trial["val_accuracy"]) / 2)
    chosen = {group["method"]: group["chosen"]["lr"] for group in groups}
    assert values_run(tuned) == {(method, 0): rate for method, rate in chosen.items()}
    assert len(list(tuned.glob("cells/*/model.safetensors"))) == 4
    assert not list(tuned.glob("tuning/cells/*/model.safetensors"))


def test_what_repeats_anothers_drops_takes_its_values_and_says_so(tuned: Path) -> None:
    by_name = {group["method"]: group for group in read_tuning(tuned)}
    source, repeated = by_name["learn-and-drop"], by_name["freeze"]
    assert repeated["as"] == "learn-and-drop"
    assert (repeated["chosen"], repeated["edge"], repeated["tried"]) == (source["chosen"], source["edge"], [])
    assert not list(tuned.glob("tuning/cells/*freeze*"))


def test_rates_that_differ_between_methods_stand_in_one_comparison(tuned: Path, tmp_path: Path) -> None:
    run(TABLE | {"tune": {"lr": [1e-6, 0.05]}}, tmp_path)
    run(TABLE | {"method": "full", "tune": {"lr": [1e-7, 0.02]}}, tmp_path)
    for out in (tuned, tmp_path):
        frame = load_results(out)
        assert frame["setting"].nunique() == 1
        assert "lr" not in json.loads(frame["setting"][0])
        assert all(list(json.loads(values)) == ["lr"] for values in frame["tuned"])
        assert {"batch_size", "val_size"} <= json.loads(frame["setting"][0]).keys()
    rates = {row["method"]: json.loads(row["tuned"])["lr"] for row in frame.to_dict("records")}
    assert rates == {"full": 0.02, "short": 0.05}
    assert set(frame["tuned_edge"]) == {"lr"}
    [(path, reason)] = frame.attrs["left_out"]  # what the first of the two experiments chose for full
    assert path.startswith("cells/")
    assert reason == "lr=0.05 is not what tuning chose (0.02)"


def test_cells_outside_any_group_are_as_they_were(tuned: Path, tmp_path: Path) -> None:
    run({key: value for key, value in TABLE.items() if key != "tune"} | {"method": "full"}, tmp_path)
    [row] = load_results(tmp_path).to_dict("records")
    assert (row["tuned"], row["tuned_edge"]) == ("{}", "")
    assert json.loads(row["setting"])["lr"] > 0
    assert set(load_results(tuned / "tuning")["tuned"]) == {"{}"}
    assert not (tmp_path / "tuning").exists()


def test_the_same_command_trains_nothing_and_a_value_more_only_what_is_new(tmp_path: Path) -> None:
    first = run(TABLE | {"tune": {"lr": [1e-6, 0.02]}}, tmp_path)
    assert (first.tuning, first.finished, first.skipped) == (8, 2, 0)
    before, file = written(tmp_path), (tmp_path / "tuning.json").stat().st_mtime_ns
    again = run(TABLE | {"tune": {"lr": [1e-6, 0.02]}}, tmp_path)
    assert (again.tuning, again.finished, again.skipped) == (0, 0, 2)
    assert written(tmp_path) == before
    assert (tmp_path / "tuning.json").stat().st_mtime_ns == file
    more = run(TABLE | {"tune": {"lr": [1e-7, 1e-6, 0.02]}}, tmp_path)
    assert (more.tuning, more.finished, more.skipped) == (4, 0, 2)
    assert {path: when for path, when in written(tmp_path).items() if path in before} == before
    assert [group["edge"] for group in read_tuning(tmp_path)] == [["lr"]] * 2
    seeds = run(TABLE | {"tune": {"lr": [1e-6, 0.02]}, "seeds": 2}, tmp_path)
    assert (seeds.tuning, seeds.finished, seeds.skipped) == (0, 2, 2)


def test_an_experiment_keeps_what_another_chose_for_other_methods(tmp_path: Path) -> None:
    run(TABLE | {"method": "full"}, tmp_path)
    [full] = read_tuning(tmp_path)
    run(TABLE | {"method": "short"}, tmp_path)
    assert [group["method"] for group in read_tuning(tmp_path)] == ["full", "short"]
    assert read_tuning(tmp_path)[0] == full


def test_cells_are_not_run_on_other_data_than_their_values_were_chosen_by(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i:02}.png")
    sizes = {"train_size": None, "test_size": None, "val_size": 20, "dataset": f"folder:{tmp_path / 'images'}"}
    table = {key: value for key, value in (TABLE | sizes | {"method": "full"}).items() if value is not None}
    run(table, tmp_path / "r")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a" / "03.png")
    for path in tmp_path.glob("r/cells/*/result.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"its files have changed since .* was run in .*tuning"):
        run(table, tmp_path / "r")


@pytest.mark.parametrize("checks", [12, 250])
def test_an_interrupted_tuning_goes_on(checks: int, tuned: Path, tmp_path: Path) -> None:
    table = TABLE | {"method": ["full", "short", "learn-and-drop", "freeze"], "save_model": "final"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldbench.runner.run_grid.StopRequest", lambda: StopAfter(checks))
        with pytest.raises(Interrupted):
            run(table, tmp_path)
    half = written(tmp_path)
    assert bool(half) == (checks > 100)
    assert not (tmp_path / "tuning.json").exists()
    assert list(tmp_path.glob("tuning/cells/*/checkpoint.safetensors"))
    outcome = run(table, tmp_path)
    assert outcome.tuning == 18 - len(half)
    assert {path: when for path, when in written(tmp_path).items() if path in half} == half
    cheap = [{g["method"]: [t["mean"] for t in g["tried"]] for g in read_tuning(out)[:2]} for out in (tuned, tmp_path)]
    assert cheap[0] == cheap[1]


def test_a_rate_that_diverges_is_the_worst_and_when_all_do_the_group_is_named(tmp_path: Path) -> None:
    table = TABLE | {"method": "full", "warmup_fraction": 0.0, "schedule": "constant"}
    progress = Listening()
    outcome = run(table | {"tune": {"lr": [1e30, 1e-6]}}, tmp_path, progress)
    assert (outcome.tuning, outcome.diverged, outcome.finished) == (4, 0, 1)
    [group] = read_tuning(tmp_path)
    assert next((trial["val_accuracy"], trial["mean"]) for trial in group["tried"]) == ([None, None], None)
    assert group["chosen"] == {"lr": 1e-6}
    assert any("2 of its runs failed or diverged" in line for line in progress.said)
    with pytest.raises(UserError, match=r"tuning full of support.tiny_nets:net on digits, scratch: every run failed"):
        run(table | {"tune": {"lr": [1e30, 1e31]}}, tmp_path)
    assert read_tuning(tmp_path) == [group]


def test_a_finished_grid_is_skipped_and_only_while_what_it_was_chosen_by_is_whole(tuned: Path, tmp_path: Path) -> None:
    table = TABLE | {"tune": {"lr": [1e-6, 0.02]}}
    experiment = experiment_from_dict(table)
    assert all_finished(tmp_path, experiment) is None
    run(table, tmp_path)
    assert all_finished(tmp_path, experiment) == 2
    assert all_finished(tmp_path, experiment_from_dict(table | {"tune_seeds": [5, 6]})) is None
    assert list(verify(tmp_path)) == []
    file = tmp_path / "tuning.json"
    text = file.read_text()
    told = read_sealed(file)
    file.write_text(text.replace("0.02", "0.03"))
    assert all_finished(tmp_path, experiment) is None
    assert [path for path, _ in verify(tmp_path)] == ["tuning.json"]
    assert read_tuning(tmp_path) == []
    told["groups"][0]["chosen"] = {"lr": 1e-6}
    write_sealed(file, told)
    assert all_finished(tmp_path, experiment) is None
    file.unlink()
    assert all_finished(tmp_path, experiment) is None
    before, progress = written(tmp_path), Listening()
    assert run(table, tmp_path, progress).tuning == 0
    assert written(tmp_path) == before
    assert any("lr=0.02, accuracy on validation images" in line for line in progress.said)
    assert all_finished(tmp_path, experiment) == 2
    record = next(tmp_path.glob("tuning/cells/*/result.json"))
    record.write_text(record.read_text().replace('"seed": 100', '"seed": 200'))
    assert [path for path, _ in verify(tmp_path)] == [str(record.relative_to(tmp_path))]
    assert all_finished(tmp_path, experiment) is None
    assert run(table, tmp_path).tuning == 1


def test_two_processes_share_the_runs_of_a_tuning(tmp_path: Path) -> None:
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in TABLE.items() if not isinstance(value, (list, dict))
    ]
    options += ["--method=full", "--tune=lr=1e-6,0.02", f"--out={tmp_path / 'r'}", "--threads=1"]
    command = [sys.executable, "-c", "from ldbench.cli import main; main()", "run", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = "".join(process.communicate(timeout=240)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert sum("trained in" in line and line.startswith("tuning run") for line in said.splitlines()) == 4
    assert sum("trained in" in line and line.startswith("cell ") for line in said.splitlines()) == 1
    assert len(read_tuning(tmp_path / "r")) == 1


# --- placed budgets --------------------------------------------------------------------------------------------------


def test_a_placed_budget_takes_the_best_place_and_every_step_of_it(tmp_path: Path) -> None:
    outcome = run(ONLINE | {"tune": {"lr": [1e-6, 0.05]}}, tmp_path)
    lengths = [4, 6, 6]
    tried = allocations(lengths, 6, 0.5)
    assert (outcome.tuning, outcome.finished, outcome.failed) == (2 * (2 + 2 * len(tried)), 2, 0)
    full, placed = read_tuning(tmp_path)
    assert (full["keys"], placed["keys"], placed["edge"]) == (["lr"], ["lr", "allocation"], ["lr"])
    assert [tuple(trial["values"]["allocation"]) for trial in placed["tried"]] == tried * 2
    best = max(placed["tried"], key=lambda trial: trial["mean"])
    assert placed["chosen"]["lr"] == 0.05
    assert best["mean"] == next(t["mean"] for t in placed["tried"] if t["values"] == placed["chosen"])
    frame = load_results(tmp_path)
    assert frame["setting"].nunique() == 1
    assert not {"lr", "allocation"} & json.loads(frame["setting"][0]).keys()
    [row] = frame[frame["method"] == "short-placed"].to_dict("records")
    record = read_sealed(tmp_path / "cells" / row["cell"] / "result.json")
    ends = [chunk["step"] for chunk in record["chunks"]]
    steps = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert steps == chunk_steps(lengths, 6, 0.5, allocation=placed["chosen"]["allocation"])
    assert abs(sum(steps) - 48) <= 3
    accuracies = [chunk["val_accuracy"] for chunk in record["chunks"]]
    assert record["average_val_accuracy"] == pytest.approx(sum(accuracies) / 3) == row["average_val_accuracy"]
    means = {
        read_sealed(tmp_path / "tuning" / "cells" / cell / "result.json")["average_val_accuracy"]
        for trial in placed["tried"]
        for cell in trial["cells"]
    }
    assert means == {value for trial in placed["tried"] for value in trial["val_accuracy"]}


def test_without_a_tune_table_the_place_alone_is_chosen(tmp_path: Path) -> None:
    table = {key: value for key, value in ONLINE.items() if key != "tune"}
    run(table | {"tune_seeds": [5]}, tmp_path)
    [group] = read_tuning(tmp_path)
    assert (group["method"], group["keys"], group["seeds"]) == ("short-placed", ["allocation"], [5])
    assert list(group["chosen"]) == ["allocation"]
    frame = load_results(tmp_path)
    assert frame["setting"].nunique() == 1  # as that of full, which has no allocation


def test_a_stream_without_validation_images_has_no_average_over_them(tmp_path: Path) -> None:
    table = {key: value for key, value in ONLINE.items() if key not in ("tune", "val_size")}
    run(table | {"method": "full"}, tmp_path)
    [record] = [read_sealed(path) for path in tmp_path.glob("cells/*/result.json")]
    assert record["average_val_accuracy"] is None
    assert [chunk["val_accuracy"] for chunk in record["chunks"]] == [None] * 3
    assert record["average_accuracy"] is not None


# --- what is said ----------------------------------------------------------------------------------------------------


def words(table: Mapping[str, Any]) -> list[str]:
    """A table as the words of a command."""
    found = []
    for key, value in table.items():
        if key == "tune":
            found += [f"--tune={name}={','.join(map(str, tried))}" for name, tried in value.items()]
        else:
            listed = value if key == "method" else [",".join(map(str, value)) if isinstance(value, list) else value]
            found += [f"--{key.replace('_', '-')}={item}" for item in listed]
    return found


def test_a_dry_run_lists_what_is_tried_and_what_is_still_to_be_chosen(tuned: Path, tmp_path: Path) -> None:
    table = TABLE | {"method": ["full", "short", "learn-and-drop", "freeze"], "save_model": "final"}
    ended = ldbench("run", *words(table), "--out", tmp_path / "none", "--dry-run")
    assert not refused(ended)
    assert "18 tuning runs and 4 cells" in ended.out
    assert "short 0.5, tuning lr=0.02" in ended.out
    assert ended.out.count("lr to be tuned") == 4
    assert not (tmp_path / "none").exists()
    rows = json.loads(ldbench("run", *words(table), "--out", tuned, "--dry-run", "--json").out)["cells"]
    assert [row["tuning"] for row in rows] == [True] * 18 + [False] * 4
    assert all(row["finished"] for row in rows)
    assert {row["cell_id"] for row in rows[18:]} == {path.name for path in tuned.glob("cells/*")}
    placed = ldbench("run", *words(ONLINE), "--out", tmp_path / "none", "--dry-run")
    assert "short-placed 0.5, lr and allocation to be tuned" in placed.out


def test_a_batch_that_no_chunk_fills_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    table = {key: value for key, value in ONLINE.items() if key != "batch_size"}
    ended = ldbench("run", *words(table | {"tune": {"batch_size": [10, 100]}}), "--out", tmp_path / "out")
    assert refused(ended)
    assert "fill no minibatch of 100" in ended.err
    assert not (tmp_path / "out").exists()


def test_the_command_tells_of_the_tuning_and_checks_it(tmp_path: Path) -> None:
    table = TABLE | {"method": ["full"], "tune": {"lr": [1e-6, 0.02]}}
    ended = ldbench("run", *words(table), "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert "tuning by validation images: 4 of 4 runs are to be made" in ended.out
    assert "tuning run 2 of 4: support.tiny_nets:net on digits, full, lr=0.02, seed 1000" in ended.out
    assert "cell 1 of 1: support.tiny_nets:net on digits, full, seed 0" in ended.out
    assert "lr lies at the edge of what was tried: a better one may lie beyond" in ended.out
    again = ldbench("run", *words(table), "--out", tmp_path)
    assert "1 cells were finished already" in again.out
    checked = ldbench("verify", tmp_path)
    assert "1 cells and 4 tuning runs checked, 0 files damaged" in checked.out
