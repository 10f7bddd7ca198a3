"""What a run would do, told before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldbench.cli.progress import cell_title
from ldbench.errors import UserError
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.tuning import (
    stand_ins,
    tuned_keys,
    tuned_like,
    tuning_groups,
    tuning_runs,
    values_text,
    with_values,
)

if TYPE_CHECKING:
    from ldbench.experiment.tuning import Group, Variant

MOST_LISTED = 1000  # cells that are listed one by one


def show_plan(screen: Console, experiment: Experiment, out: Path, *, as_json: bool) -> int:
    """What would run, checked as far as it can be without training."""
    from ldbench.devices import resolve_device
    from ldbench.io.places import scratch_folder
    from ldbench.records.cell_files import check_place
    from ldbench.runner.plan import check_plan, plan
    from ldbench.runner.preparation import Preparation

    planned = plan(experiment)
    groups: list[Group] = []
    with scratch_folder() as folder:
        preparation = Preparation(experiment, folder, resolve_device(experiment.device))
        problem = None
        try:
            check_place(out, "results")
            groups = tuning_groups(experiment, planned, preparation.epoch_lengths)
            check_plan([*(cell for cell, _ in tuning_runs(groups)), *stand_ins(planned, groups)], preparation)
        except UserError as error:  # the plan is shown all the same, then what would stop it
            problem = error
    rows = _rows(experiment, planned, groups, out)
    if as_json:
        print(json.dumps({"out": str(out), "cells": rows, "problem": None if problem is None else str(problem)}))
        if problem is not None:
            raise problem
        return 0
    screen.print(_cell_by_cell(rows) if len(rows) <= MOST_LISTED else _in_groups(rows))
    runs = sum(row["tuning"] for row in rows)
    counted = f"{runs} tuning runs and {len(rows) - runs} cells" if runs else f"{len(rows)} cells"
    screen.print(f"{counted}, results would go to {out}", markup=False, soft_wrap=True)
    if problem is not None:
        raise problem
    return 0


def _rows(experiment: Experiment, planned: list[Cell], groups: list[Group], out: Path) -> list[dict[str, Any]]:
    """The runs of the tuning and the experiment's own cells, in the order in which they would be made."""
    from ldbench.records.cell_files import finished
    from ldbench.records.tuning import RUNS

    rows = []
    for cell, values in tuning_runs(groups):
        done = finished(out / RUNS / "cells" / cell.cell_id)
        title = f"{cell_title(cell.method, cell.budget)}, tuning {values_text(values)}"
        rows.append(_row(cell, title, done) | {"tuning": True})
    chosen = _chosen(groups, out)
    for cell in with_values(planned, chosen):
        title, taken = cell_title(cell.method, cell.budget), chosen.get(tuned_like(cell))
        source = next((c for c in planned if c.method == tuned_like(cell)[3]), cell)
        keys = tuned_keys(experiment, source)
        if taken:
            title += f", {values_text(taken)}"
        elif keys:
            title += f", {' and '.join(keys)} to be tuned"
        open_ = bool(keys) and not taken
        row = _row(cell, title, not open_ and finished(out / "cells" / cell.cell_id))
        rows.append(row | {"tuning": False} | ({"cell_id": None} if open_ else {}))
    return rows


def _chosen(groups: list[Group], out: Path) -> dict[Variant, dict[str, Any]]:
    """The values of those groups all of whose runs are finished."""
    from ldbench.records.cell_files import finished
    from ldbench.records.tuning import RUNS
    from ldbench.runner.tuning import choice, chosen_values

    runs = out / RUNS / "cells"
    over = [g for g in groups if all(finished(runs / cell.cell_id) for trial in g.trials for cell in trial.cells)]
    entries = [choice(out, group) for group in over]
    return chosen_values([entry for entry in entries if entry is not None])


def _cell_by_cell(rows: list[dict[str, Any]]) -> Table:
    table = Table("cell", "model", "data set", "scenario", "method", "seed", "epochs", "state", box=None)
    for number, row in enumerate(rows, 1):
        state = "finished" if row["finished"] else "to run"
        named = (escape(row[key]) for key in ("model", "dataset", "scenario", "title"))
        table.add_row(str(number), *named, str(row["seed"]), str(row["epochs"]), state)
    return table


def _in_groups(rows: list[dict[str, Any]]) -> Table:
    """A line per comparison, for a grid too long to be read cell by cell (``--json`` lists every one); what is tried
    for it on a line of its own.
    """
    table = Table("model", "data set", "scenario", "methods and budgets", "seeds", "cells", "finished", box=None)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        scenario = f"{row['scenario']}, tuning" if row["tuning"] else row["scenario"]
        groups.setdefault((row["model"], row["dataset"], scenario), []).append(row)
    for place, some in groups.items():
        variants = {(row["method"], row["budget"]) for row in some}
        counts = len(variants), len({row["seed"] for row in some}), len(some)
        table.add_row(*map(escape, place), *map(str, counts), str(sum(row["finished"] for row in some)))
    return table


def _row(cell: Cell, title: str, done: bool) -> dict[str, Any]:
    row = {name: getattr(cell, name) for name in ("cell_id", "model", "dataset", "scenario", "method")}
    row |= {"title": title}
    row |= {name: getattr(cell, name) for name in ("budget", "seed", "epochs")}
    return row | {"finished": done}
