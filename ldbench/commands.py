"""What the command line does once it is understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ldbench.config import Cell, Experiment
from ldbench.errors import UserError
from ldbench.progress import ConsoleProgress, cell_title


def console() -> Console:
    """Standard output; piped output is plain and not cut at 80 columns."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=160)


def run_command(experiment: Experiment, out: Path, *, dry_run: bool, quiet: bool, as_json: bool) -> int:
    """Run an experiment and tell about it. Exit code 0, or 1 when a cell failed or diverged."""
    from ldbench.record import plain
    from ldbench.report import load_results, print_table, write_report
    from ldbench.runner import run_experiment

    if dry_run:
        return _dry_run(experiment, out, as_json)
    screen = console()
    progress = ConsoleProgress(Console(stderr=True) if as_json else screen, quiet or as_json)
    outcome = run_experiment(experiment, out, progress)
    page = write_report(out)
    if as_json:
        rows = load_results(out).to_dict(orient="records")
        print(json.dumps(plain({"out": str(out), "report": str(page), "cells": _scalars(rows)})))
    else:
        print_table(screen, load_results(out))
        if outcome.skipped:
            progress.note(
                f"{outcome.skipped} cells were finished already in {out}; choose another --out to run them anew."
            )
        screen.print(f"Report: {page}", markup=False, soft_wrap=True)
    if outcome.failed or outcome.diverged:
        print(
            f"ldbench: {outcome.failed} cells failed and {outcome.diverged} diverged; see their result.json",
            file=sys.stderr,
        )
        return 1
    return 0


def _scalars(rows: list[dict[Any, Any]]) -> list[dict[str, Any]]:
    def known(value: Any) -> Any:
        if value is None or value != value:
            return None
        return value.item() if hasattr(value, "item") else value

    return [{str(k): known(v) for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]


def _dry_run(experiment: Experiment, out: Path, as_json: bool) -> int:
    """What would run: the cells, and FLOPs of full training where the data are at hand."""
    import tempfile

    from ldbench.record import finished
    from ldbench.runner import Preparation, check_plan, plan, resolve_device

    planned = plan(experiment)
    with tempfile.TemporaryDirectory() as folder:
        preparation = Preparation(experiment, Path(folder), resolve_device(experiment.device))
        missing = None
        try:
            check_plan(planned, preparation)
        except UserError as error:
            missing = str(error)
            if "replay" in missing or "method" in missing:
                raise
    rows = [_planned(cell, finished(out / "cells" / cell.cell_id)) for cell in planned]
    if as_json:
        print(json.dumps({"out": str(out), "cells": rows, "problem": missing}))
        return 0 if missing is None else 2
    table = Table("cell", "model", "data set", "method", "seed", "epochs", "state", box=None)
    for number, row in enumerate(rows, 1):
        state = "finished" if row["finished"] else "to run"
        table.add_row(
            str(number), row["model"], row["dataset"], row["title"], str(row["seed"]), str(row["epochs"]), state
        )
    screen = console()
    screen.print(table)
    screen.print(f"{len(rows)} cells, results would go to {out}", markup=False, soft_wrap=True)
    if missing is not None:
        raise UserError(missing)
    return 0


def _planned(cell: Cell, done: bool) -> dict[str, Any]:
    title = cell_title(cell.method, cell.budget)
    return {
        "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset, "method": cell.method, "title": title,
        "budget": cell.budget, "seed": cell.seed, "epochs": cell.epochs, "finished": done,
    }  # fmt: skip


def report_command(directory: Path, *, as_json: bool) -> int:
    """Table, page and CSV of a results folder."""
    from ldbench.record import plain
    from ldbench.report import load_results, print_table, write_report

    if not (directory / "cells").is_dir():
        raise UserError(f"{directory} holds no results: it has no folder 'cells'; give the --out of a run")
    page = write_report(directory)
    results = load_results(directory)
    if as_json:
        cells = _scalars(results.to_dict(orient="records"))
        print(json.dumps(plain({"report": str(page), "cells": cells})))
        return 0
    screen = console()
    print_table(screen, results)
    screen.print(f"Report: {page}", markup=False, soft_wrap=True)
    return 0


def doctor_command(*, as_json: bool) -> int:
    """What this machine can do. Exit code 0 when training works."""
    from ldbench.doctor import doctor

    return doctor(console(), as_json=as_json)
