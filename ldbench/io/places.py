"""Folders of the machine's own: a home folder, and one for what is temporary. Either may be missing."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldbench.errors import UserError, one_line


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced by a home folder. Raises ``UserError`` where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry for the user, as in some containers
        raise UserError(f"{path}: no home folder is known for ~: write the whole path, or set HOME") from error


def temporary_folder() -> Path:
    """A new, empty folder among the machine's temporary files, which the caller removes.

    Raises:
        UserError: none can be made there, or nothing written into it; one line names the place.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="ldbench-"))
        trial = folder / "trial"
        trial.write_bytes(bytes(2**12))
        trial.unlink()
    except OSError as error:
        raise _full(folder or tempfile.tempdir, error) from error
    return folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A ``temporary_folder`` for the block alone. Raises ``UserError``, also where the block fills its disk."""
    folder = temporary_folder()
    try:
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, error) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _full(folder: object, error: OSError) -> UserError:
    what = error.strerror or one_line(error)
    where = folder or "the folder for temporary files"
    return UserError(f"{where} takes no files ({what}): make room there, or set TMPDIR to a folder that has some")
