"""``--cost-table`` takes an earlier run's results: the table for each cell is found in them, or what is missing is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import transforms
from support.cost_table import TABLE
from support.hostile import ldbench, refused

from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed, write_sealed
from ldbench.runner.cost_tables import given_table
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.runner.run_grid import run_experiment

WHAT = {"model": "vgg", "dataset": "digits", "batch_size": 32, "width": 1.0, "shape": [1, 8, 10, 100]}
GRID: dict[str, Any] = {
    "model": ["support.tiny_nets:net", "support.tiny_nets:residual_net"], "dataset": ["digits[0-1]", "digits[2-4]"],
    "image_size": 8, "train_size": 40, "test_size": 20, "epochs": 1, "batch_size": 20, "method": "full",
    "threads": torch.get_num_threads(),
}  # fmt: skip
QUIET = ConsoleProgress(Console(), quiet=True)


def write_table(file: Path, seconds: float, machine: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A table, told apart from others by the seconds that reading images takes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = dataclasses.replace(TABLE, input_seconds=seconds, machine=machine or {})
    write_sealed(file, {"what": WHAT | changes, "table": table.to_dict()})
    return file


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a grid of two models and two data sets."""
    out = tmp_path_factory.mktemp("earlier") / "out"
    run_experiment(experiment_from_dict(GRID), out, QUIET)
    return out


def test_a_results_folder_gives_every_cell_its_own_table(earlier: Path, tmp_path: Path) -> None:
    assert len(list(earlier.glob("costs/*.json"))) == 4
    packed = tmp_path / "earlier.jsonl"
    assert ldbench("pack", earlier, "--out", packed).code == 0
    by_place = {
        (told["what"]["model"], told["what"]["dataset"]): told["table"]
        for told in map(read_sealed, earlier.glob("costs/*.json"))
    }
    for source in (earlier, earlier / "costs", packed):
        experiment = experiment_from_dict(GRID | {"cost_table": str(source)})
        preparation = Preparation(experiment, tmp_path, torch.device("cpu"))
        for cell in plan(experiment):
            found = json.loads(json.dumps(preparation.costs(cell).to_dict()))
            assert found == by_place[cell.model, cell.dataset]
    assert not (tmp_path / "costs").exists()


def test_a_factory_of_transforms_is_called_once_and_not_for_every_minibatch_that_is_timed(tmp_path: Path) -> None:
    one = GRID | {"model": ["resnet18"], "dataset": ["digits"], "augment": "support.transforms:counted"}
    experiment = experiment_from_dict({key: value for key, value in one.items() if key != "cost_table"})
    preparation = Preparation(experiment, tmp_path, torch.device("cpu"))
    transforms.MADE.clear()
    assert preparation.costs(plan(experiment)[0]).input_seconds > 0
    assert len(transforms.MADE) == 1


def test_networks_whose_features_cannot_be_changed_are_named_before_anything_runs(tmp_path: Path) -> None:
    asked = {"model": ["swin_t"], "method": ["full", "paced"], "image_size": 32, "change_features": ["mirror=0.5"]}
    one = {"dataset": ["digits"], "train_size": 64, "batch_size": 8, "epochs": 1, "seeds": [0]} | asked
    with pytest.raises(UserError, match="channels last"):
        run_experiment(experiment_from_dict(one), tmp_path / "out", QUIET)
    assert not list(tmp_path.glob("out/cells/*"))


def test_a_run_decides_by_the_tables_of_an_earlier_results_folder(earlier: Path, tmp_path: Path) -> None:
    changes = {"cost_table": str(earlier), "seeds": [7]}
    outcome = run_experiment(experiment_from_dict(GRID | changes), tmp_path / "out", QUIET)
    assert outcome.finished == 4
    assert not (tmp_path / "out" / "costs").exists()


def test_settings_that_no_table_was_measured_for_are_named_before_anything_runs(earlier: Path, tmp_path: Path) -> None:
    words = [f"--{key.replace('_', '-')}={value}" for key, value in GRID.items() if isinstance(value, (int, str))]
    words += ["--model=support.tiny_nets:net", "--dataset=digits[0-1]", "--batch-size=10", "--cache-dtype=fp16"]
    ended = ldbench("run", *words, "--cost-table", earlier, "--out", tmp_path / "out")
    assert refused(ended)
    assert "the nearest of 4, costs/" in ended.err
    assert "is for batch_size 20, not 10, cache_dtype 'fp32', not 'fp16'\n" in ended.err
    assert not (tmp_path / "out").exists()


def test_one_file_is_that_table_or_says_what_it_is_for(tmp_path: Path) -> None:
    file = write_table(tmp_path / "costs" / "a.json", 2.0)
    write_table(tmp_path / "costs" / "b.json", 3.0, batch_size=64)
    assert given_table(file, WHAT).input_seconds == 2.0
    assert given_table(tmp_path, WHAT | {"batch_size": 64}).input_seconds == 3.0
    with pytest.raises(UserError) as caught:
        given_table(file, WHAT | {"width": 0.5})
    assert str(caught.value) == (
        f"cost table: {file} holds none for vgg on digits with these settings: a.json is for width 1.0, not 0.5"
    )
    with pytest.raises(UserError, match=r"the nearest of 2, costs/b\.json, is for freeze_to None, not '2'$"):
        given_table(tmp_path, WHAT | {"batch_size": 64, "freeze_to": "2"})


def test_of_two_machines_tables_this_ones_counts(tmp_path: Path) -> None:
    write_table(tmp_path / "costs" / "a.json", 2.0, {"cpu": "X"})
    assert given_table(tmp_path, WHAT, {"cpu": "Z"}).input_seconds == 2.0  # what the user gives is taken
    write_table(tmp_path / "costs" / "b.json", 3.0, {"cpu": "Y"})
    assert given_table(tmp_path, WHAT, {"cpu": "Y"}).input_seconds == 3.0
    with pytest.raises(
        UserError, match=r"holds 2 for vgg on digits, none .* this machine: .* costs/a\.json, costs/b\.json"
    ):
        given_table(tmp_path, WHAT, {"cpu": "Z"})


@pytest.mark.parametrize("name", ["absent", ".", "empty", "damaged.json", "text.jsonl"])
def test_a_place_without_tables_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty" / "costs").mkdir(parents=True)
    (tmp_path / "text.jsonl").write_text("x")
    file = write_table(tmp_path / "damaged.json", 2.0)
    file.write_text(file.read_text().replace("2.0", "2.5"))
    with pytest.raises(UserError) as caught:
        given_table(tmp_path / name, WHAT)
    assert "\n" not in str(caught.value)
    assert ("checksum" in str(caught.value)) == (name in ("damaged.json", "."))
