"""Makes one text file of a results folder: what a report and a check of it need, and nothing of the machine's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldbench.data.names import split_folder, without_path
from ldbench.io.checksums import Damaged, parse_sealed, sealed_bytes
from ldbench.records.integrity import OBJECTS
from ldbench.records.packed import file_content, pack_lines
from ldbench.records.stored import Stored
from ldbench.records.tuning import RUNS, TUNING

EXPERIMENT = "experiment.json"
PLACES = ("init", "cost_table")  # options that hold a path


def pack(place: Stored, *, scores: bool = False, brief: bool = False) -> tuple[bytes, int]:
    """A results folder as the bytes of one file, in an order that depends on names alone, and how many runs it holds.

    Left out are weights, checkpoints, reports, ``plan.json`` (which only tells a run what it need not do again), what
    was set aside as damaged and, without ``scores``, every ``scores.jsonl``; with ``brief`` every ``epochs.jsonl`` and the
    runs of the tuning too, whose outcome stays: what no table needs. Absolute paths in ``experiment.json``
    become names, see ``portable``. What is damaged is kept as it is, for ``verify`` to name. Raises ``OSError``.
    """
    names = (*OBJECTS, *(["epochs.jsonl"] if not brief else []), *(["scores.jsonl"] if scores else []))
    experiment = _contents(place, "", (EXPERIMENT, TUNING, *place.files("costs")))
    folders = []
    for inside in ("cells", "pretrained", *([f"{RUNS}/cells"] if not brief else [])):
        for cell in place.cells(inside):
            contents = _contents(place, f"{inside}/{cell}/", names)
            if contents or inside == "cells":
                folders.append((f"{inside}/{cell}", contents))
    return pack_lines(experiment, folders, {"scores": scores} | ({"brief": True} if brief else {})), len(folders)


def _contents(place: Stored, folder: str, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        try:
            if place.present(f"{folder}{name}"):
                data = place.read(f"{folder}{name}")
                found[name] = file_content(portable(data) if name == EXPERIMENT else data, name)
        except Damaged as reason:  # such as a link that leads nowhere: there are no bytes to keep
            found[name] = f"not packed: {reason}"
    return found


def portable(data: bytes) -> bytes:
    """``experiment.json`` without the paths of a machine, sealed anew: a named folder is looked for by its name, and of
    other files the name is kept. As it is where it holds none, or is damaged.
    """
    try:
        told = parse_sealed(data)
    except Damaged:
        return data
    kept = {key: value for key, value in told.items() if key != "data_root" or not _absolute(value)}
    for key in PLACES:
        if _absolute(kept.get(key)):
            kept[key] = Path(kept[key]).name
    for key in kept.keys() & {"dataset", "pretrain_dataset"}:
        given = kept[key]
        kept[key] = [_without_path(name) for name in given] if isinstance(given, list) else _without_path(given)
    return data if kept == told else sealed_bytes(kept)


def _without_path(name: Any) -> Any:
    named = split_folder(name) if isinstance(name, str) else None
    return without_path(name) if named is not None and _absolute(named[1]) else name


def _absolute(path: Any) -> bool:
    return isinstance(path, str) and (path.startswith("~") or Path(path).is_absolute())
