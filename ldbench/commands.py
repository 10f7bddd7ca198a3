"""What the command line does once it is understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
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
    try:
        outcome = run_experiment(experiment, out, progress)
    finally:
        progress.close()
    results = load_results(out)
    page = write_report(out, results=results)
    if as_json:
        rows = results.to_dict(orient="records")
        print(json.dumps(plain({"out": str(out), "report": str(page), "cells": _scalars(rows)})))
    else:
        print_table(screen, results)
        if outcome.skipped:
            progress.note(
                f"{outcome.skipped} cells were finished already in {out}; choose another --out to run them anew."
            )
        if outcome.elsewhere:
            progress.note(f"{outcome.elsewhere} cells were run by other processes meanwhile.")
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

    return [{str(k): known(v) for k, v in row.items() if not isinstance(v, (list, dict, bytes))} for row in rows]


def _dry_run(experiment: Experiment, out: Path, as_json: bool) -> int:
    """What would run, checked as far as it can be without training."""
    import tempfile

    from ldbench.record import check_place, finished
    from ldbench.runner import Preparation, check_plan, plan, resolve_device

    planned = plan(experiment)
    with tempfile.TemporaryDirectory() as folder:
        preparation = Preparation(experiment, Path(folder), resolve_device(experiment.device))
        problem = None
        try:
            check_place(out, "results")
            check_plan(planned, preparation)
        except UserError as error:  # the plan is shown all the same, then what would stop it
            problem = error
    rows = [_planned(cell, finished(out / "cells" / cell.cell_id)) for cell in planned]
    if as_json:
        print(json.dumps({"out": str(out), "cells": rows, "problem": None if problem is None else str(problem)}))
        return 0 if problem is None else 2
    table = Table("cell", "model", "data set", "method", "seed", "epochs", "state", box=None)
    for number, row in enumerate(rows, 1):
        state = "finished" if row["finished"] else "to run"
        named = (escape(row[key]) for key in ("model", "dataset", "title"))
        table.add_row(str(number), *named, str(row["seed"]), str(row["epochs"]), state)
    screen = console()
    screen.print(table)
    screen.print(f"{len(rows)} cells, results would go to {out}", markup=False, soft_wrap=True)
    if problem is not None:
        raise problem
    return 0


def _planned(cell: Cell, done: bool) -> dict[str, Any]:
    title = cell_title(cell.method, cell.budget)
    return {
        "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset, "method": cell.method, "title": title,
        "budget": cell.budget, "seed": cell.seed, "epochs": cell.epochs, "finished": done,
    }  # fmt: skip


def _check_results(directory: Path) -> None:
    """Raises ``UserError`` unless the folder of a run can be read."""
    cells = directory / "cells"
    try:
        if cells.is_dir():
            next(cells.iterdir(), None)
            return
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}; give the --out of a run") from error
    raise UserError(f"{directory} holds no results: it has no folder 'cells'; give the --out of a run")


def report_command(directory: Path, *, as_json: bool, all_figures: bool = False) -> int:
    """Table, page and CSV of a results folder."""
    from ldbench.record import plain
    from ldbench.report import load_results, print_table, write_report

    _check_results(directory)
    results = load_results(directory)
    page = write_report(directory, results=results, all_figures=all_figures)
    if as_json:
        cells = _scalars(results.to_dict(orient="records"))
        print(json.dumps(plain({"report": str(page), "cells": cells})))
        return 0
    screen = console()
    print_table(screen, results)
    screen.print(f"Report: {page}", markup=False, soft_wrap=True)
    return 0


def verify_command(directory: Path, *, as_json: bool) -> int:
    """Check a results folder. Exit code 0 when every file is whole, 1 when one is not."""
    from ldbench.integrity import verify

    _check_results(directory)
    damaged = list(verify(directory))
    cells = sum(path.is_dir() for path in (directory / "cells").iterdir())
    if as_json:
        print(json.dumps({"cells": cells, "damaged": [{"path": path, "reason": said} for path, said in damaged]}))
        return 1 if damaged else 0
    screen = console()
    for path, said in damaged:
        screen.print(f"{path}: {said}", markup=False, soft_wrap=True)
    cure = "; the command that made them sets them aside and runs their cells again" if damaged else ""
    screen.print(f"{cells} cells checked, {len(damaged)} files damaged{cure}", markup=False, soft_wrap=True)
    return 1 if damaged else 0


def profile_command(experiment: Experiment, out: Path | None, *, as_json: bool) -> int:
    """Measure a cost table and show it by stage and by cut."""
    import tempfile

    from ldbench.cache import resolve_budget
    from ldbench.costs import StorePlan
    from ldbench.models import build_model
    from ldbench.profile import as_dict, cut_rows, plot, stage_rows
    from ldbench.record import check_place, plain, write_json, write_text
    from ldbench.resident import model_spec
    from ldbench.runner import Preparation, plan, resolve_device
    from ldbench.stages import legal_cuts, split_stages, stage_parameters

    cell = plan(experiment)[0]
    device = resolve_device(experiment.device)
    if out is not None:
        check_place(out, "the profile")  # before minutes of measuring
    if experiment.threads is not None:
        import torch

        torch.set_num_threads(experiment.threads)
    with tempfile.TemporaryDirectory() as name:
        preparation = Preparation(experiment, Path(name), device)
        data = preparation.data(cell.dataset)
        table = preparation.costs(cell)
        budget = resolve_budget(cell.cache_budget, device, Path(name))
    stages = split_stages(build_model(model_spec(cell, data.dataset)))
    sizes = [sum(p.numel() for p in parameters) for parameters in stage_parameters(stages)]
    by_stage = stage_rows(table, sizes)
    by_cut = cut_rows(table, StorePlan(len(data.train), cell.cache_dtype, budget), legal_cuts(stages))
    found = plain(as_dict(table, by_stage, by_cut, len(data.train)))
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "profile.json", found)
            write_text(out / "profile.svg", plot(by_stage, by_cut, f"{cell.model} on {cell.dataset}"))
        except OSError as error:
            raise UserError(
                f"the profile cannot be written to {out}: {error.strerror}; choose another --out"
            ) from error
    if as_json:
        print(json.dumps(found))
        return 0
    _print_profile(found, f"{cell.model} on {cell.dataset}, {device}")
    return 0


def _print_profile(found: dict[str, Any], title: str) -> None:
    screen = console()
    screen.print(f"{escape(title)}: {found['epoch_seconds']:.3g} s per epoch of {found['train_size']} images")
    table = Table("stage", "forward ms", "backward ms", "forward MFLOPs", "parameters", "output kB", box=None)
    for row in found["stages"]:
        table.add_row(
            escape(row["stage"]), f"{1e3 * row['forward_seconds']:.2f}", f"{1e3 * row['backward_seconds']:.2f}",
            f"{row['forward_flops'] / 1e6:.2f}", f"{row['parameters']:,}", f"{row['activation_bytes'] / 1e3:.1f}",
        )  # fmt: skip
    screen.print(table)
    cuts = Table(
        "drop up to",
        "saves s/epoch",
        "of an epoch",
        "GFLOPs/epoch",
        "store MB",
        "in",
        "build s",
        "pays after epochs",
        box=None,
    )
    for row in found["cuts"]:
        never = row["break_even_epochs"] is None
        cuts.add_row(
            f"{row['cut']}: {escape(row['after'])}" + ("" if row["legal"] else " (shares a parameter: not possible)"),
            "-" if row["saved_seconds"] is None else f"{row['saved_seconds']:.3g}",
            "-" if row["saved_share"] is None else f"{100 * row['saved_share']:.0f} %",
            f"{row['saved_flops'] / 1e9:.1f}", f"{row['store_bytes'] / 1e6:.1f}", row["store_tier"] or "fits nowhere",
            "-" if row["build_seconds"] is None else f"{row['build_seconds']:.3g}",
            "never" if never else f"{row['break_even_epochs']:.2f}",
        )  # fmt: skip
    screen.print(cuts)


def doctor_command(*, as_json: bool) -> int:
    """What this machine can do. Exit code 0 when training works."""
    from ldbench.doctor import doctor

    return doctor(console(), as_json=as_json)
