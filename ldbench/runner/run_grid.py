"""Runs the cells of an experiment one after another: skips finished ones, records failed ones, goes on where it was
stopped.
"""

from __future__ import annotations

import dataclasses
import errno
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ldbench.devices import resolve_device
from ldbench.errors import UserError
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.config import Cell, Experiment
from ldbench.io.checksums import SCHEMA_VERSION, write_sealed, write_sealed_lines
from ldbench.io.locks import FolderLock
from ldbench.io.tensors import save_model
from ldbench.policies.registry import replay_source
from ldbench.records.cell_files import check_place, open_results, read_json
from ldbench.records.environment import environment
from ldbench.records.integrity import cell_problems, mend_cell
from ldbench.records.plan_file import Outcome, write_plan
from ldbench.runner.plan import check_plan, plan
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

    def cell_started(self, cell: Cell, number: int, total: int, later: Sequence[Cell]) -> None:
        """A cell begins; ``number`` counts from 1, ``later`` are those this process may run after it."""
        ...

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over."""
        ...

    def cell_ended(self, result: dict[str, Any]) -> None:
        """A cell is over, whatever its status."""
        ...


def run_experiment(experiment: Experiment, out: Path, progress: Progress) -> Outcome:
    """Run every cell that is not finished yet and write its folder.

    Other processes may do the same in the same folder: each cell is run by one of them.

    Raises:
        UserError: before anything runs; or when results cannot be written any more.
        Interrupted: SIGINT or SIGTERM came; the same command goes on.
    """
    planned = plan(experiment)
    device = resolve_device(experiment.device)
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    check_place(out, "results")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    open_results(out)
    stop = StopRequest()
    with stop.listening():
        run = _Run(experiment, out, planned, device, progress, stop)
        try:
            if run.todo:
                check_plan(planned, run.preparation)
        except UserError:
            _remove_empty([out / "cells", *made])  # leave nothing behind where nothing was run
            raise
        try:
            return run.all_cells()
        except OSError as error:
            raise UserError(
                f"results cannot be written to {out}: {error.strerror or error}; "
                "put that right and run the same command again, it goes on from the last checkpoint"
            ) from error


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # somebody else has begun to use it
            return


class _Run:
    """One process's share of an experiment."""

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        planned: Sequence[Cell],
        device: torch.device,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.experiment, self.out, self.progress, self.stop = experiment, out, progress, stop
        datasets = list(dict.fromkeys(cell.dataset for cell in planned))
        self.planned = sorted(planned, key=lambda cell: datasets.index(cell.dataset))  # a data set stays resident
        self.preparation = Preparation(experiment, out, device, progress.note)
        self.found: dict[str, Any] = {cell.cell_id: self._status(cell) for cell in planned}
        self.todo = [cell for cell in self.planned if self.found[cell.cell_id][0] not in ("finished", "diverged")]
        self.elsewhere: set[str] = set()
        self.declared = claims_digest(experiment)

    def folder(self, cell: Cell) -> Path:
        """Where a cell's files lie."""
        return self.out / "cells" / cell.cell_id

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
        told = {} if self.declared is None else {"claims_sha256": self.declared}
        write_sealed(self.out / "experiment.json", self.experiment.to_dict() | told)
        write_plan(self.out, self.experiment, [cell.cell_id for cell in self.planned])
        counts = {"finished": 0, "diverged": 0, "failed": 0}
        number = {cell.cell_id: i for i, cell in enumerate(self.planned, 1)}
        own: set[str] = set()
        queue = WorkQueue(self.out, self.todo, lambda cell: cell.cell_id in own or self._done(cell), self.progress.note)
        for cell in queue:
            own.add(cell.cell_id)
            self._refuse_other_data(cell)
            later = [other for other in self.todo if other.cell_id not in own | self.elsewhere]
            self.progress.cell_started(cell, number[cell.cell_id], len(self.planned), later)
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
        now = self.preparation.data(cell.dataset).dataset.fingerprint
        for other in self.planned:
            status, _, seen = self.found[other.cell_id]
            if other.dataset == cell.dataset and status in ("finished", "diverged") and seen not in (None, now):
                raise UserError(
                    f"{cell.dataset}: its files have changed since {other.cell_id} was run in {self.out}; "
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
        data = self.preparation.data(cell.dataset).dataset
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
                self.preparation.data(cell.dataset),
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
        if cell.save_model == "final" and run.result["status"] == "finished":
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
