"""Where the records of an experiment lie: the results folder that a run wrote, or one packed file of it.

Whoever reads records asks for a file by its name within the results folder, such as ``cells/NAME/result.json``, and
gets its bytes from either. The bytes are the same, so that every checksum can be checked in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ldbench.errors import UserError
from ldbench.io.checksums import Damaged, present, read_bytes
from ldbench.records.packed import PackedFile, file_bytes


class Stored(Protocol):
    """The files of an experiment's records."""

    @property
    def path(self) -> Path:
        """The folder, or the packed file."""
        ...

    @property
    def name(self) -> str:
        """What the results are called."""
        ...

    @property
    def report_folder(self) -> Path:
        """Where their report goes."""
        ...

    def check(self) -> None:
        """Raises ``UserError`` where no results can be read here."""
        ...

    def gaps(self, thorough: bool = False) -> list[tuple[str, str]]:
        """What was here and belongs to no record that can be named: place and reason. ``thorough``: also whether all
        of it together is as it was written.
        """
        ...

    def cells(self, inside: str = "cells") -> list[str]:
        """The names of the folders in ``inside``, in order; none where it is not there. Raises ``OSError``."""
        ...

    def files(self, inside: str) -> list[str]:
        """The JSON files that lie in ``inside``, in order, by their names."""
        ...

    def present(self, name: str) -> bool:
        """Whether there is such a file, be it damaged. Raises ``Damaged`` where that cannot be told."""
        ...

    def read(self, name: str) -> bytes:
        """Its content. Raises ``Damaged``."""
        ...


class Folder:
    """A results folder, or any folder below one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """See ``Stored``."""
        return self.path.resolve().name

    @property
    def report_folder(self) -> Path:
        """See ``Stored``."""
        return self.path / "report"

    def check(self) -> None:
        """See ``Stored``."""
        cells = self.path / "cells"
        try:
            if cells.is_dir():
                next(cells.iterdir(), None)
                return
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; give the --out of a run") from error
        raise UserError(
            f"{self.path}: no results here (no folder {cells}); make some with: ldbench run --out {self.path}"
        )

    def gaps(self, thorough: bool = False) -> list[tuple[str, str]]:
        """See ``Stored``."""
        return []

    def cells(self, inside: str = "cells") -> list[str]:
        """See ``Stored``."""
        folder = self.path / inside
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def files(self, inside: str) -> list[str]:
        """See ``Stored``."""
        return sorted(f"{inside}/{path.name}" for path in (self.path / inside).glob("*.json"))

    def present(self, name: str) -> bool:
        """See ``Stored``."""
        return present(self.path / name)

    def read(self, name: str) -> bytes:
        """See ``Stored``."""
        return read_bytes(self.path / name)


class Packed:
    """A file of ``ldbench pack``; a line of it is read when its cell is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PackedFile(path)

    @property
    def name(self) -> str:
        """See ``Stored``."""
        return self.path.stem

    @property
    def report_folder(self) -> Path:
        """See ``Stored``."""
        return self.path.with_name(f"{self.path.stem}-report")

    def check(self) -> None:
        """See ``Stored``; what could not be read was refused when the file was opened."""

    def gaps(self, thorough: bool = False) -> list[tuple[str, str]]:
        """See ``Stored``."""
        try:
            if thorough:
                self._file.check()
        except Damaged as reason:
            return [(self.path.name, str(reason)), *self._file.gaps]
        return list(self._file.gaps)

    def cells(self, inside: str = "cells") -> list[str]:
        """See ``Stored``."""
        return sorted(name for folder, name in map(_parted, self._file.folders) if folder == inside)

    def files(self, inside: str) -> list[str]:
        """See ``Stored``."""
        names = self._file.contents("")
        return sorted(name for name in names if _parted(name)[0] == inside and name.endswith(".json"))

    def present(self, name: str) -> bool:
        """See ``Stored``; of a cell whose line cannot be read the result alone."""
        folder, file = self._place(name)
        try:
            return file in self._file.contents(folder)
        except Damaged:
            return file == "result.json"

    def read(self, name: str) -> bytes:
        """See ``Stored``."""
        folder, file = self._place(name)
        contents = self._file.contents(folder)
        if file not in contents:
            raise Damaged("is not in the packed file")
        return file_bytes(contents[file])

    def _place(self, name: str) -> tuple[str, str]:
        """The folder whose line holds a file, and what the file is called there."""
        folder, file = _parted(name)
        return (folder, file) if folder in self._file.folders else ("", name)


def _parted(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    return folder, last


Place = str | Path | Stored


def stored(place: Place) -> Stored:
    """What lies at a path: a packed file where it is a file, else a folder, which need not exist.

    Raises ``UserError`` for a file that holds no results.
    """
    if not isinstance(place, (str, Path)):
        return place
    path = Path(place)
    try:
        return Packed(path) if path.is_file() else Folder(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the --out of a run") from error
