"""One frozen description of an experiment: read from TOML and the command line, expanded into cells, hashed canonically."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldbench.coercion import coerce, seed_list
from ldbench.errors import UserError, nearest, shown
from ldbench.experiment_files import read_experiment as read_experiment
from ldbench.experiment_files import suite_names as suite_names

if typing.TYPE_CHECKING:
    from ldbench.models import Recipe

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "constant", "step"),
    "augment": ("none", "flip", "crop", "flip+crop"),
    "precision": ("fp32", "bf16", "fp16"),
    "cache_dtype": ("fp32", "bf16", "fp16", "int8"),
    "save_model": ("none", "final"),
}
POSITIVE = ("epochs", "batch_size", "lr", "width", "check_every", "train_size", "test_size", "image_size", "threads")
NOT_NEGATIVE = ("weight_decay", "momentum", "val_size", "dropout", "label_smoothing", "clip_norm", "warmup_fraction",
                "checkpoint_minutes")  # fmt: skip
BELOW_ONE = ("momentum", "dropout", "label_smoothing", "warmup_fraction")


@dataclass(frozen=True)
class Experiment:
    """A grid of cells (model x data set x method x seed). ``None`` in a recipe field means the model family's default."""

    model: tuple[str, ...] = ("resnet18",)
    dataset: tuple[str, ...] = ("digits",)
    method: tuple[str, ...] = ("full", "short", "learn-and-drop")
    seeds: tuple[int, ...] = (0,)
    short_budgets: tuple[float, ...] = (0.25, 0.5, 0.75)
    epochs: int = 12
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    schedule: str | None = None
    warmup_fraction: float | None = None
    label_smoothing: float | None = None
    clip_norm: float | None = None
    augment: str = "none"
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    threads: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    val_size: int = 0
    image_size: int | None = None
    width: float = 1.0
    dropout: float | None = None
    eval_every: int | str = 1
    save_model: str = "none"
    data_root: str | None = None
    download: bool = False
    cache_dtype: str = "fp32"
    cache_budget: str | None = None
    check_every: int | None = None
    cost_table: str | None = None
    checkpoint_minutes: float | None = None
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/TOML values; feeding them back through ``experiment_from_dict`` gives this object again."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {key: value for key, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Cell:
    """One training run, everything that decides its numbers resolved. ``budget`` is set for ``short`` alone."""

    model: str
    dataset: str
    method: str
    budget: float | None
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    schedule: str
    warmup_fraction: float
    label_smoothing: float
    clip_norm: float | None
    augment: str
    device: str
    precision: str
    channels_last: bool
    compile: bool
    threads: int | None
    train_size: int | None
    test_size: int | None
    val_size: int
    image_size: int | None
    width: float
    dropout: float | None
    eval_every: int | str
    save_model: str
    cache_dtype: str
    cache_budget: str | None
    check_every: int | None
    policy: dict[str, Any]

    @property
    def config_hash(self) -> str:
        """SHA-256 over the canonical JSON of every field, first 12 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def cell_id(self) -> str:
        """Folder name of the cell: readable, safe on any file system, unique through the hash."""
        method = self.method if self.budget is None else f"{self.method}-{self.budget:g}"
        text = f"{self.model}-{self.dataset}-{method}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', text)[:120].lstrip('._')}-{self.config_hash}"


def experiment_from_dict(values: Mapping[str, Any], origin: str = "experiment") -> Experiment:
    """Check names, types and ranges, and build the experiment. Raises ``UserError`` naming key, value and cure."""
    hints = typing.get_type_hints(Experiment)
    known = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{origin}: unknown key {shown(key)}: {nearest(key, hints)}")
        name = f"{origin}: {key}"
        known[key] = coerce(name, seed_list(name, value) if key == "seeds" else value, hints[key])
    experiment = Experiment(**known)
    _check(experiment, origin)
    return experiment


def _check(experiment: Experiment, origin: str) -> None:
    for key, choices in CHOICES.items():
        value = getattr(experiment, key)
        if value is not None and value not in choices:
            raise UserError(f"{origin}: {key} {shown(value)} is unknown: {nearest(value, choices)}")
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
    if any(not 0 <= seed < 2**31 for seed in experiment.seeds):
        raise UserError(f"{origin}: seeds must lie between 0 and 2**31 - 1, not {shown(experiment.seeds)}")
    every = experiment.eval_every
    if (isinstance(every, str) and every != "last") or (isinstance(every, int) and every < 1):
        raise UserError(f'{origin}: eval_every must be a number of epochs or "last", not {shown(every)}')
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", experiment.device):
        raise UserError(f"{origin}: device must be auto, cpu, cuda or cuda:N, not {shown(experiment.device)}")
    limits = {"epochs": 100_000, "batch_size": 1_000_000, "image_size": 4096, "width": 64, "threads": 4096}
    for key, most in limits.items():
        value = getattr(experiment, key)
        if value is not None and value > most:
            raise UserError(f"{origin}: {key} {value} is beyond what this tool can run (at most {most})")


def cells(experiment: Experiment, recipe_of: typing.Callable[[str], Recipe]) -> Iterator[Cell]:
    """Every cell of the grid, seeds outermost so that whole comparisons finish early.

    ``recipe_of`` gives a model family's default recipe; an option of the experiment overrides each of its fields.
    """
    from ldbench.methods import replay_source

    methods = sorted(experiment.method, key=lambda name: replay_source(name) is not None)
    shared = {f.name for f in dataclasses.fields(Experiment)} & {f.name for f in dataclasses.fields(Cell)}
    for seed, dataset, model, method in itertools.product(
        experiment.seeds, experiment.dataset, experiment.model, methods
    ):
        values = {name: getattr(experiment, name) for name in shared}
        recipe = recipe_of(model)
        for entry in dataclasses.fields(recipe):
            if values.get(entry.name) is None:
                values[entry.name] = getattr(recipe, entry.name)
        values |= {"model": model, "dataset": dataset, "method": method, "seed": seed}
        values["policy"] = experiment.policy.get(method, {})
        for budget in experiment.short_budgets if method == "short" else (None,):
            yield Cell(**values, budget=budget)
