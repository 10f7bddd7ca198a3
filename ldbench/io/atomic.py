"""Whole files or none: temporary file, flush to disk, rename, flush of the folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PART = ".part"


@contextlib.contextmanager
def replacing(path: Path, flushed: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and goes when it does not.

    After the block the new content is on disk (as far as the disk tells the truth): a power cut leaves the old file or
    the new one, never a mixture. Without ``flushed`` that holds for the end of the process alone, and costs next to
    nothing. Raises ``OSError``, such as a full disk, with the old file in place.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if flushed:
            flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flushed:
        flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file's content, or a folder's names, to disk. Raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, flushed: bool = True) -> None:
    """Write a whole file or none of it. Raises ``OSError``."""
    with replacing(path, flushed) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or none of it. Raises ``OSError``."""
    write_bytes(path, text.encode())


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half written. Nobody may be writing to ``folder``."""
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)
