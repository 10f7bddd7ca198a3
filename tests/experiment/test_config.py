"""Experiment descriptions: what is accepted, what is refused and how, what identifies a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldbench.errors import UserError
from ldbench.experiment.config import Experiment
from ldbench.experiment.files import read_experiment, suite_names
from ldbench.experiment.grid import cells
from ldbench.experiment.options import experiment_from_options
from ldbench.experiment.validation import experiment_from_dict
from ldbench.models.recipes import default_recipe
from ldbench.policies import registry
from ldbench.policies.base import NeverDrop
from ldbench.policies.registry import Method, shortened_methods
from ldbench.runner.plan import plan


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"modle": ["vgg11"]}, ["modle", "did you mean model"]),
        ({"epochs": "ten"}, ["epochs", "a whole number", "ten"]),
        ({"epochs": True}, ["epochs", "a whole number"]),
        ({"epochs": 0}, ["epochs", "above 0"]),
        ({"epochs": 10**9}, ["epochs", "beyond"]),
        ({"lr": float("inf")}, ["lr", "number"]),
        ({"lr": -0.1}, ["lr", "above 0"]),
        ({"width": float("nan")}, ["width"]),
        ({"model": []}, ["model", "empty"]),
        ({"model": ["vgg11", "vgg11"]}, ["model", "twice"]),
        ({"optimizer": "sdg"}, ["optimizer", "did you mean sgd"]),
        ({"precision": "fp8"}, ["precision", "fp16"]),
        ({"short_budgets": [0.5, 1.0]}, ["short_budgets", "between 0 and 1"]),
        ({"seeds": [-1]}, ["seeds"]),
        ({"eval_every": "first"}, ["eval_every", "last"]),
        ({"device": "tpu"}, ["device", "cuda:N"]),
        ({"dropout": 1.0}, ["dropout", "below 1"]),
        ({"policy": {"learn-and-drop": 3}}, ["policy", "table"]),
        ({"for_model": {"vgg*": {"width": 0.5}}}, ["for_model", "vgg*", "fits no model"]),
        ({"for_model": {"resnet18": 3}}, ["for_model", "table"]),
        ({"for_model": {"resnet18": {"augment": "flip"}}}, ["for_model", "augment", "same for all models"]),
        ({"for_model": {"resnet18": {"width": "wide"}}}, ["for_model: resnet18: width", "a number"]),
        ({"for_model": {18: {"width": 0.5}}}, ["for_model", "named by text", "18"]),
        ({"for_model": {"resnet18": {3: 0.5}}}, ["for_model", "named by text", "3"]),
        ({"for_model": {"resnet18": {"width": 0}}}, ["for_model", "resnet18", "width", "above 0"]),
        ({"for_model": {"*": {"lr": 1}}, "tune": {"lr": [1, 2]}, "val_size": 9}, ["for_model", "lr", "tuned"]),
    ],
)
def test_a_wrong_table_is_refused_with_key_and_cure(table: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        experiment_from_dict(table)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_resolved_experiment_feeds_back_unchanged_through_json() -> None:
    first = experiment_from_dict(
        {
            "model": ["vgg11", "resnet18"],
            "seeds": 3,
            "lr": 1,
            "eval_every": "last",
            "policy": {"schedule": {"drops": [[0.5, 2]]}},
            "for_model": {"vgg*": {"epochs": 3}},
        }
    )
    assert first.seeds == (0, 1, 2)
    assert experiment_from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_cells_cover_the_grid_once_with_safe_distinct_names() -> None:
    experiment = experiment_from_dict(
        {
            "model": ["vgg11", "my.module:factory"],
            "dataset": ["folder:../x y"],
            "method": ["freeze", "learn-and-drop", "short"],
            "seeds": 2,
        }
    )
    made = list(cells(experiment, default_recipe))
    assert len(made) == 2 * 2 * (1 + 1 + 5)
    names = [cell.cell_id for cell in made]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in names)
    assert not any(name.startswith(".") for name in names)
    methods = [cell.method for cell in made if cell.model == "vgg11" and cell.seed == 0]
    assert methods.index("learn-and-drop") < methods.index("freeze")  # what is replayed runs first


def test_a_method_of_the_users_own_that_trains_less_is_expanded_as_it_says_it_spreads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, spread in (("mine", "evenly"), ("mine-early", "early")):
        monkeypatch.setitem(registry._METHODS, name, Method(NeverDrop, stops=False, shortened=spread))
    assert shortened_methods() == ("short", "short-early", "short-placed", "mine", "mine-early")
    table = {"method": ["full", "mine", "mine-early"], "short_budgets": [0.25, 0.5]}
    with pytest.raises(UserError, match="method mine-early is short where data do not arrive in chunks"):
        experiment_from_dict(table)
    both = experiment_from_dict(table | {"scenario": ["scratch", "online"]})
    made = [(cell.scenario, cell.method, cell.budget) for cell in cells(both, default_recipe)]
    assert made == [
        *(("scratch", "full", None), ("scratch", "mine", 0.25), ("scratch", "mine", 0.5)),
        *(("online", "full", None), ("online", "mine", 0.25), ("online", "mine", 0.5)),
        *(("online", "mine-early", 0.25), ("online", "mine-early", 0.5)),
    ]


def test_the_hash_follows_every_field_that_decides_numbers_and_no_other() -> None:
    def first_hash(**changes: object) -> str:
        return next(cells(experiment_from_dict({"model": "vgg11", **changes}), default_recipe)).config_hash

    assert first_hash() == first_hash(data_root="elsewhere", download=True)
    assert first_hash() == "c7534367b249"  # cells that were finished before there were scenarios are still found
    tuned = {"scenario": "fine-tune", "pretrain_dataset": "digits"}
    changes: list[dict[str, object]] = [
        {},
        {"lr": 0.3},
        {"epochs": 3},
        {"width": 0.5},
        {"cache_dtype": "fp16"},
        {"policy": {"full": {}, "short": {}}, "val_size": 5},
        tuned,
        tuned | {"pretrain_epochs": 3},
        tuned | {"pretrain_size": 30},
        tuned | {"pretrain_dataset": "mnist"},
        {"scenario": "online"},
        {"scenario": "online", "chunks": 4},
        {"scenario": "online", "memory": 4},
        {"scenario": "online", "stream": "by-class"},
        tuned | {"scenario": "online-fine-tune"},
    ]
    assert len({first_hash(**change) for change in changes}) == len(changes)


def test_models_may_have_options_of_their_own_and_the_later_table_has_the_say() -> None:
    of_models = {"resnet*": {"image_size": 16, "lr": 0.2}, "resnet5?": {"lr": 0.1}, "vgg11": {"batch_size": 8}}
    table = {"model": ["vgg11", "resnet18", "resnet50"], "method": "full", "image_size": 32, "for_model": of_models}
    planned = {cell.model: cell for cell in cells(experiment_from_dict(table), default_recipe)}
    assert {name: cell.image_size for name, cell in planned.items()} == {"vgg11": 32, "resnet18": 16, "resnet50": 16}
    assert {name: cell.lr for name, cell in planned.items()} == {"vgg11": 0.05, "resnet18": 0.2, "resnet50": 0.1}
    assert planned["vgg11"].batch_size == 8
    alone = experiment_from_dict({"model": "resnet50", "method": "full", "image_size": 16, "lr": 0.1})
    assert next(cells(alone, default_recipe)).cell_id == planned["resnet50"].cell_id


def test_what_the_command_line_says_holds_for_every_model(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        'model = ["vgg11", "resnet18"]\n[for_model."resnet*"]\nimage_size = 16\nlr = 0.2\n[for_model.vgg11]\nlr = 0.3'
    )

    def of_models(**options: object) -> dict[str, dict[str, object]]:
        return experiment_from_options(str(file), dict(options), [])[0].for_model

    assert of_models() == {"resnet*": {"image_size": 16, "lr": 0.2}, "vgg11": {"lr": 0.3}}
    assert of_models(image_size=32) == {"resnet*": {"lr": 0.2}, "vgg11": {"lr": 0.3}}
    assert of_models(model=["vgg11"]) == {"vgg11": {"lr": 0.3}}
    assert of_models(tune=["lr=0.1,0.2"], val_size=9) == {"resnet*": {"image_size": 16}, "vgg11": {}}


@pytest.mark.parametrize(("said", "seeds"), [("2", (0, 1)), ("7,", (7,)), ("7,2", (7, 2)), ("7,2,", (7, 2))])
def test_a_number_says_how_many_seeds_and_a_comma_which(said: str, seeds: tuple[int, ...]) -> None:
    assert experiment_from_options(None, {"seeds": said}, [])[0].seeds == seeds
    for odd in (",", "7,,", ",7", ""):
        with pytest.raises(UserError, match=r"--seeds .* is not understood: write 5 or 3,5,7"):
            experiment_from_options(None, {"seeds": odd}, [])
    with pytest.raises(UserError, match="--eval-every"):
        experiment_from_options(None, {"eval_every": "3,"}, [])


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_valid_by_every_spelling(name: str) -> None:
    tables = [read_experiment(spelling) for spelling in (name, f"{name}.toml", f"suites/{name}.toml")]
    assert tables[0] == tables[1] == tables[2]
    experiment = experiment_from_dict(tables[0])
    assert isinstance(experiment, Experiment)
    if any(model.startswith("timm:") for model in experiment.model):
        pytest.importorskip("timm", reason="the suite has a network of timm's")
    assert len({cell.cell_id for cell in plan(experiment)}) >= 3


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("model = [")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    listing = tmp_path / "list.json"
    listing.write_text("[1]")
    for path in (broken, binary, listing, tmp_path / "absent.toml", tmp_path):
        with pytest.raises(UserError, match=path.name):
            read_experiment(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = {"toml": "epochs = 3", "json": '{"epochs": 3}'}[suffix]
    (tmp_path / f"x.{suffix}").write_bytes(text.encode(encoding))
    assert read_experiment(str(tmp_path / f"x.{suffix}")) == {"epochs": 3}
