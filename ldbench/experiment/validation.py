"""What values an experiment may hold: choices, ranges, and options that need one another."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ldbench.data.names import augmentation_parts, check_one_path_each
from ldbench.errors import UserError, nearest, shown
from ldbench.experiment.claims import claims_table, resolved_claims
from ldbench.experiment.coercion import coerce, model_tables, seed_list, tune_table
from ldbench.experiment.config import CHOICES, FIRST_TUNE_SEED, OF_MODELS, OF_STREAMS, Experiment
from ldbench.experiment.scenarios import SCENARIOS
from ldbench.policies.registry import shortened_methods, stream_controls

POSITIVE = ("epochs", "batch_size", "lr", "width", "check_every", "train_size", "test_size", "image_size", "threads",
            "pretrain_epochs", "pretrain_size")  # fmt: skip
NOT_NEGATIVE = ("weight_decay", "momentum", "val_size", "dropout", "label_smoothing", "clip_norm", "warmup_fraction",
                "checkpoint_minutes", "memory")  # fmt: skip
BELOW_ONE = ("momentum", "dropout", "label_smoothing", "warmup_fraction")


def check_experiment(experiment: Experiment, origin: str) -> None:
    """Raises ``UserError`` that begins with ``origin`` and names key, value and cure."""
    for key, choices in CHOICES.items():
        value = getattr(experiment, key)
        if value is not None and value not in choices:
            raise UserError(f"{origin}: {key} {shown(value)} is unknown: {nearest(value, choices)}")
    try:
        augmentation_parts(experiment.augment)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    for key in POSITIVE:
        value = getattr(experiment, key)
        if value is not None and not value > 0:
            raise UserError(f"{origin}: {key} must be above 0, not {value}")
    for key in NOT_NEGATIVE:
        value = getattr(experiment, key)
        if value is not None and value < 0:
            raise UserError(f"{origin}: {key} must not be negative, not {value}")
    for key in BELOW_ONE:
        value = getattr(experiment, key)
        if value is not None and not value < 1:
            raise UserError(f"{origin}: {key} must be below 1, not {value}")
    if any(not 0 < budget < 1 for budget in experiment.short_budgets):
        raise UserError(f"{origin}: short_budgets must lie between 0 and 1, not {shown(experiment.short_budgets)}")
    for key, seeds in (("seeds", experiment.seeds), ("tune_seeds", experiment.tune_seeds or ())):
        if any(not 0 <= seed < 2**31 for seed in seeds):
            raise UserError(f"{origin}: {key} must lie between 0 and 2**31 - 1, not {shown(seeds)}")
    every = experiment.eval_every
    if (isinstance(every, str) and every != "last") or (isinstance(every, int) and every < 1):
        raise UserError(f'{origin}: eval_every must be a number of epochs or "last", not {shown(every)}')
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", experiment.device):
        raise UserError(f"{origin}: device must be auto, cpu, cuda or cuda:N, not {shown(experiment.device)}")
    _check_scenarios(experiment, origin)
    sources = experiment.pretrain_dataset or ()
    if len(sources) not in (0, 1, len(experiment.dataset)):
        raise UserError(
            f"{origin}: pretrain_dataset names {len(sources)} data sets for {len(experiment.dataset)} to tune on: give one "
            "for all, or one for each in their order"
        )
    try:
        check_one_path_each(experiment.datasets_named)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    limits = {
        "epochs": 100_000,
        "pretrain_epochs": 100_000,
        "batch_size": 1_000_000,
        "image_size": 4096,
        "width": 64,
        "threads": 4096,
        "cache_views": 1024,
    }
    for key, most in limits.items():
        value = getattr(experiment, key)
        if value is not None and value > most:
            raise UserError(f"{origin}: {key} {value} is beyond what this tool can run (at most {most})")
    _check_tuning(experiment, origin)
    _check_models(experiment, origin)


def _check_models(experiment: Experiment, origin: str) -> None:
    """What is said of single models is said of models that are run, and could be said of all."""
    for pattern, options in experiment.for_model.items():
        fitting = [model for model in experiment.model if fnmatchcase(model, pattern)]
        if not fitting:
            raise UserError(f"{origin}: for_model {shown(pattern)} fits no model: {nearest(pattern, experiment.model)}")
        for key in options:
            if key in experiment.tune:
                raise UserError(f"{origin}: for_model {shown(pattern)}: {key} is to be tuned: give only one")
        alone = dataclasses.replace(experiment, tune={}, tune_seeds=None, for_model={}, **options)
        check_experiment(alone, f"{origin}: for_model {shown(pattern)}")


def _check_tuning(experiment: Experiment, origin: str) -> None:
    """Every value to be tried is one that the experiment itself could have, and there are images to choose by."""
    placed = [f"method {name}" for name in experiment.method if name in shortened_methods("placed")]
    tuned = [*placed, *(f"tune: {key}" for key in experiment.tune)]
    if experiment.tune_seeds is not None and not tuned:
        raise UserError(f"{origin}: --tune-seeds goes with something to tune: add --tune lr=0.025,0.05,0.1")
    if tuned and not experiment.val_size:
        raise UserError(f"{origin}: {tuned[0]} is chosen by validation images: add --val-size N")
    shared = sorted(set(experiment.seeds) & set(experiment.tune_seeds or ()))
    if shared:
        raise UserError(f"{origin}: seed {shared[0]} is both in seeds and in tune_seeds: tune with seeds of their own")
    for key, tried in experiment.tune.items():
        if getattr(experiment, key) is not None:
            raise UserError(f"{origin}: {key} is to be tuned and is set to {getattr(experiment, key)}: give only one")
        for value in tried:
            check_experiment(
                dataclasses.replace(experiment, tune={}, tune_seeds=None, **{key: value}), f"{origin}: tune"
            )


def _check_scenarios(experiment: Experiment, origin: str) -> None:
    """Every scenario is known and has what it needs; nothing is asked for that no scenario uses."""
    for name in experiment.scenario:
        if name not in SCENARIOS:
            raise UserError(f"{origin}: scenario {shown(name)} is unknown: {nearest(name, SCENARIOS)}")
    tuned = [name for name in experiment.scenario if SCENARIOS[name].tuned]
    sources = [name for name in ("init", "pretrain_dataset") if getattr(experiment, name) is not None]
    if tuned and len(sources) != 1:
        what = "needs weights to begin with" if not sources else "begins with one kind of weights, not with two"
        raise UserError(
            f"{origin}: scenario {tuned[0]} {what}: give either --init FILE.safetensors, --init torchvision or "
            "--pretrain-dataset NAME"
        )
    if sources and not tuned:
        option = f"--{sources[0].replace('_', '-')}"
        raise UserError(f"{origin}: {option} needs a scenario that begins with weights: add --scenario fine-tune")
    streamed = any(SCENARIOS[name].streamed for name in experiment.scenario)
    of_streams = [name for name in experiment.method if name in stream_controls()]
    if of_streams and not streamed:
        raise UserError(
            f"{origin}: method {of_streams[0]} is short where data do not arrive in chunks: add --scenario online"
        )
    for name in OF_STREAMS:
        if getattr(experiment, name) is not None and not streamed:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{origin}: {option} needs a scenario whose data arrive in chunks: add --scenario online")
    if experiment.chunks is not None and not 2 <= experiment.chunks <= 100_000:
        raise UserError(f"{origin}: chunks must be 2 to 100000, not {experiment.chunks}")
    for name in ("pretrain_epochs", "pretrain_size"):
        if getattr(experiment, name) is not None and experiment.pretrain_dataset is None:
            raise UserError(f"{origin}: --{name.replace('_', '-')} goes with --pretrain-dataset NAME")


def experiment_from_dict(values: Mapping[str, Any], origin: str = "experiment") -> Experiment:
    """Check names, types and ranges, and build the experiment. Raises ``UserError`` naming key, value and cure."""
    hints = typing.get_type_hints(Experiment)
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{origin}: unknown key {shown(key)}: {nearest(key, hints)}")
        name = f"{origin}: {key}"
        if key == "seeds":
            value = seed_list(name, value)
        if key == "tune_seeds":
            value = seed_list(name, value, FIRST_TUNE_SEED)
        if key == "freeze_to" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # how many stages, where a name could stand
        if key == "claims":
            known[key] = claims_table(name, value)
            continue
        if key == "for_model":
            known[key] = model_tables(name, value, {of: hints[of] for of in OF_MODELS})
            continue
        known[key] = tune_table(name, value, hints) if key == "tune" else coerce(name, value, hints[key])
    experiment = Experiment(**known)
    check_experiment(experiment, origin)
    return dataclasses.replace(experiment, claims=resolved_claims(experiment, f"{origin}: claims"))
