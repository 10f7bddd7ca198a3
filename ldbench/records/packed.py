"""The packed form of a results folder: one text file, a line for the experiment and one for each cell.

A line is a JSON object. The first says what the file is, how many ``folders`` follow, whether ``scores`` are among them
and whether it is ``brief`` (without epochs and tuning runs), and holds the ``files`` of the experiment:
``experiment.json``, ``tuning.json``, the cost tables. Each further one names a ``folder`` (``cells/NAME``,
``pretrained/NAME``, ``tuning/cells/NAME``) and holds its ``files``.

A file stands in it as what it says: an object for JSON, a list of objects for JSON lines. Written out as
`ldbench.io.checksums` writes them they are the bytes they were made from, checksum and all; a file of which that is not
true, such as a damaged one, stands there as text. The first line carries a checksum over the whole packed file besides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldbench.errors import UserError
from ldbench.io.checksums import MAX_BYTES, Damaged, check, check_regular, check_schema, parse, seal, unsealed

FORMAT = "ldbench packed results"
MOST_BYTES = 2**30
_FOLDER = re.compile(rb'\{"folder": ("(?:[^"\\]|\\.)*")')


def file_bytes(content: Any) -> bytes:
    """The file that ``content`` stands for. Raises ``Damaged`` where it stands for none."""
    try:
        if isinstance(content, str):
            return content.encode("utf-8", "surrogateescape")
        if isinstance(content, dict):
            return (json.dumps(content, indent=1) + "\n").encode()
        if isinstance(content, list):
            return "".join(json.dumps(line) + "\n" for line in content).encode()
    except (ValueError, RecursionError) as error:
        raise Damaged("cannot be unpacked") from error
    raise Damaged("holds no file")


def file_content(data: bytes, name: str) -> Any:
    """What stands for a file in a packed one: its JSON where that gives the same bytes again, else its text."""
    try:
        content = parse(data) if name.endswith(".json") else [parse(line) for line in data.splitlines()]
        json.dumps(content, allow_nan=False)
        if file_bytes(content) == data:
            return content
    except (Damaged, ValueError, RecursionError):
        pass
    return data.decode("utf-8", "surrogateescape")


def pack_lines(
    experiment: Mapping[str, Any], folders: Iterable[tuple[str, Mapping[str, Any]]], facts: Mapping[str, Any]
) -> bytes:
    """A packed file's bytes: the experiment's files, then each folder's, by the names they have; ``facts`` go first."""
    rows = [json.dumps({"folder": folder, "files": files}, allow_nan=False) for folder, files in folders]
    head = unsealed({"format": FORMAT, "folders": len(rows), **facts, "files": experiment})
    return seal("".join(f"{row}\n" for row in (json.dumps(head, allow_nan=False), *rows)).encode())


class PackedFile:
    """A packed file, whose lines are read as they are asked for.

    Attributes:
        folders: by name, the line of each; the last one asked for is kept as it was read.
        gaps: what of the file cannot be told apart: where, and why.

    Raises ``UserError`` where no line of it is one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: dict[str, int] = {}
        self.gaps: list[tuple[str, str]] = []
        self._lines = self._read()
        self._last: tuple[str, dict[str, Any]] = "\0", {}
        for number, line in enumerate(self._lines[1:], 1):
            found = _FOLDER.match(line)
            name = _text(found[1]) if found is not None else None
            if not name:
                self._gap(number, "names no cell: truncated or edited")
            elif name in self.folders:
                self._gap(number, f"holds {name} a second time")
            else:
                self.folders[name] = number
        self._check_head()

    def _read(self) -> list[bytes]:
        try:
            check_regular(self.path)
            if self.path.stat().st_size > MOST_BYTES:
                raise UserError(f"{self.path}: larger than {MOST_BYTES // 2**20} MiB: this is no packed results file")
            data = self.path.read_bytes()
        except Damaged as error:
            raise UserError(f"{self.path}: {error}") from error
        lines = data.split(b"\n")
        return lines if lines[-1] else lines[:-1]

    def _check_head(self) -> None:
        try:
            head = self._parsed(0)
            known = head.get("format") == FORMAT
        except Damaged as error:
            known, head = bool(self.folders), {}
            self.gaps.insert(0, (f"{self.path.name}, line 1", str(error)))
        if not known:
            raise UserError(
                f"{self.path}: no results here: give the --out of a run, or a file that ldbench pack made of one"
            )
        if head:
            try:
                check_schema(head.get("schema_version"))
            except Damaged as error:
                raise UserError(f"{self.path}: {error}") from error
        told = head.get("folders")
        if isinstance(told, int) and told > len(self._lines) - 1:
            self.gaps.append(
                (self.path.name, f"ends early: {told - len(self._lines) + 1} of its {told} folders are missing")
            )

    def _gap(self, number: int, reason: str) -> None:
        self.gaps.append((f"{self.path.name}, line {number + 1}", reason))

    def check(self) -> None:
        """Raises ``Damaged`` unless the whole file is as it was written."""
        check_schema(self._parsed(0).get("schema_version"))
        check(b"".join(line + b"\n" for line in self._lines))

    def contents(self, folder: str) -> Mapping[str, Any]:
        """The files of a folder, of "" those of the experiment, each as ``file_bytes`` takes it. Raises ``Damaged``."""
        if self._last[0] != folder:
            number = self.folders.get(folder, 0)
            if number == 0 and folder:
                return {}
            try:
                files = self._parsed(number).get("files")
            except Damaged as error:
                raise Damaged(f"line {number + 1} of {self.path.name} {error}") from error
            self._last = folder, files if isinstance(files, dict) else {}
        return self._last[1]

    def _parsed(self, number: int) -> dict[str, Any]:
        if number >= len(self._lines):
            raise Damaged("is empty")
        if len(self._lines[number]) > MAX_BYTES:
            raise Damaged(f"is larger than {MAX_BYTES // 2**20} MiB")
        return parse(self._lines[number])


def _text(quoted: bytes) -> str | None:
    try:
        found: str = json.loads(quoted)
    except ValueError:
        return None
    return found
