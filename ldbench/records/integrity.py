"""Is everything in a results folder what was once written there?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ldbench.io.checksums import (
    HEAD_BYTES,
    Damaged,
    check_file,
    check_lines,
    check_schema,
    parse,
    present,
    read_sealed,
    set_aside,
)
from ldbench.records.tuning import RUNS, TUNING

OBJECTS = ("result.json", "config.json")
LINES = ("epochs.jsonl", "scores.jsonl")
TENSORS = ("model.safetensors", "checkpoint.safetensors")


def cell_problems(folder: Path, *, tensors: bool = True) -> Iterator[tuple[Path, str]]:
    """Every damaged file of a cell with the reason; absent ones are not. ``tensors=False`` skips the large ones."""
    for name in (*OBJECTS, *LINES, *(TENSORS if tensors else ())):
        path = folder / name
        try:
            if present(path):
                check_any(path)
        except Damaged as reason:
            yield path, str(reason)


def check_any(path: Path) -> None:
    """Raises ``Damaged`` unless the file is whole, by the kind its name tells."""
    if path.suffix == ".json":
        read_sealed(path)
    elif path.suffix == ".jsonl":
        check_lines(path)
    else:
        check_file(path)
        check_schema(_tensor_schema(path))


def _tensor_schema(path: Path) -> object:
    with path.open("rb") as file:
        header = parse(file.read(min(int.from_bytes(file.read(8), "little"), HEAD_BYTES)))
    metadata = header.get("__metadata__")
    told = metadata.get("schema_version") if isinstance(metadata, dict) else None
    return int(told) if isinstance(told, str) and told.isdigit() else told


def mend_cell(folder: Path, note: Callable[[str], None]) -> bool:
    """Set the damaged files of a cell aside, its result with them, so that it runs again. Whether there were any.

    Tensors are left to whoever reads them: to check them all would take longer than a grid may take to be skipped.
    """
    problems = list(cell_problems(folder, tensors=False))
    for path, reason in problems:
        note(f"{path.parent.name}/{path.name}: {reason}; set aside as {set_aside(path).name}, the cell is run again")
    result = folder / "result.json"
    if problems and result.exists():
        set_aside(result)
    return bool(problems)


def verify(out: Path) -> Iterator[tuple[str, str]]:
    """Every damaged file below a results folder: path relative to it, and the reason."""
    named = (out / name for name in ("experiment.json", "plan.json", TUNING))
    for path in (*named, *sorted((out / "costs").glob("*.json"))):
        try:
            if path.exists():
                read_sealed(path)
        except Damaged as reason:
            yield str(path.relative_to(out)), str(reason)
    roots = (out / "cells", out / "pretrained", out / RUNS / "cells")
    for folder in sorted(path for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()):
        for path, said in cell_problems(folder):
            yield str(path.relative_to(out)), said
