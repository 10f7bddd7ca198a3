"""What was chosen, read back: which cells it is about, and what is not what was chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.report_records import make_record, write_cell

from ldbench.experiment.grid import cells
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import write_sealed
from ldbench.models.recipes import default_recipe
from ldbench.records.results import load_results
from ldbench.records.tuning import Choices, group_key, read_tuning


def config(**changes: Any) -> dict[str, Any]:
    cell = next(cells(experiment_from_dict({"method": "short", "val_size": 9, "short_budgets": 0.5}), default_recipe))
    return dataclasses.asdict(cell) | {"channels": 1, "classes": 10, "image_size": 16} | changes


def group(chosen: dict[str, Any], of: dict[str, Any], edge: tuple[str, ...] = ()) -> dict[str, Any]:
    names = ("model", "dataset", "scenario", "method", "budget", "policy")
    found = {name: of[name] for name in names} | {"key": group_key(of, chosen), "keys": list(chosen)}
    return found | {"chosen": chosen, "edge": list(edge), "tried": []}


def test_a_group_is_all_that_its_cells_share_but_seed_and_tuned_values() -> None:
    key = group_key(config(), ["lr"])
    assert key == group_key(config(seed=7, lr=3.0, sha256="x", schema_version=1, chunks=None, allocation=None), ["lr"])
    for name, value in (
        ("weight_decay", 0.5), ("method", "full"), ("budget", 0.25), ("policy", {"a": 1}), ("val_size", 8),
        ("scenario", "online"), ("classes", 9), ("image_size", 32), ("channels", 3), ("model", "vgg11"),
        ("allocation", [0.5, 0.5]),
    ):  # fmt: skip
        assert group_key(config(**{name: value}), ["lr"]) != key, name
    assert group_key(config(), ["lr", "momentum"]) == group_key(config(momentum=0.1), ["momentum", "lr"]) != key
    placed = config(allocation=(0.25, 0.75))
    assert group_key(placed, ["lr"]) == group_key(json.loads(json.dumps(placed)), ["lr"])


def test_a_cell_belongs_to_the_last_group_that_chose_its_values() -> None:
    older, newer = group({"lr": 0.1}, config()), group({"lr": 0.1, "momentum": 0.5}, config())
    found = Choices([older, newer])
    assert found.of(config(lr=0.1, momentum=0.5)) == (newer, None)
    assert found.of(config(lr=0.1)) == (older, None)
    assert found.of(config(lr=0.1, weight_decay=0.7)) == (None, None)
    assert found.of(config(lr=0.2, method="full")) == (None, None)
    assert found.of({}) == Choices([]).of(config()) == (None, None)
    assert Choices([older]).of(config(lr=0.2)) == (None, "lr=0.2 is not what tuning chose (0.1)")
    assert Choices([newer]).of(config(lr=0.2)) == (
        None, "lr=0.2, momentum=0.9 are not what tuning chose (lr=0.1, momentum=0.5)",
    )  # fmt: skip


@pytest.mark.parametrize(
    "broken", [{"keys": 3}, {"keys": ["lr", "x"]}, {"keys": [["lr"]]}, {"chosen": []}, {"edge": None}, {"key": None}]
)
def test_a_group_that_is_none_is_passed_over(broken: dict[str, Any], tmp_path: Path) -> None:
    sound = group({"lr": 0.1}, config())
    write_sealed(tmp_path / "tuning.json", {"seeds": [1000], "groups": [sound | broken, 3, sound]})
    assert [each["key"] for each in read_tuning(tmp_path)] == [sound["key"]]
    write_sealed(tmp_path / "tuning.json", {"groups": 3})
    assert read_tuning(tmp_path) == read_tuning(tmp_path / "absent") == []


def test_a_row_says_what_was_tuned_and_a_superseded_one_is_left_out(tmp_path: Path) -> None:
    short = config()
    for seed, rate in ((0, 0.1), (1, 0.1), (2, 0.2)):
        write_cell(
            tmp_path, make_record("short", seed, budget=0.5, model="resnet18"), **short | {"lr": rate, "seed": seed}
        )
    write_cell(tmp_path, make_record("full", 0, model="resnet18"), **short | {"method": "full", "budget": None})
    write_sealed(tmp_path / "tuning.json", {"groups": [group({"lr": 0.1}, short, edge=("lr",))]})
    frame = load_results(tmp_path)
    told = [tuple(row) for row in frame[["method", "seed", "tuned", "tuned_edge"]].to_numpy()]
    assert told == [("full", 0, "{}", ""), ("short", 0, '{"lr":0.1}', "lr"), ("short", 1, '{"lr":0.1}', "lr")]
    assert ["lr" in json.loads(setting) for setting in frame["setting"]] == [True, False, False]
    assert [reason for _, reason in frame.attrs["left_out"]] == ["lr=0.2 is not what tuning chose (0.1)"]
    (tmp_path / "tuning.json").write_text("{")
    assert set(load_results(tmp_path)["tuned"]) == {"{}"}
    assert len(load_results(tmp_path)) == 4
