"""Runs cells one after another: skips finished ones, records failed ones, goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import errno
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ldbench.errors import UserError
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.config import Cell
from ldbench.io.checksums import SCHEMA_VERSION, write_sealed, write_sealed_lines
from ldbench.io.locks import FolderLock
from ldbench.io.tensors import save_model
from ldbench.policies.registry import replay_source
from ldbench.records.cell_files import read_json
from ldbench.records.environment import environment
from ldbench.records.integrity import cell_problems, mend_cell
from ldbench.records.plan_file import Outcome
from ldbench.runner.preparation import Preparation
from ldbench.runner.work_queue import WorkQueue
from ldbench.training.checkpointing import HEARTBEAT, Checkpointer
from ldbench.training.interrupts import StopRequest
from ldbench.training.loop import run_cell

# No cell could leave anything behind: the run ends instead of failing one cell after the other.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Progress(Protocol):
    """Where a run tells how far it is."""

    def note(self, text: str) -> None:
        """A line worth keeping."""
        ...

    def cell_started(self, cell: Cell, number: int, total: int, later: Sequence[Cell], trying: str = "") -> None:
        """A cell begins; ``number`` counts from 1, ``later`` are those this process may run after it. ``trying``: the
        values that it tries, where it is a run of the tuning.
        """
        ...

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over."""
        ...

    def cell_ended(self, result: dict[str, Any]) -> None:
        """A cell is over, whatever its status."""
        ...


class CellRuns:
    """One process's share of a list of cells.

    Args:
        place: the folder whose "cells" they are.
        planned: all of them.
        trying: the values that a cell tries, in words, by its name; for the runs of a tuning.
        after: cells that are run when these are over, for the time that is left.
        before: the runs that these cells' values were chosen by.
    """

    def __init__(
        self,
        place: Path,
        planned: Sequence[Cell],
        preparation: Preparation,
        progress: Progress,
        stop: StopRequest,
        trying: Mapping[str, str] | None = None,
        after: Sequence[Cell] = (),
        before: CellRuns | None = None,
    ) -> None:
        self.place, self.preparation, self.progress, self.stop = place, preparation, progress, stop
        self.experiment, self.trying, self.after = preparation.experiment, trying or {}, after
        datasets = list(dict.fromkeys(cell.dataset for cell in planned))
        self.planned = sorted(planned, key=lambda cell: datasets.index(cell.dataset))  # a data set stays resident
        self.found: dict[str, Any] = {cell.cell_id: self._status(cell) for cell in planned}
        self.todo = [cell for cell in self.planned if self.found[cell.cell_id][0] not in ("finished", "diverged")]
        self.elsewhere: set[str] = set()
        self.declared = claims_digest(preparation.experiment)
        self.before = before

    def folder(self, cell: Cell) -> Path:
        """Where a cell's files lie."""
        return self.place / "cells" / cell.cell_id

    def _status(self, cell: Cell) -> tuple[str | None, str | None, str | None]:
        """Status, time and data of a cell's result; None where there is none, or where a file beside it is damaged."""
        folder = self.folder(cell)
        result = read_json(folder / "result.json")
        if result is None or next(cell_problems(folder, tensors=False), None) is not None:
            return None, None, None
        return result.get("status"), result.get("finished_at"), result.get("data_fingerprint")

    def _done(self, cell: Cell) -> bool:
        """Whether the cell needs no running: finished, or tried by another process since this one began."""
        status, when, _ = self._status(cell)
        before = self.found[cell.cell_id]
        done = status in ("finished", "diverged") or (status is not None and when != before[1])
        if done:
            self.elsewhere.add(cell.cell_id)
        return done

    def all_cells(self) -> Outcome:
        """Run what is left; returns the counts."""
        self._tidy()
        counts = {"finished": 0, "diverged": 0, "failed": 0}
        number = {cell.cell_id: i for i, cell in enumerate(self.planned, 1)}
        own: set[str] = set()
        queue = WorkQueue(
            self.place, self.todo, lambda cell: cell.cell_id in own or self._done(cell), self.progress.note
        )
        for cell in queue:
            own.add(cell.cell_id)
            self._refuse_other_data(cell)
            later = [other for other in self.todo if other.cell_id not in own | self.elsewhere]
            told = number[cell.cell_id], len(self.planned), [*later, *self.after]
            self.progress.cell_started(cell, *told, self.trying.get(cell.cell_id, ""))
            result = self._run_one(cell)
            counts[result["status"]] += 1
            self.progress.cell_ended(result)
        return Outcome(**counts, skipped=len(self.planned) - len(self.todo), elsewhere=len(self.elsewhere))

    def _tidy(self) -> None:
        """Delete what a process left that was killed between a cell's result and the deletion of its checkpoint."""
        for cell in self.planned:
            folder = self.folder(cell)
            lock = FolderLock(folder)
            if cell not in self.todo and (folder / HEARTBEAT).exists() and lock.acquire():
                Checkpointer(folder).clear()
                lock.release()

    def _refuse_other_data(self, cell: Cell) -> None:
        """Results over different data must never be compared: raises ``UserError`` when the files changed between
        runs.
        """
        now = self.preparation.data(cell).dataset.fingerprint
        for runs in (self, *([self.before] if self.before is not None else [])):
            for other in runs.planned:
                status, _, seen = runs.found[other.cell_id]
                if (other.dataset, other.image_size) != (cell.dataset, cell.image_size):
                    continue  # images of another size are other pixels of the same files
                if status in ("finished", "diverged") and seen not in (None, now):
                    raise UserError(
                        f"{cell.dataset}: its files have changed since {other.cell_id} was run in {runs.place}; "
                        "restore them, or choose another --out"
                    )

    def _checkpointer(self, folder: Path) -> Checkpointer:
        return Checkpointer(folder, self.stop, self.experiment.checkpoint_minutes, self.progress.note)

    def _run_one(self, cell: Cell) -> dict[str, Any]:
        folder = self.folder(cell)
        mend_cell(folder, self.progress.note)  # now that the lock is held
        checkpointer = self._checkpointer(folder)
        result = self._train(cell, folder, checkpointer)
        result["claims_sha256"] = self.declared
        result["finished_at"] = datetime.now(UTC).isoformat(timespec="microseconds")
        write_sealed(folder / "result.json", result)
        if result["status"] != "failed":
            checkpointer.clear()
        return result

    def _train(self, cell: Cell, folder: Path, checkpointer: Checkpointer) -> dict[str, Any]:
        data = self.preparation.data(cell).dataset
        config = dataclasses.asdict(cell)
        config |= {"channels": data.channels, "classes": data.classes, "image_size": data.image_size}
        write_sealed(folder / "config.json", config)

        def on_epoch(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
            try:
                write_sealed_lines(folder / "epochs.jsonl", rows)
            except OSError as error:  # the next epoch tries again
                checkpointer.tell(row["step"], f"epochs.jsonl not written: {error.strerror}")
            self.progress.epoch(row)

        try:
            run = run_cell(
                cell,
                self.preparation.data(cell),
                self.preparation.costs(cell),
                folder,
                device=self.preparation.device,
                replay=self._recorded_drops(cell),
                on_epoch=on_epoch,
                checkpointer=checkpointer,
                initial=self.preparation.initial(cell, self._checkpointer),
            )
        except Exception as error:  # a failed cell is recorded with its error and the others go on
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            return self._failure(cell, error) | checkpointer.account() | {"incidents": checkpointer.incidents}
        write_sealed_lines(folder / "epochs.jsonl", run.epochs)
        write_sealed_lines(folder / "scores.jsonl", run.scores)
        wanted = cell.save_model == "final" and not self.trying  # nobody reads the weights of a tuning's runs
        if wanted and run.result["status"] == "finished":
            save_model(run.model, folder / "model.safetensors")
        return run.result

    def _failure(self, cell: Cell, error: Exception) -> dict[str, Any]:
        text = " ".join(str(error).split()) or type(error).__name__
        return {
            "schema_version": SCHEMA_VERSION,
            "cell_id": cell.cell_id,
            "model": cell.model,
            "dataset": cell.dataset,
            "scenario": cell.scenario,
            "method": cell.method,
            "budget": cell.budget,
            "seed": cell.seed,
            "status": "failed",
            "error": text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
            "traceback": None if isinstance(error, UserError) else "".join(traceback.format_exception(error)),
            "environment": environment(self.preparation.device),
        }

    def _recorded_drops(self, cell: Cell) -> list[tuple[int, int, bool]] | None:
        source = replay_source(cell.method)
        if source is None:
            return None
        origin = next(c for c in self.planned if c.method == source and c.place == cell.place)
        recorded = read_json(self.folder(origin) / "result.json")
        if recorded is None or recorded.get("status") != "finished":
            raise UserError(f"{cell.method} repeats the drops of {source} for seed {cell.seed}, which did not finish")
        return [(drop["step"], drop["cut"], drop.get("at_chunk_end", False)) for drop in recorded["drops"]]
