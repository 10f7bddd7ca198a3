"""What the command line says, as an experiment: options laid over the table of a file or suite."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ldbench.errors import UserError, shown
from ldbench.experiment.coercion import MOST_SEEDS
from ldbench.experiment.config import OF_STREAMS, OF_TUNING, Experiment
from ldbench.experiment.files import read_experiment
from ldbench.experiment.scenarios import SCENARIOS
from ldbench.experiment.validation import experiment_from_dict
from ldbench.policies.registry import stream_controls

# Options that hold lists or either of two types arrive as text; how to write them.
AS_TEXT = {
    "seeds": "5 or 3,5,7", "tune_seeds": "2 or 1000,1001", "short_budgets": "0.25,0.5",
    "eval_every": "a number or last",
}  # fmt: skip


def experiment_from_options(source: str | None, options: dict[str, Any], settings: list[str]) -> tuple[Experiment, str]:
    """The experiment and a name for its results folder.

    Args:
        source: experiment file or suite; None without one.
        options: option names with underscores -> values.
        settings: ``METHOD.OPTION=VALUE`` each.

    Raises:
        UserError: whatever is wrong with them.
    """
    if source is None and "model" not in options and "dataset" not in options:
        source = "quickstart"
    table = dict(read_experiment(source)) if source is not None else {}
    table |= {key: _option(key, value) for key, value in options.items()}
    _narrow(table, options)
    _narrow_models(table, options)
    if settings:
        experiment_from_dict({"policy": table.get("policy", {})})  # before anything is laid over it
        policy = {name: dict(entry) for name, entry in table.get("policy", {}).items()}
        for setting in settings:
            method, key, value = _setting(setting)
            policy.setdefault(method, {})[key] = value
        table["policy"] = policy
    name = Path(source).name.removesuffix(".toml").removesuffix(".json") if source else "run"
    return experiment_from_dict(table, "experiment"), name if name.strip(".") else "run"


def _narrow(table: dict[str, Any], options: dict[str, Any]) -> None:
    """Where the command line chooses scenarios, leave out what the file says for others; options of its own stay."""
    chosen = [SCENARIOS[name] for name in options.get("scenario", ()) if name in SCENARIOS]
    if not chosen:
        return
    unused = [] if any(scenario.tuned for scenario in chosen) else list(OF_TUNING)
    if not any(scenario.streamed for scenario in chosen):
        unused += OF_STREAMS
        if "method" not in options and isinstance(table.get("method"), list):
            table["method"] = [name for name in table["method"] if name not in stream_controls()]
            unused += [] if table.get("tune") else ["tune_seeds"]
    for key in unused:
        if key not in options:
            table.pop(key, None)


def _narrow_models(table: dict[str, Any], options: dict[str, Any]) -> None:
    """What the command line says holds for all models; where it chooses some, leave out what the file says of others."""
    of_models = table.get("for_model")
    if not isinstance(of_models, dict) or not all(isinstance(entry, dict) for entry in of_models.values()):
        return  # refused by name later
    given = options.keys() | {word.partition("=")[0] for word in options.get("tune", ())}
    table["for_model"] = {
        pattern: {key: value for key, value in entry.items() if key not in given}
        for pattern, entry in of_models.items()
        if "model" not in options or any(fnmatchcase(model, pattern) for model in options["model"])
    }


def _setting(text: str) -> tuple[str, str, Any]:
    method, dot, rest = text.partition(".")
    key, equals, written = rest.partition("=")
    if not dot or not equals:
        raise UserError(f"--set {text}: write METHOD.OPTION=VALUE, such as learn-and-drop.patience=3")
    try:
        table = tomllib.loads(f"value = {written}")
    except (ValueError, RecursionError):
        table = {}
    if table.keys() != {"value"}:
        raise UserError(f"--set {text}: {shown(written)} is no TOML value (text needs quotes)")
    return method, key, table["value"]


def _tried(words: list[str]) -> dict[str, list[Any]]:
    """``KEY=VALUE,VALUE`` each, as the table of a file."""
    table: dict[str, list[Any]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not key or not values:
            raise UserError(f"--tune {shown(word)} is not understood: write KEY=VALUE,VALUE, such as lr=0.025,0.05,0.1")
        if key in table:
            raise UserError(f"--tune {key} is given twice: write all its values in one, such as lr=0.025,0.05,0.1")
        table[key] = [_value(part.strip()) for part in values.split(",")]
    return table


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _option(key: str, value: Any) -> Any:
    if key == "tune":
        return _tried(value)
    if key not in AS_TEXT or (key == "eval_every" and value == "last"):
        return value
    kind = float if key == "short_budgets" else int
    try:
        several = value if key == "eval_every" else value.removesuffix(",")
        numbers = [kind(part) for part in several.split(",")]
    except ValueError:
        name = f"--{key.replace('_', '-')}"
        raise UserError(f"{name} {shown(value)} is not understood: write {AS_TEXT[key]}") from None
    if key == "short_budgets":
        return numbers
    of_seeds = key in ("seeds", "tune_seeds")
    if of_seeds and "," in value:
        return numbers  # "7," is seed 7 alone, as 7 says how many
    if of_seeds and not 0 < numbers[0] <= MOST_SEEDS:
        raise UserError(
            f"--{key.replace('_', '-')} {shown(value)}: at least one seed and at most {MOST_SEEDS} are needed"
        )
    if len(numbers) > 1:
        raise UserError(f"--eval-every {shown(value)} is not understood: write a number or last")
    return numbers[0]
