"""An experiment over folders with names of their own, end to end: what is written, and on what it depends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.images import write_set

from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed
from ldbench.records.plan_file import Outcome
from ldbench.records.results import load_results
from ldbench.runner.plan import plan
from ldbench.runner.run_grid import run_experiment

TABLE: dict[str, Any] = {
    "model": "support.tiny_nets:net", "scenario": "fine-tune", "method": "full", "epochs": 1, "batch_size": 4,
    "val_size": 4, "tune": {"lr": [0.01, 0.05]}, "tune_seeds": [1000], "threads": torch.get_num_threads(),
}  # fmt: skip


def run(out: Path, folder: object, **changes: Any) -> Outcome:
    named = {"dataset": f"blobs=folder:{folder}[2-4]", "pretrain_dataset": f"blobs=folder:{folder}[0-1]"}
    return run_experiment(experiment_from_dict(TABLE | named | changes), out, ConsoleProgress(Console(), quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results over a folder that is gone since."""
    place = tmp_path_factory.mktemp("named")
    run(place / "out", write_set(place / "secret-place", classes=5))
    shutil.move(place / "secret-place", place / "blobs")
    return place


def test_the_path_stands_in_the_experiment_alone(finished: Path) -> None:
    out = finished / "out"
    files = [path for path in out.rglob("*.json*") if path.is_file()]
    assert {path.name for path in files} >= {"tuning.json", "config.json", "result.json", "epochs.jsonl"}
    assert {path.name for path in files if "secret-place" in path.read_text()} == {"experiment.json", "plan.json"}
    assert list(load_results(out)["dataset"]) == ["blobs[2-4]"]
    assert list(load_results(out)["pretrain_dataset"]) == ["blobs[0-1]"]
    [source] = {path.parent.name.split("-s")[0] for path in out.glob("pretrained/*/result.json")}
    assert source == "support.tiny_nets_net-blobs_0-1_-full"


def test_the_same_images_elsewhere_are_the_same_cells(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    assert run(tmp_path / "out", "blobs", data_root=str(finished)) == Outcome(skipped=1)


def test_other_images_under_the_same_name_are_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    other = write_set(tmp_path / "other", classes=5, seed=1)
    with pytest.raises(UserError, match=r"blobs\[0-1\]: its files have changed since .* was pre-trained"):
        run(tmp_path / "out", other, epochs=2, pretrain_epochs=1)
    shutil.rmtree(tmp_path / "out" / "pretrained")
    with pytest.raises(UserError, match=r"blobs\[2-4\]: its files have changed since"):
        run(tmp_path / "out", other, seeds=[0, 1])


def test_what_was_noted_of_a_run_can_be_run_again(finished: Path, tmp_path: Path) -> None:
    told = read_sealed(finished / "out" / "experiment.json")
    assert told["dataset"] == [f"blobs=folder:{finished / 'secret-place'}[2-4]"]
    table = {key: value for key, value in told.items() if key not in ("sha256", "schema_version")}
    with pytest.raises(UserError, match="secret-place not found"):
        run_experiment(experiment_from_dict(table), tmp_path, ConsoleProgress(Console(), quiet=True))


def test_every_data_set_may_have_weights_of_its_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "images", classes=5)
    table = {key: value for key, value in TABLE.items() if not key.startswith("tune")} | {
        "dataset": [f"blobs=folder:{folder}[2-4]", "digits[0-4]"], "pretrain_size": 10,
        "pretrain_dataset": [f"blobs=folder:{folder}[0-1]", "digits[5-9]"],
    }  # fmt: skip
    assert [(cell.dataset, cell.pretrain_dataset) for cell in plan(experiment_from_dict(table))] == [
        ("blobs[2-4]", "blobs[0-1]"), ("digits[0-4]", "digits[5-9]"),
    ]  # fmt: skip
    assert run_experiment(
        experiment_from_dict(table), tmp_path / "out",
        ConsoleProgress(Console(), quiet=True),
    ).finished == 2  # fmt: skip
    one_for_all = plan(experiment_from_dict(table | {"pretrain_dataset": "digits[5-9]"}))
    assert [cell.pretrain_dataset for cell in one_for_all] == ["digits[5-9]"] * 2
    with pytest.raises(UserError, match="names 3 data sets for 2 to tune on"):
        experiment_from_dict(table | {"pretrain_dataset": ["digits[5-9]", "digits[0-1]", "mnist"]})
