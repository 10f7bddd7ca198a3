"""One frozen description of an experiment: read from TOML and the command line, expanded into cells, hashed canonically."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ldbench.errors import UserError, nearest

if typing.TYPE_CHECKING:
    from ldbench.models import Recipe

Value = str | int | float | bool | list[Any] | dict[str, Any] | None

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
            raise UserError(f"{origin}: unknown key {key!r}: {nearest(key, hints)}")
        known[key] = _coerce(f"{origin}: {key}", _seeds(value) if key == "seeds" else value, hints[key])
    experiment = Experiment(**known)
    _check(experiment, origin)
    return experiment


def _seeds(value: Value) -> Value:
    """``seeds = 5`` means seeds 0 to 4; a list names them."""
    return (
        list(range(value)) if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10_000 else value
    )


def _coerce(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if option is type(None):
                continue
            try:
                return _coerce(name, value, option)
            except UserError:
                continue
        wanted = " or ".join(_kind(option) for option in arguments if option is not type(None))
        raise UserError(f"{name} must be {wanted}, not {value!r}")
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items:
            raise UserError(f"{name} must not be empty")
        result = tuple(_coerce(name, item, arguments[0]) for item in items)
        if len(set(result)) != len(result):
            raise UserError(f"{name} names the same value twice: {', '.join(map(str, result))}")
        return result
    if origin is dict:
        if not isinstance(value, dict) or (
            name.endswith("policy") and not all(isinstance(v, dict) for v in value.values())
        ):
            raise UserError(f"{name} must be a table, one sub-table per method, not {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**300 else math.inf
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{name} must not hold a NUL character")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{name} must be {_kind(hint)}, not {value!r}")
    if hint is float and not abs(value) < float("inf"):
        raise UserError(f"{name} must be a finite number, not {value!r}")
    return value


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))


def _check(experiment: Experiment, origin: str) -> None:
    for key, choices in CHOICES.items():
        value = getattr(experiment, key)
        if value is not None and value not in choices:
            raise UserError(f"{origin}: {key} {value!r} is unknown: {nearest(value, choices)}")
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
        raise UserError(f"{origin}: short_budgets must lie between 0 and 1, not {experiment.short_budgets}")
    if any(not 0 <= seed < 2**31 for seed in experiment.seeds):
        raise UserError(f"{origin}: seeds must lie between 0 and 2**31 - 1, not {experiment.seeds}")
    every = experiment.eval_every
    if (isinstance(every, str) and every != "last") or (isinstance(every, int) and every < 1):
        raise UserError(f'{origin}: eval_every must be a number of epochs or "last", not {every!r}')
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", experiment.device):
        raise UserError(f"{origin}: device must be auto, cpu, cuda or cuda:N, not {experiment.device!r}")
    limits = {"epochs": 100_000, "batch_size": 1_000_000, "image_size": 4096, "width": 64, "threads": 4096}
    for key, most in limits.items():
        value = getattr(experiment, key)
        if value is not None and value > most:
            raise UserError(f"{origin}: {key} {value} is beyond what this tool can run (at most {most})")


def suite_names() -> list[str]:
    """Names of the experiments shipped with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("ldbench.suites").iterdir() if p.name.endswith(".toml")
    )


def read_experiment(path: str) -> dict[str, Any]:
    """The raw table of a TOML or JSON file, or of a shipped suite by name (``fashion``, ``suites/fashion.toml``)."""
    file = Path(path)
    name = file.name.removesuffix(".toml")
    try:
        if file.is_file():
            text = file.read_text(encoding="utf-8")
        elif name in suite_names() and path in (name, f"{name}.toml", f"suites/{name}.toml"):
            text = (resources.files("ldbench.suites") / f"{name}.toml").read_text(encoding="utf-8")
        else:
            suites = ", ".join(suite_names())
            raise UserError(f"experiment file {path} was not found, and it is no shipped suite ({suites})")
        table = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a valid experiment file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: an experiment file holds a table of options")
    return {
        key: value for key, value in table.items() if key not in ("schema_version", "sha256")
    }  # a stored experiment.json


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
