"""Files that carry schema version and checksum: the SHA-256 of their own bytes, its own 64 digits read as zeros.

One rule for JSON objects, JSON lines (the seal is the first line) and safetensors (it stands in the header's metadata),
so that any reader can check any file without knowing what it holds. A checksum finds damage and careless edits; it's no
signature.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ldbench.errors import one_line
from ldbench.io.atomic import write_bytes

SCHEMA_VERSION = 1
MOST_DEPTH = 50  # of nested objects and lists; honest files have about 5
MAX_BYTES = 64 * 2**20  # no honest JSON file of a cell comes near this; a larger one would only eat the memory
ZEROS = "0" * 64
_BLANK = {"sha256": ZEROS, "schema_version": SCHEMA_VERSION}
_SEAL = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')  # quotes in JSON text are escaped: only a key of its own matches
HEAD_BYTES = 100 * 2**20  # the most a safetensors header may take
_CHUNK = 2**22


class Damaged(Exception):
    """A file that cannot be used; the message is the reason, for people."""


def check_schema(version: Any) -> None:
    """Raises ``Damaged`` unless this ldbench reads files of schema ``version``."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged(f"schema_version is {version!r}"[:200])
    if version > SCHEMA_VERSION:
        raise Damaged(f"written by a newer ldbench (schema {version}; this one reads up to {SCHEMA_VERSION})"[:200])


def _place(head: bytes) -> tuple[int, str]:
    found = _SEAL.search(head)
    if found is None:
        raise Damaged("has no checksum")
    return found.start(1), found[1].decode()


def seal(data: bytes) -> bytes:
    """``data`` with its checksum in the place that holds ``ZEROS``."""
    start, zeros = _place(data)
    assert zeros == ZEROS, "sealed already"
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + 64 :]


def check(data: bytes) -> None:
    """Raises ``Damaged`` unless ``data`` matches the checksum within it."""
    start, told = _place(data)
    if hashlib.sha256(data[:start] + ZEROS.encode() + data[start + 64 :]).hexdigest() != told:
        raise Damaged("does not match its checksum: truncated or edited")


def seal_file(path: Path) -> None:
    """Put the checksum into a file that holds ``ZEROS``; for files too large to hold in memory twice."""
    start, _, digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(digest.encode())


def check_file(path: Path) -> None:
    """Raises ``Damaged`` unless the file matches the checksum within it. Reads in pieces of 4 MiB."""
    check_regular(path)
    try:
        _, told, digest = _digest(path)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error
    if digest != told:
        raise Damaged("does not match its checksum: truncated or edited")


def _digest(path: Path) -> tuple[int, str, str]:
    """Where the checksum stands, what it says, and what the content gives."""
    with path.open("rb") as file:
        size = min(8 + int.from_bytes(file.read(8), "little"), HEAD_BYTES)
        file.seek(0)
        head = file.read(size)
        start, told = _place(head)
        digest = hashlib.sha256(head[:start] + ZEROS.encode() + head[start + 64 :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return start, told, digest.hexdigest()


def plain(value: Any) -> Any:
    """JSON-ready: tuples become lists, numbers that are not finite become None (JSON has no NaN)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with schema version, and with a place for its checksum."""
    return {**_BLANK, **{key: item for key, item in value.items() if key not in _BLANK}}


def sealed_bytes(value: Mapping[str, Any]) -> bytes:
    """An object as readable JSON with schema version and checksum."""
    return seal((json.dumps(plain(unsealed(value)), indent=1, allow_nan=False) + "\n").encode())


def write_sealed(path: Path, value: Mapping[str, Any], flushed: bool = True) -> None:
    """Write an object as ``sealed_bytes``, atomically. Raises ``OSError``."""
    write_bytes(path, sealed_bytes(value), flushed)


def write_sealed_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line below a line with schema version and checksum, atomically. Raises ``OSError``."""
    lines = [_BLANK, *map(plain, rows)]
    write_bytes(path, seal("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()))


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, checksum not looked at. Raises ``Damaged``."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise Damaged("holds no JSON object")
    if data.count(b"{") + data.count(b"[") > MOST_DEPTH:  # fewer cannot be nested deeper, and counting is quick
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Whoever walks a value does so recursively: a nesting that just about parses would end them."""
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > MOST_DEPTH:
            raise Damaged(f"nested deeper than {MOST_DEPTH} levels")
        items = (item for held in level for item in (held.values() if isinstance(held, dict) else held))
        level = [item for item in items if isinstance(item, (dict, list))]


def check_regular(path: Path) -> None:
    """Raises ``Damaged`` for a folder, a pipe (reading one would wait for ever) or a link that leads nowhere."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged("is no file")
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error


def present(path: Path) -> bool:
    """Whether anything has that name, be it a link that leads nowhere. Raises ``Damaged`` where that cannot be told."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error
    return True


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises ``Damaged`` when it cannot be read or is larger than ``MAX_BYTES``."""
    check_regular(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"larger than {MAX_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error


def read_sealed(path: Path) -> dict[str, Any]:
    """The object in a file of ``write_sealed``. Raises ``Damaged``: unreadable, newer schema, truncated or edited."""
    return parse_sealed(read_bytes(path))


def parse_sealed(data: bytes) -> dict[str, Any]:
    """The object in ``sealed_bytes``. Raises ``Damaged``: unreadable, newer schema, truncated or edited."""
    value = parse(data)
    check_schema(value.get("schema_version"))
    check(data)
    return value


def check_lines(data: bytes) -> None:
    """Raises ``Damaged`` unless ``data`` is a whole file of ``write_sealed_lines``."""
    check_schema(parse(data.partition(b"\n")[0]).get("schema_version"))
    check(data)


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing reads it and nobody loses it; returns its new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def read_or_set_aside(path: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The object in a sealed file; None without one, or where it is damaged: then it is set aside and ``note`` told."""
    if not path.exists():
        return None
    try:
        return read_sealed(path)
    except Damaged as reason:
        note(f"{path}: {reason}; set aside as {set_aside(path).name}")
        return None
