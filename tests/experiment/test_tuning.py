"""What is to be tuned: what is accepted and refused, what is tried, and which of it is taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.hostile import ldbench, refused

from ldbench.errors import UserError
from ldbench.experiment.config import OF_RECIPE, Cell
from ldbench.experiment.files import read_experiment
from ldbench.experiment.grid import cells
from ldbench.experiment.options import experiment_from_options
from ldbench.experiment.tuning import (
    Group,
    Trial,
    best_trial,
    edge_keys,
    mean_accuracy,
    tuning_groups,
    tuning_runs,
    with_values,
)
from ldbench.experiment.validation import experiment_from_dict
from ldbench.models.recipes import Recipe, default_recipe

TABLE: dict[str, Any] = {"method": ["full", "short"], "val_size": 50, "short_budgets": [0.5], "seeds": 2}
TUNED = TABLE | {"tune": {"lr": [0.0125, 0.025, 0.05]}}
ONLINE = TABLE | {"method": ["full", "short-placed"], "scenario": "online"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"tune": {"lr": [0.1, 0.2]}, "val_size": 0}, "chosen by validation images: add --val-size N"),
        (ONLINE | {"val_size": 0}, "method short-placed is chosen by validation images: add --val-size N"),
        ({"tune": {"lr": [0.1]}}, "lr needs two values at least"),
        ({"tune": {"lr": []}}, "lr must not be empty"),
        ({"tune": {"lr": [0.1, 0.1]}}, "names the same value twice"),
        ({"tune": {"lrr": [0.1, 0.2]}}, "'lrr' cannot be tuned: did you mean lr"),
        ({"tune": {"epochs": [1, 2]}}, "'epochs' cannot be tuned"),
        ({"tune": {"lr": ["a", "b"]}}, "tune: lr must be a number, not 'a'"),
        ({"tune": {"batch_size": [0.5, 1]}}, "tune: batch_size must be a whole number"),
        ({"tune": {"lr": [0.1, -0.1]}}, "tune: lr must be above 0, not -0.1"),
        ({"tune": {"momentum": [0.9, 1.0]}}, "tune: momentum must be below 1"),
        ({"tune": {"optimizer": ["sgd", "adamm"]}}, "tune: optimizer 'adamm' is unknown: did you mean adam"),
        ({"tune": [0.1, 0.2]}, "must be a table of lists"),
        ({"tune": {"lr": [0.1, 0.2]}, "lr": 0.1}, "lr is to be tuned and is set to 0.1: give only one"),
        ({"tune_seeds": 2}, "--tune-seeds goes with something to tune"),
        (TUNED | {"tune_seeds": [7, 1]}, "seed 1 is both in seeds and in tune_seeds"),
        (TUNED | {"tune_seeds": [-7]}, "tune_seeds must lie between"),
        (ONLINE | {"scenario": "scratch"}, "method short-placed is short where data do not arrive in chunks"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_a_cure(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="experiment: ") as raised:
        experiment_from_dict(TABLE | table)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tune", "lr"], "write KEY=VALUE,VALUE, such as lr="),
        (["--tune", "lr=0.1,0.2", "--tune", "lr=0.3,0.4"], "--tune lr is given twice"),
        (["--tune", "lr=0.1,0.2", "--lr", "0.1"], "give only one"),
        (["--tune", "lr=0.1,0.2", "--tune-seeds", "x"], "write 2 or 1000,1001"),
        (["--tune", "lr=0.1,0.2", "--tune-seeds", "0"], "at least one seed"),
        (["--tune", "lr=0.1,x"], "lr must be a number, not 'x'"),
    ],
)
def test_the_command_line_says_so_in_one_line_and_leaves_nothing(words: list[str], said: str, tmp_path: Path) -> None:
    ended = ldbench("run", "--dataset", "digits", "--val-size", "50", *words, "--out", tmp_path / "out")
    assert refused(ended)
    assert said in ended.err
    assert not (tmp_path / "out").exists()


def test_the_command_line_and_a_file_say_the_same_and_feed_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        'dataset = "digits"\nval_size = 50\ntune_seeds = [5, 6]\n[tune]\nlr = [1, 0.5]\noptimizer = ["sgd", "adamw"]\n'
    )
    from_file = experiment_from_dict(read_experiment(str(path)))
    words = {"tune": ["lr=1,0.5", "optimizer=sgd,adamw"], "tune_seeds": "5,6", "val_size": 50, "dataset": ["digits"]}
    assert experiment_from_options(None, words, [])[0] == from_file
    assert from_file.tune == {"lr": (1.0, 0.5), "optimizer": ("sgd", "adamw")}
    assert experiment_from_dict(json.loads(json.dumps(from_file.to_dict()))) == from_file
    assert "tune" not in experiment_from_dict({}).to_dict()


def test_a_tuning_has_seeds_of_its_own() -> None:
    assert experiment_from_dict(TUNED).seeds_to_tune == (1000, 1001)
    assert experiment_from_dict(TUNED | {"seeds": [1000, 3]}).seeds_to_tune == (1001, 1002)
    assert experiment_from_dict(TUNED | {"tune_seeds": 3}).seeds_to_tune == (1000, 1001, 1002)


def test_every_field_of_a_recipe_can_be_tuned_and_no_other() -> None:
    assert set(OF_RECIPE) == {entry.name for entry in dataclasses.fields(Recipe)}


def planned(table: dict[str, Any]) -> tuple[list[Cell], list[Group]]:
    experiment = experiment_from_dict(table)
    made = list(cells(experiment, default_recipe))
    return made, tuning_groups(experiment, made, lambda cell: [3, 5, 5])


def test_a_product_of_values_is_tried_with_every_seed_as_ordinary_cells() -> None:
    _, groups = planned(TABLE | {"tune": {"lr": [0.1, 0.2], "weight_decay": [0.0, 0.1, 0.2]}})
    assert [(group.own.method, group.keys, len(group.trials)) for group in groups] == [
        ("full", ("lr", "weight_decay"), 6),
        ("short", ("lr", "weight_decay"), 6),
    ]
    runs = tuning_runs(groups)
    assert [cell.seed for cell, _ in runs] == [1000] * 12 + [1001] * 12
    last, values = runs[-1]
    assert values == {"lr": 0.2, "weight_decay": 0.2}
    plain = TABLE | values | {"seeds": [1001]}
    assert last.cell_id == list(cells(experiment_from_dict(plain), default_recipe))[-1].cell_id


def test_what_repeats_anothers_drops_takes_its_values() -> None:
    made, groups = planned(TUNED | {"method": ["freeze", "learn-and-drop", "full"]})
    assert [group.own.method for group in groups] == ["learn-and-drop", "full"]
    chosen = {("resnet18", "digits", "scratch", "learn-and-drop", None): {"lr": 0.5}}
    rates = {(cell.method, cell.seed): cell.lr for cell in with_values(made, chosen)}
    assert rates == {
        (method, seed): 0.05 if method == "full" else 0.5
        for method in ("learn-and-drop", "full", "freeze")
        for seed in (0, 1)
    }


def test_a_placed_budget_is_tried_in_every_place_also_without_values_to_tune() -> None:
    made, groups = planned(ONLINE)
    [placed] = groups
    assert (placed.own.method, placed.keys, len(placed.trials)) == ("short-placed", ("allocation",), 5)
    assert {cell.allocation for cell in made} == {None}
    _, groups = planned(ONLINE | {"tune": {"lr": [0.1, 0.2]}})
    assert [(group.keys, len(group.trials)) for group in groups] == [(("lr",), 2), (("lr", "allocation"), 10)]
    _, none = planned(ONLINE | {"scenario": ["scratch", "online"]})
    assert [group.own.scenario for group in none] == ["online"]


def test_an_allocation_names_a_cell_and_a_list_is_the_same_one() -> None:
    cell = planned(ONLINE)[0][-1]
    placed = dataclasses.replace(cell, allocation=(0.5, 0.25, 0.25))
    assert placed.config_hash != cell.config_hash
    read = Cell(**json.loads(json.dumps(dataclasses.asdict(placed))))
    assert read == placed
    assert read.cell_id == placed.cell_id


def group(**tried: list[Any]) -> Group:
    own = planned(TUNED)[0][0]  # of the rate 0.05
    rows = zip(*tried.values(), strict=True)
    return Group(own, tuple(Trial(dict(zip(tried, row, strict=True)), ()) for row in rows))


def test_the_best_mean_is_taken_and_of_equals_what_is_nearest_to_the_recipe() -> None:
    rates = group(lr=[0.2, 0.0125, 0.1, 0.025])
    assert best_trial(rates, [0.5, 0.6, 0.7, 0.6]) == 2
    assert best_trial(rates, [0.7, 0.7, 0.6, 0.6]) == 0  # both four times off: the first
    assert best_trial(rates, [0.7, 0.7, 0.7, 0.7]) == 2
    assert best_trial(rates, [None, 0.1, None, None]) == 1
    assert best_trial(rates, [None] * 4) is None
    words = group(optimizer=["adamw", "sgd"], lr=[0.05, 0.05])
    assert best_trial(words, [0.5, 0.5]) == 1


def test_a_run_that_failed_got_nothing_right() -> None:
    assert mean_accuracy([0.8, None]) == 0.4
    assert mean_accuracy([0.8, 0.6]) == pytest.approx(0.7)
    assert mean_accuracy([None, None]) is None


def test_a_best_value_at_the_edge_of_what_was_tried_is_named() -> None:
    both = group(lr=[0.1, 0.2, 0.4], optimizer=["sgd", "sgd", "adam"])
    assert edge_keys(both, {"lr": 0.1, "optimizer": "sgd"}) == ["lr"]
    assert edge_keys(both, {"lr": 0.2, "optimizer": "adam"}) == []
    assert edge_keys(group(allocation=[(0.5, 0.5), (1.0, 0.0)]), {"allocation": (0.5, 0.5)}) == []
