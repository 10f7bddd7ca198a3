"""The lab's folder: one summary and one archive, both whole at any time, beside the work of a call that runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUMMARY, ARCHIVE, WORK, SCRATCH = "lab.json", "lab.tar.gz", "work", "scratch"
MOST_SUMMARY, MOST_ARCHIVE = 280_000, 15 * 2**20  # bytes
# Weights, checkpoints and stores are large, and what they were for stands in the records.
LEFT_OUT = (".safetensors", ".lock", ".part", ".bin", ".mmap", ".store")


class Busy(Exception):
    """Another call works in the folder."""


class Folder:
    """A folder that ends up with ``lab.json`` and ``lab.tar.gz`` and nothing else.

    Attributes:
        work: where the parts write, beside ``work/scratch`` for what nobody keeps.
        state: what ``lab.json`` says beside the findings of the parts.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.work, self.scratch = path, path / WORK, path / WORK / SCRATCH
        self.state: dict[str, Any] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Folder]:
        """Take up what earlier calls left, and leave the two files behind, however the block ends.

        Raises ``Busy`` where another call has it open.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another call works in {self.path}") from None
            self._begin()
            try:
                yield self
            finally:
                self.write()
                shutil.rmtree(self.work)
        finally:
            os.close(handle)

    def _begin(self) -> None:
        summary, archive = self.path / SUMMARY, self.path / ARCHIVE
        for path in self.path.glob(".lab.*"):
            path.unlink()
        results: dict[str, Any] = {}
        if summary.exists():
            self.state = json.loads(summary.read_text())
            results = self.state.pop("results", {})
        if not self.work.exists() and archive.exists():  # the work of a call that was killed is newer than its archive
            with tarfile.open(archive) as packed:
                packed.extractall(self.work, filter="data")
        self.scratch.mkdir(parents=True, exist_ok=True)
        for name, found in results.items():  # where the summary was brought back alone
            if not self.result(name).exists() and "left_out" not in found:
                self.result(name).write_text(json.dumps(found))

    def result(self, name: str) -> Path:
        """Where a part writes its findings."""
        return self.work / f"{name}.json"

    def log(self, name: str) -> Path:
        """What a part prints."""
        return self.work / f"{name}.log"

    def findings(self, name: str) -> dict[str, Any] | None:
        """What a part has written so far; None for nothing, or nothing whole."""
        try:
            found = json.loads(self.result(name).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self) -> None:
        """Write the summary, and pack everything that is worth keeping."""
        text = json.dumps(self.state | {"results": self._results()}, indent=1) + "\n"
        with self._replacing(SUMMARY) as path:
            path.write_text(text)
        with self._replacing(ARCHIVE) as path:
            self._pack(path, everything=True)
            if path.stat().st_size > MOST_ARCHIVE:
                self._pack(path, everything=False)

    def _results(self) -> dict[str, Any]:
        """Findings by part; the largest of them stay behind, named, where all are too large together."""
        found = {name: self.findings(name) for name in self.state.get("parts", {})}
        found = {name: value for name, value in found.items() if value is not None}
        sizes = {name: len(json.dumps(value, indent=1)) for name, value in found.items()}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if sum(sizes.values()) <= MOST_SUMMARY:
                break
            found[name] = {"left_out": f"{sizes.pop(name)} bytes; see {name}.json in {ARCHIVE}"}
        return found

    def _pack(self, path: Path, *, everything: bool) -> None:
        """The work as an archive; without ``everything`` the parts' own files alone."""

        def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = Path(entry.name)
            if name.parts[:1] == (SCRATCH,) or name.suffix in LEFT_OUT or name.name.startswith(".lock"):
                return None
            if not everything and len(name.parts) > 1:
                return None
            return entry if entry.isfile() or entry.isdir() else None

        with tarfile.open(path, "w:gz", compresslevel=6) as packed:
            for entry in sorted(self.work.iterdir()):
                packed.add(entry, arcname=entry.name, filter=kept)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self.path / f".{name}"
        yield path
        path.replace(self.path / name)


def counted(states: Mapping[str, Mapping[str, Any]]) -> int:
    """Exit code of a call: 1 where a part failed, 3 where something is left for another call, else 0."""
    kinds = {entry["state"] for entry in states.values()}
    return 1 if "failed" in kinds else 3 if kinds & {"partial", "skipped"} else 0
