"""One value of an experiment brought to the type its field declares, or refused with name, value and cure."""

from __future__ import annotations

import json
import types
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ldbench.errors import UserError, nearest, shown
from ldbench.experiment.config import OF_RECIPE

MOST_SEEDS = 9999
LARGEST = 2**63 - 1  # what JSON readers, TOML and torch agree on


def coerce(name: str, value: Any, hint: Any) -> Any:
    """``value`` as type ``hint``: int, float, bool, str, a union of these with None, a tuple of one, or ``policy``.

    A single value stands for a tuple of one. Raises ``UserError`` that begins with ``name``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of(name, value, [option for option in arguments if option is not types.NoneType])
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items:
            raise UserError(f"{name} must not be empty")
        result = tuple(coerce(name, item, arguments[0]) for item in items)
        if len(set(result)) != len(result):
            twice = Counter(result).most_common(1)[0][0]
            raise UserError(f"{name} names the same value twice: {shown(twice)}")
        return result
    if origin is dict:
        return _policy(name, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{name} must be {_kind(hint)}, not {shown(value)}")
    if hint is float and not abs(value) < float("inf"):
        raise UserError(f"{name} must be a finite number, not {shown(value)}")
    if hint is int and abs(value) > LARGEST:
        raise UserError(f"{name} is beyond what this tool can run: {shown(value)}")
    if hint is str:
        _check_text(name, value)
    return value


def seed_list(name: str, value: Any, first: int = 0) -> Any:
    """``seeds = 5`` means five seeds from ``first`` on; a list names them. Other types are left to ``coerce``. Raises
    ``UserError``.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 0 < value <= MOST_SEEDS:
        raise UserError(
            f"{name} {shown(value)}: a number says how many seeds, 1 to {MOST_SEEDS}; a list names them: [3, 5, 7]"
        )
    return list(range(first, first + value))


def tune_table(name: str, value: Any, hints: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The values to be tried for each field of a recipe, as the types ``hints`` declare. Raises ``UserError``."""
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a table of lists, such as lr = [0.025, 0.05, 0.1], not {shown(value)}")
    table: dict[str, tuple[Any, ...]] = {}
    for key, tried in value.items():
        if key not in OF_RECIPE:
            raise UserError(f"{name}: {shown(key)} cannot be tuned: {nearest(key, OF_RECIPE)}")
        table[key] = coerce(f"{name}: {key}", tried, types.GenericAlias(tuple, (hints[key], ...)))
        if len(table[key]) < 2:
            raise UserError(f"{name}: {key} needs two values at least to choose from, not {shown(tried)}")
    return table


def model_tables(name: str, value: Any, hints: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of single models, a table by name or pattern, as the types ``hints`` declare. Raises ``UserError``."""
    if not isinstance(value, dict) or not all(isinstance(options, dict) for options in value.values()):
        raise UserError(f'{name} must be a table, one sub-table per model, such as "resnet*", not {shown(value)}')
    tables: dict[str, dict[str, Any]] = {}
    for pattern, options in value.items():
        for named in (pattern, *options):
            if not isinstance(named, str):
                raise UserError(f"{name}: models and options are named by text, not by {shown(named)}")
        for key in options:
            if key not in hints:
                raise UserError(
                    f"{name}: {shown(pattern)}: {shown(key)} is the same for all models: {nearest(key, hints)}"
                )
        tables[pattern] = {
            key: coerce(f"{name}: {pattern}: {key}", option, hints[key]) for key, option in options.items()
        }
    return tables


def _one_of(name: str, value: Any, options: list[Any]) -> Any:
    if len(options) == 1:
        return coerce(name, value, options[0])
    for option in options:
        try:
            return coerce(name, value, option)
        except UserError:
            continue
    raise UserError(f"{name} must be {' or '.join(map(_kind, options))}, not {shown(value)}")


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))


def _check_text(name: str, text: str) -> None:
    """Refuses what no file can be called: a file system takes any bytes but NUL, and those that are no UTF-8 Python
    writes as lone surrogates of its own."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UserError(f"{name} holds characters that no file can be named by: {shown(text)}") from None
    if "\0" in text:
        raise UserError(f"{name} must not hold a NUL character: {shown(text)}")


def _policy(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(options, dict) for options in value.values()):
        raise UserError(f"{name} must be a table, one sub-table per method, not {shown(value)}")
    for method, options in value.items():
        for key, option in options.items():
            try:
                json.dumps(option, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                what = f"{name}: {method}.{key}"
                raise UserError(
                    f"{what} must be a number, text, true, false or a list of these, not {shown(option)}"
                ) from None
    return value
