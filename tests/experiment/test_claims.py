"""Claims: what a table may say, that it is spelled out and held against the grid, and what makes it another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldbench.errors import UserError
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.files import read_experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import write_sealed
from ldbench.records.declared import read_declared

GRID: dict[str, Any] = {
    "model": ["vgg11", "resnet18"], "scenario": ["scratch", "online"], "method": ["full", "short", "learn-and-drop"],
    "seeds": 5, "claims": {"method": "learn-and-drop"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claims": 3}, ["claims", "table"]),
        ({"claims": {}}, ["method", "one rule"]),
        ({"claims": {"method": "learn-and-drop", "axis": ["time"]}}, ["axis", "axes"]),
        ({"claims": {"method": "learn-and-drop", "axes": ["joules"]}}, ["joules", "choose from flops, time"]),
        ({"claims": {"method": "learn-and-drop", "axes": []}}, ["axes"]),
        ({"claims": {"method": "learn-and-drop", "axes": ["time", "time"]}}, ["axes"]),
        ({"claims": {"method": "learn-and-drop", "groups": ["vgg11"]}}, ["groups", "single set"]),
        ({"claims": {"method": "learn-and-drop", "groups": []}}, ["groups", "empty"]),
        ({"claims": {"method": "learn-and-drop", "groups": [["vgg11", "stream"]]}}, ["did you mean streams"]),
        ({"claims": {"method": "learn-and-drop", "groups": [["vgg12", "streams"]]}}, ["vgg12", "did you mean vgg11"]),
        ({"claims": {"method": "learn-and-drop", "groups": [["vgg11", "streams"]] * 2}}, ["twice"]),
        ({"claims": {"method": "freeze"}}, ["freeze", "add --method freeze"]),
        ({"claims": {"method": "short"}}, ["short is a control"]),
        ({"method": ["full", "learn-and-drop"]}, ["add --method short"]),
        ({"short_budgets": [0.25, 0.5]}, ["5 budgets or more", "not of 2"]),
        (
            {"scenario": ["scratch"], "claims": {"method": "learn-and-drop", "groups": [["vgg11", "streams"]]}},
            ["no scenario"],
        ),
    ],
)
def test_a_wrong_claim_is_refused_before_anything_runs(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        experiment_from_dict(GRID | changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_left_out_is_spelled_out_and_reads_back() -> None:
    experiment = experiment_from_dict(GRID)
    assert experiment.claims == {
        "method": "learn-and-drop",
        "axes": ["flops", "time"],
        "groups": [["vgg11", "single set"], ["vgg11", "streams"], ["resnet18", "single set"], ["resnet18", "streams"]],
    }
    again = experiment_from_dict(json.loads(json.dumps(experiment.to_dict())))
    assert again == experiment
    assert claims_digest(again) == claims_digest(experiment)
    narrowed = experiment_from_dict(GRID | {"scenario": ["online"]})
    assert narrowed.claims is not None
    assert [kind for _, kind in narrowed.claims["groups"]] == ["streams", "streams"]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"method": ["full", "short", "learn-and-drop", "freeze", "autofreeze+store"]}, True),
        ({"device": "cuda", "threads": 1, "data_root": "/data", "download": True, "save_model": "final"}, True),
        ({"policy": {"autofreeze": {"interval": 0.1}}}, True),
        ({"seeds": 6}, False),
        ({"seeds": [0, 1, 2, 3, 5]}, False),
        ({"short_budgets": [0.1, 0.25, 0.375, 0.5, 0.75]}, False),
        ({"lr": 0.1}, False),
        ({"for_model": {"vgg11": {"lr": 0.1}}}, False),
        ({"for_model": {}}, True),
        ({"for_model": {"vgg*": {}, "resnet18": {}}}, True),
        ({"epochs": 13}, False),
        ({"policy": {"learn-and-drop": {"patience": 3}}}, False),
        ({"claims": {"method": "learn-and-drop", "axes": ["flops"]}}, False),
        ({"claims": {"method": "learn-and-drop", "groups": [["vgg11", "streams"]]}}, False),
        ({"refresh_statistics": True}, False),
        ({"val_size": 100, "tune": {"lr": [0.1, 0.2]}}, False),
    ],
)
def test_more_seeds_or_another_recipe_is_another_declaration_and_more_methods_are_not(
    changes: dict[str, Any], same: bool
) -> None:
    assert (claims_digest(experiment_from_dict(GRID | changes)) == claims_digest(experiment_from_dict(GRID))) == same


def test_of_patterns_that_both_fit_their_order_is_part_of_the_declaration() -> None:
    def digest(*patterns: str) -> str | None:
        of_models = {pattern: {"lr": 0.1 if pattern == "*" else 0.2} for pattern in patterns}
        return claims_digest(experiment_from_dict(GRID | {"for_model": of_models}))

    assert digest("*", "vgg11") != digest("vgg11", "*")
    assert digest("vgg11", "resnet18") == digest("resnet18", "vgg11")


def test_the_digest_stays_what_it_was() -> None:
    """Records carry it: a later version that counts it otherwise would take what was declared for exploratory."""
    assert claims_digest(experiment_from_dict(GRID)) == "6d62b12e5719328f"
    assert claims_digest(experiment_from_dict({key: GRID[key] for key in GRID if key != "claims"})) is None


def test_a_stored_experiment_is_read_with_its_claims(tmp_path: Path) -> None:
    experiment = experiment_from_dict(GRID)
    digest = claims_digest(experiment)
    write_sealed(tmp_path / "experiment.json", experiment.to_dict() | {"claims_sha256": digest})
    assert experiment_from_dict(read_experiment(str(tmp_path / "experiment.json"))) == experiment
    declared = read_declared(tmp_path)
    assert declared is not None
    assert (declared.digest, declared.method, declared.axes) == (digest, "learn-and-drop", ("flops", "time"))
    assert declared.groups[1] == ("vgg11", "streams")
    assert (declared.datasets, declared.scenarios, declared.seeds) == (
        ("digits",),
        ("scratch", "online"),
        (0, 1, 2, 3, 4),
    )


@pytest.mark.parametrize(
    "damage", [{"claims": None}, {"claims": {"method": 3}}, {"claims_sha256": 4}, {"seeds": 5}, {"claims": [1]}]
)
def test_what_holds_no_claims_has_none(damage: dict[str, Any], tmp_path: Path) -> None:
    assert read_declared(tmp_path) is None
    experiment = experiment_from_dict(GRID)
    write_sealed(tmp_path / "experiment.json", experiment.to_dict() | {"claims_sha256": "0" * 16} | damage)
    assert read_declared(tmp_path) is None


def test_an_edited_file_declares_nothing(tmp_path: Path) -> None:
    experiment = experiment_from_dict(GRID)
    path = tmp_path / "experiment.json"
    write_sealed(path, experiment.to_dict() | {"claims_sha256": "0" * 16})
    path.write_text(path.read_text().replace('"learn-and-drop"', '"freeze"', 1))
    assert read_declared(tmp_path) is None
