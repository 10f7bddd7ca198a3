"""Is everything in a results folder what was once written there?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ldbench.io.checksums import (
    HEAD_BYTES,
    Damaged,
    check_file,
    check_lines,
    check_schema,
    parse,
    parse_sealed,
    set_aside,
)
from ldbench.records.stored import Folder, Place, Stored, stored
from ldbench.records.tuning import RUNS, TUNING

OBJECTS = ("result.json", "config.json")
LINES = ("epochs.jsonl", "scores.jsonl")
TENSORS = ("model.safetensors", "checkpoint.safetensors")


def cell_problems(folder: Path, *, tensors: bool = True) -> Iterator[tuple[Path, str]]:
    """Every damaged file of a cell with the reason; absent ones are not. ``tensors=False`` skips the large ones."""
    names = (*OBJECTS, *LINES, *(TENSORS if tensors else ()))
    return ((folder / name, reason) for name, reason in _problems(Folder(folder), names))


def _problems(place: Stored, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            if place.present(name):
                _check(place, name)
        except Damaged as reason:
            yield name, str(reason)


def check_any(path: Path) -> None:
    """Raises ``Damaged`` unless the file is whole, by the kind its name tells."""
    _check(Folder(path.parent), path.name)


def _check(place: Stored, name: str) -> None:
    if name.endswith(".json"):
        parse_sealed(place.read(name))
    elif name.endswith(".jsonl"):
        check_lines(place.read(name))
    else:
        check_file(place.path / name)
        check_schema(_tensor_schema(place.path / name))


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


def verify(place: Place) -> Iterator[tuple[str, str]]:
    """Every damaged file of a results folder or of a packed one: its name within it, and the reason."""
    out = stored(place)
    yield from out.gaps(thorough=True)
    yield from _problems(out, ("experiment.json", "plan.json", TUNING, *out.files("costs")))
    for inside in ("cells", "pretrained", f"{RUNS}/cells"):
        for cell in out.cells(inside):
            yield from _problems(out, (f"{inside}/{cell}/{name}" for name in (*OBJECTS, *LINES, *TENSORS)))
