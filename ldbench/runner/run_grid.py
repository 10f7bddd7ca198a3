"""Runs an experiment: first what its values are chosen by, where they are to be tuned, then its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldbench.devices import resolve_device
from ldbench.errors import UserError
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.tuning import stand_ins, tuning_groups, tuning_runs, values_text, with_values
from ldbench.io.checksums import write_sealed
from ldbench.records.cell_files import check_place, open_results
from ldbench.records.plan_file import Outcome, write_plan
from ldbench.records.tuning import RUNS
from ldbench.runner.cell_runs import CellRuns, Progress
from ldbench.runner.plan import check_plan, plan
from ldbench.runner.preparation import Preparation
from ldbench.runner.tuning import chosen_values, record_choices
from ldbench.training.interrupts import StopRequest


def run_experiment(experiment: Experiment, out: Path, progress: Progress) -> Outcome:
    """Run every cell that is not finished yet and write its folder.

    Other processes may do the same in the same folder: each cell is run by one of them.

    Raises:
        UserError: before anything runs; when nothing that was tried for a method can be chosen; or when results cannot
            be written any more.
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
        preparation = Preparation(experiment, out, device, progress.note)

        def runs(cells: Sequence[Cell], before: CellRuns | None = None) -> CellRuns:
            return CellRuns(out, cells, preparation, progress, stop, before=before)

        try:
            groups = tuning_groups(experiment, planned, preparation.epoch_lengths)
            tried = tuning_runs(groups)
            run = None if groups else runs(planned)
            if run is None or run.todo:
                check_plan([*(cell for cell, _ in tried), *stand_ins(planned, groups)], preparation)
        except UserError:
            _remove_empty([out / "cells", *made])  # leave nothing behind where nothing was run
            raise
        try:
            digest = claims_digest(experiment)
            declared = {} if digest is None else {"claims_sha256": digest}
            write_sealed(out / "experiment.json", experiment.to_dict() | declared)
            made_now, entries = 0, list[dict[str, Any]]()
            if run is None:
                words = {cell.cell_id: values_text(values) for cell, values in tried}
                trials = CellRuns(
                    out / RUNS, [cell for cell, _ in tried], preparation, progress, stop, words, after=planned
                )
                if trials.todo:
                    progress.note(
                        f"tuning by validation images: {len(trials.todo)} of {len(tried)} runs are to be made"
                    )
                outcome = trials.all_cells()
                made_now = outcome.finished + outcome.diverged + outcome.failed
                entries = record_choices(out, experiment, groups, planned, progress.note)
                run = runs(with_values(planned, chosen_values(entries)), trials)
            write_plan(out, experiment, [c.cell_id for c in run.planned], [c.cell_id for c, _ in tried], entries)
            return dataclasses.replace(run.all_cells(), tuning=made_now)
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
