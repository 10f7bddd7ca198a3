"""Options of single models, in runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.validation import experiment_from_dict
from ldbench.records.plan_file import all_finished
from ldbench.records.results import load_results
from ldbench.runner.preparation import room_for_images
from ldbench.runner.run_grid import run_experiment

TABLE = {
    "model": ["resnet18", "vgg11_bn"],
    "method": ["full", "paced"],
    "width": 0.0625,
    "image_size": 16,
    "train_size": 64,
    "test_size": 32,
    "epochs": 2,
    "batch_size": 16,
    "threads": 1,
    "device": "cpu",
    "for_model": {"vgg*": {"image_size": 32, "epochs": 3}},
}


def test_each_model_trains_on_images_of_its_own_size(tmp_path: Path) -> None:
    run_experiment(experiment_from_dict(TABLE), tmp_path, ConsoleProgress(Console(), quiet=True))
    cells = load_results(tmp_path)
    assert set(cells["status"]) == {"finished"}
    sizes = cells.groupby("model")[["image_size", "epochs"]].agg(["min", "max"])
    assert sizes.loc["resnet18"].tolist() == [16, 16, 2, 2]
    assert sizes.loc["vgg11_bn"].tolist() == [32, 32, 3, 3]


def test_what_was_interrupted_goes_on_where_models_see_other_sizes(tmp_path: Path) -> None:
    quiet = ConsoleProgress(Console(), quiet=True)
    run_experiment(experiment_from_dict(TABLE | {"method": ["full"]}), tmp_path, quiet)
    run_experiment(experiment_from_dict(TABLE), tmp_path, quiet)
    cells = load_results(tmp_path)
    assert sorted(cells["method"]) == ["full", "full", "paced", "paced"]


def test_a_plan_whose_tables_stand_in_another_order_is_another(tmp_path: Path) -> None:
    tables = {"*": {"epochs": 1}, "resnet18": {"epochs": 2}}
    alone = TABLE | {"model": ["resnet18"], "method": ["full"]}
    asked = experiment_from_dict(alone | {"for_model": tables})
    run_experiment(asked, tmp_path, ConsoleProgress(Console(), quiet=True))
    assert all_finished(tmp_path, asked) == 1
    turned = experiment_from_dict(alone | {"for_model": dict(reversed(tables.items()))})
    assert all_finished(tmp_path, turned) is None


def test_images_of_several_sizes_share_what_images_may_take_of_a_gpu() -> None:
    assert room_for_images(100, 0) == 40
    assert room_for_images(70, 30) == 10
    assert room_for_images(20, 80) == 0
