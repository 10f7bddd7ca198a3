"""What an option may be set to is listed once; whoever turns the names into things knows every one of them."""

from __future__ import annotations

import math
import typing

import torch

from ldbench.cli.options import HELP, PROFILE_HELP, parsed_as
from ldbench.data.names import AUGMENTATIONS, DATASET_FORMS, DATASET_NAMES
from ldbench.experiment.config import CHOICES, Experiment
from ldbench.experiment.grid import cells
from ldbench.experiment.options import AS_TEXT
from ldbench.experiment.scenarios import CHUNKS, SCENARIOS
from ldbench.experiment.validation import experiment_from_dict
from ldbench.models.recipes import default_recipe
from ldbench.policies.registry import method_names, stream_controls
from ldbench.store.budget import DTYPES
from ldbench.training.optim import PRECISIONS, build_optimizer, learning_rate_factor


def test_names_are_turned_into_what_they_say() -> None:
    assert set(DTYPES) == set(CHOICES["cache_dtype"])
    assert set(PRECISIONS) == set(CHOICES["precision"])
    for name in CHOICES["optimizer"]:
        [cell] = cells(experiment_from_dict({"method": "full", "optimizer": name}), default_recipe)
        made = build_optimizer(cell, [[torch.nn.Parameter(torch.zeros(1))]])
        assert type(made).__name__.lower() == name
    rates = {name: [learning_rate_factor(name, step, 8, 0.0) for step in range(8)] for name in CHOICES["schedule"]}
    assert rates["constant"] == [1.0] * 8
    assert rates["step"] == [1.0] * 4 + [0.1] * 2 + [0.01] * 2
    assert rates["cosine"] == [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert len(rates) == 3


def test_every_choice_is_named_by_the_help() -> None:
    for field, choices in CHOICES.items():
        assert all(choice in HELP[field] for choice in choices), field
    assert all(name in HELP["dataset"] for name in (*DATASET_NAMES, *DATASET_FORMS))
    assert all(name in HELP["augment"] for name in AUGMENTATIONS)
    assert all(name in HELP["scenario"] for name in SCENARIOS)
    assert f"{CHUNKS} by default" in HELP["chunks"]
    in_words = {"each also as NAME+store", "every rule that drops also as NAME+infobatch"}
    named = set(HELP["method"].strip(".").replace(";", ",").split(", ")) - in_words
    assert named == {name for name in method_names() if "+" not in name} - {*stream_controls()}


def test_options_are_parsed_as_the_fields_they_set() -> None:
    hints = typing.get_type_hints(Experiment)
    assert HELP.keys() | PROFILE_HELP.keys() <= hints.keys()
    as_text = {name for name in HELP if parsed_as(hints[name]) == str | None and hints[name] not in (str, str | None)}
    assert as_text == AS_TEXT.keys()
    parsed = {name: parsed_as(hints[name]) for name in ("method", "epochs", "lr", "download", "augment")}
    assert parsed == {
        "method": list[str] | None,
        "epochs": int | None,
        "lr": float | None,
        "download": bool | None,
        "augment": str | None,
    }
