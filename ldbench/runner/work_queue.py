"""Which cell comes next when other processes may be working on the same results folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ldbench.experiment.config import Cell
from ldbench.io.locks import FolderLock, NoLocks
from ldbench.policies.registry import replay_source

POLL_SECONDS = 1.0


class WorkQueue:
    """Hands out cells one by one, locked; those that somebody else is running come last, when their owner is done or
    dead.

    Args:
        out: the results folder.
        cells: in the order wanted.
        done: whether a cell needs no running any more; asked again once its lock is held.
        note: told who is waited for.
        sleep: waits between two looks at busy cells.
    """

    def __init__(
        self,
        out: Path,
        cells: Sequence[Cell],
        done: Callable[[Cell], bool],
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.out, self.cells, self.done, self.note, self._sleep = out, list(cells), done, note, sleep
        self._unlocked = self._told = False

    def __iter__(self) -> Iterator[Cell]:
        """Every cell that is this process's to run, its lock held until the next one is asked for."""
        waiting = self.cells
        while waiting:
            busy: list[Cell] = []
            for cell in waiting:
                if self.done(cell):
                    continue
                lock = None if self._needs_one_of(cell, busy) else self._lock(cell)
                if lock is None:
                    busy.append(cell)
                    continue
                try:
                    if not self.done(cell):
                        yield cell
                finally:
                    lock.release()
            if len(busy) == len(waiting):
                self._wait(busy)
            waiting = busy

    def _needs_one_of(self, cell: Cell, busy: Sequence[Cell]) -> bool:
        """Whether the cell repeats the drops of one that is being run elsewhere."""
        source = replay_source(cell.method)
        return source is not None and any(c.method == source and c.place == cell.place for c in busy)

    def _lock(self, cell: Cell) -> FolderLock | None:
        lock = FolderLock(self.out / "cells" / cell.cell_id)
        try:
            return lock if lock.acquire() else None
        except NoLocks as problem:
            if not self._unlocked:
                self.note(str(problem))
                self._unlocked = True
            return lock

    def _wait(self, busy: Sequence[Cell]) -> None:
        if not self._told:
            owner = FolderLock(self.out / "cells" / busy[0].cell_id).owner()
            self.note(
                f"{len(busy)} cells are being run by others (the first by {owner}): waiting; Ctrl-C leaves them to it"
            )
            self._told = True
        self._sleep(POLL_SECONDS)
