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
from ldbench.experiment_checks import CHOICES as CHOICES
from ldbench.experiment_checks import check_experiment
from ldbench.experiment_files import read_experiment as read_experiment
from ldbench.experiment_files import suite_names as suite_names
from ldbench.scenarios import CHUNKS, SCENARIOS, SHORTENED, STREAM_SCHEDULES, STREAMS, init_identity

if typing.TYPE_CHECKING:
    from ldbench.models.recipes import Recipe

OF_TUNING = ("init", "pretrain_dataset", "pretrain_epochs", "pretrain_size")
OF_STREAMS = ("chunks", "memory", "stream", "stream_schedule")


@dataclass(frozen=True)
class Experiment:
    """A grid of cells (model x data set x scenario x method x seed). ``None`` in a recipe field means the model family's default."""

    model: tuple[str, ...] = ("resnet18",)
    dataset: tuple[str, ...] = ("digits",)
    scenario: tuple[str, ...] = ("scratch",)
    method: tuple[str, ...] = ("full", "short", "autofreeze+store")
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
    init: str | None = None
    pretrain_dataset: str | None = None
    pretrain_epochs: int | None = None
    pretrain_size: int | None = None
    chunks: int | None = None
    memory: int | None = None
    stream: str | None = None
    stream_schedule: str | None = None
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/TOML values; feeding them back through ``experiment_from_dict`` gives this object again."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {key: value for key, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Cell:
    """One training run, everything that decides its numbers resolved. ``budget`` is set for ``short`` alone.

    Fields with a default are hashed only where they differ from it: a cell that was run before a field existed keeps its
    name. ``init`` is what ``init_identity`` makes of the option, so that a file's content counts and not its place.
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

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What cells must share for one to repeat the other's drops: model, data set, scenario, seed."""
        return self.model, self.dataset, self.scenario, self.seed

    @property
    def config_hash(self) -> str:
        """SHA-256 over the canonical JSON of every field that is not left at a default, first 12 hex digits."""
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
    check_experiment(experiment, origin)
    return experiment


def cells(experiment: Experiment, recipe_of: typing.Callable[[str], Recipe]) -> Iterator[Cell]:
    """Every cell of the grid, seeds outermost so that whole comparisons finish early.

    ``recipe_of`` gives a model family's default recipe; an option of the experiment overrides each of its fields.
    Raises ``UserError`` when the file of weights to begin with cannot be read.
    """
    from ldbench.policies.registry import replay_source

    methods = sorted(experiment.method, key=lambda name: replay_source(name) is not None)
    shared = {f.name for f in dataclasses.fields(Experiment)} & {f.name for f in dataclasses.fields(Cell)}
    init = init_identity(experiment.init)
    for seed, dataset, scenario, model, method in itertools.product(
        experiment.seeds, experiment.dataset, experiment.scenario, experiment.model, methods
    ):
        if method == "short-early" and not SCENARIOS[scenario].streamed:
            continue  # there it is short
        values = {name: getattr(experiment, name) for name in shared}
        recipe = recipe_of(model)
        if not SCENARIOS[scenario].tuned:
            values |= dict.fromkeys(OF_TUNING)
        elif experiment.pretrain_dataset is not None:
            values["pretrain_epochs"] = experiment.pretrain_epochs or experiment.epochs
        if SCENARIOS[scenario].streamed:
            values |= {"chunks": experiment.chunks or CHUNKS, "stream": experiment.stream or STREAMS[0]}
            values["stream_schedule"] = experiment.stream_schedule or STREAM_SCHEDULES[0]
        else:
            values |= dict.fromkeys(OF_STREAMS)
        for entry in dataclasses.fields(recipe):
            if values.get(entry.name) is None:
                values[entry.name] = getattr(recipe, entry.name)
        values |= {"model": model, "dataset": dataset, "scenario": scenario, "method": method, "seed": seed}
        values["init"] = init if SCENARIOS[scenario].tuned else None
        values["policy"] = experiment.policy.get(method, {})
        for budget in experiment.short_budgets if method in SHORTENED else (None,):
            yield Cell(**values, budget=budget)
