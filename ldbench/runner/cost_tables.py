"""The cost table of a cell: given, from the results folder, or measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ldbench.costs.table import CostTable
from ldbench.errors import UserError, shown
from ldbench.io.checksums import Damaged, parse_sealed, plain
from ldbench.records.stored import Folder, Packed, Stored

COSTS = "costs"  # the folder beside "cells"


class _Saved(NamedTuple):
    """A table's file, what it was measured for, and the table itself, which is not looked at yet."""

    file: str
    what: Mapping[str, Any]
    table: Any


def given_table(path: Path, what: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> CostTable:
    """The table for ``what`` in an earlier run's results: their folder, packed file, ``costs`` folder, or one table.

    Of several that were measured for it on different machines the one of this ``machine`` counts. Raises ``UserError``
    where there is none, saying what the nearest was measured for, or where several are left.
    """
    saved, damaged = _read(path)
    fitting = [some for some in saved if some.what == what]
    ours = [some for some in fitting if machine is not None and _machine(some) == plain(machine)]
    if not fitting:
        raise UserError(f"cost table: {_nearest(path, saved, damaged, what)}")
    if len(fitting) > 1 and not ours and any(some.table != fitting[0].table for some in fitting):
        files = ", ".join(some.file for some in fitting[:4])
        raise UserError(
            f"cost table: {path} holds {len(fitting)} for {what['model']} on {what['dataset']}, none of them of this "
            f"machine: name one of the files {files}"
        )
    chosen = (ours or fitting)[0]
    try:
        return CostTable.from_dict(chosen.table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"cost table: {chosen.file} holds no cost table: measure one anew, without --cost-table"
        ) from error


def _read(path: Path) -> tuple[list[_Saved], list[str]]:
    """The tables that can be read, and of each other file its name and what is wrong with it. Raises ``UserError``."""
    try:
        place: Stored = Folder(path)
        if path.is_dir():
            names = place.files(COSTS) if (path / COSTS).is_dir() else sorted(file.name for file in path.glob("*.json"))
        elif path.suffix == ".jsonl" and path.is_file():
            place = Packed(path)
            names = place.files(COSTS)
        else:
            place, names = Folder(path.parent), [path.name]
    except (OSError, Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cost table: {path} cannot be read: {reason}") from error
    saved, damaged = list[_Saved](), list[str]()
    for name in names:
        file = path.name if place.path != path else name
        try:
            told = parse_sealed(place.read(name))
        except Damaged as reason:
            damaged.append(f"{file} {reason}")
            continue
        if isinstance(told.get("what"), dict):
            saved.append(_Saved(file, told["what"], told.get("table")))
    return saved, damaged


def _machine(saved: _Saved) -> Any:
    return saved.table.get("machine") if isinstance(saved.table, dict) else None


def _nearest(path: Path, saved: list[_Saved], damaged: list[str], what: Mapping[str, Any]) -> str:
    """Why no table is the one for ``what``."""
    beside = f"; {damaged[0]}" if damaged else ""
    if not saved:
        return f"{path} holds none{beside}: give the results folder of an earlier run, or a table in its {COSTS} folder"
    nearest = min(saved, key=lambda some: len(_differing(some.what, what)))
    keys = _differing(nearest.what, what)
    apart = ", ".join(f"{key} {shown(nearest.what.get(key))}, not {shown(what.get(key))}" for key in keys[:6])
    of_these = f"the nearest of {len(saved)}, {nearest.file}, is" if len(saved) > 1 else f"{nearest.file} is"
    return f"{path} holds none for {what['model']} on {what['dataset']} with these settings: {of_these} for {apart}{beside}"


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]


def table_name(what: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """A measured table's file name: a hash of what it is for and of the machine."""
    text = json.dumps(plain([what, machine]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
