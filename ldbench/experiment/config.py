"""What is to be run: the experiment as asked for, and its cells, each named by a hash of what decides its numbers."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ldbench.policies.base import DEFAULT_METHOD

OF_RECIPE = (
    "optimizer", "lr", "weight_decay", "momentum", "schedule", "warmup_fraction", "label_smoothing", "clip_norm",
    "batch_size",
)  # fmt: skip
FIRST_TUNE_SEED = 1000
OF_MODELS = ("image_size", "width", "dropout", "epochs", *OF_RECIPE)  # what may differ from model to model
OF_TUNING = ("init", "pretrain_dataset", "pretrain_epochs", "pretrain_size")
OF_STREAMS = ("chunks", "memory", "stream", "stream_schedule")
CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "constant", "step"),
    "precision": ("fp32", "bf16", "fp16"),
    "cache_dtype": ("fp32", "bf16", "fp16", "int8"),
    "save_model": ("none", "final"),
    "decide_by": ("flops", "time"),  # what pays
    "stream": ("shuffled", "by-class"),  # order of arrival
    "stream_schedule": ("chunk", "whole"),  # what the learning rate's schedule spans
}


@dataclass(frozen=True)
class Experiment:
    """A grid of cells (model x data set x scenario x method x seed).

    ``None`` in a field of the recipe means the model family's default. ``tune`` holds the values of the recipe's fields
    that are tried for each method, the best of which its cells are run with. ``pretrain_dataset`` is one for all data sets, or
    one for each of them. ``for_model`` holds fields of ``OF_MODELS`` for models by name or shell pattern (``resnet*``); of several
    that fit, the later one has the say.
    """

    model: tuple[str, ...] = ("resnet18",)
    dataset: tuple[str, ...] = ("digits",)
    scenario: tuple[str, ...] = ("scratch",)
    method: tuple[str, ...] = ("full", "short", DEFAULT_METHOD)
    seeds: tuple[int, ...] = (0,)
    short_budgets: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.75)
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
    init: str | None = None
    pretrain_dataset: tuple[str, ...] | None = None
    pretrain_epochs: int | None = None
    pretrain_size: int | None = None
    chunks: int | None = None
    memory: int | None = None
    stream: str | None = None
    stream_schedule: str | None = None
    freeze_to: str | None = None
    refresh_statistics: bool = False
    cache_views: int = 1
    refresh_views: float = 0.0
    change_features: tuple[str, ...] | None = None
    decide_by: str = "flops"
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    tune_seeds: tuple[int, ...] | None = None
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, Any] | None = None
    for_model: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/TOML values; feeding them back through ``experiment_from_dict`` gives this object again."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        plain["tune"] = {key: list(tried) for key, tried in self.tune.items()} or None
        plain["for_model"] = self.for_model or None
        return {key: value for key, value in plain.items() if value is not None}

    @property
    def datasets_named(self) -> tuple[str, ...]:
        """Every data set that is read, those of pre-training included."""
        return self.dataset + (self.pretrain_dataset or ())

    def pretrain_source(self, dataset: str) -> str | None:
        """The data set that weights for ``dataset`` are made on: its own of several, or the one for all."""
        sources = self.pretrain_dataset
        if sources is None:
            return None
        return sources[self.dataset.index(dataset)] if len(sources) > 1 else sources[0]

    def options_for(self, model: str) -> dict[str, Any]:
        """What ``for_model`` says of a model."""
        fitting = (options for pattern, options in self.for_model.items() if fnmatchcase(model, pattern))
        return {key: value for options in fitting for key, value in options.items()}

    @property
    def seeds_to_tune(self) -> tuple[int, ...]:
        """The seeds that values are chosen with; without ``tune_seeds`` two that no cell of the experiment has."""
        if self.tune_seeds is not None:
            return self.tune_seeds
        unused = (seed for seed in itertools.count(FIRST_TUNE_SEED) if seed not in self.seeds)
        return next(unused), next(unused)


@dataclass(frozen=True)
class Cell:
    """One training run, everything that decides its numbers resolved. ``budget`` is set where a method trains less;
    ``allocation`` where that budget was placed: the share of its steps for each chunk of a stream.

    Fields with a default are hashed only where they differ from it: a cell that was run before a field existed keeps
    its name. ``init`` is what ``init_identity`` makes of the option: a file's content counts, not its place.
    """

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
    scenario: str = "scratch"
    init: str | None = None
    pretrain_dataset: str | None = None
    pretrain_epochs: int | None = None
    pretrain_size: int | None = None
    chunks: int | None = None
    memory: int | None = None
    stream: str | None = None
    stream_schedule: str | None = None
    freeze_to: str | None = None
    refresh_statistics: bool | None = None  # of what drops layers; None for what does not
    allocation: tuple[float, ...] | None = None
    decide_by: str | None = None  # None: by time, and for what drops nothing
    cache_views: int = 1  # of what reads a store
    refresh_views: float = 0.0
    change_features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """A list, as JSON has it, is the same allocation, and the same changes."""
        if self.change_features is not None:
            object.__setattr__(self, "change_features", tuple(self.change_features))
        if self.allocation is not None:
            object.__setattr__(self, "allocation", tuple(self.allocation))

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What cells must share for one to repeat the other's drops: model, data set, scenario, seed."""
        return self.model, self.dataset, self.scenario, self.seed

    @property
    def config_hash(self) -> str:
        """SHA-256 over the canonical JSON of every field that is not left at a default, first 12 hex digits."""
        import hashlib  # here and not above, since --help reads this module and hashes nothing
        import json

        values = {key: value for key, value in dataclasses.asdict(self).items() if not at_default(key, value)}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def cell_id(self) -> str:
        """Folder name of the cell: readable, safe on any file system, unique through the hash."""
        method = self.method if self.budget is None else f"{self.method}-{self.budget:g}"
        scenario = "" if self.scenario == "scratch" else f"-{self.scenario}"
        text = f"{self.model}-{self.dataset}{scenario}-{method}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', text)[:120].lstrip('._')}-{self.config_hash}"


_DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(Cell)}


def at_default(name: str, value: Any) -> bool:
    """Whether a field of ``Cell`` has a default and ``value`` is it."""
    default = _DEFAULTS.get(name, dataclasses.MISSING)
    return default is not dataclasses.MISSING and bool(value == default)
