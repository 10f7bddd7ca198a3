"""What the command line does once it is understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError, nearest, shown
from ldbench.experiment.config import Experiment

if TYPE_CHECKING:
    from ldbench.records.plan_file import Outcome
    from ldbench.records.stored import Stored

_MOST_SHOWN = 10


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error; piped output is plain and not cut at 80 columns."""
    made = Console(highlight=False, stderr=stderr)
    return made if made.is_terminal else Console(highlight=False, stderr=stderr, width=160)


def run_command(experiment: Experiment, out: Path, *, dry_run: bool, quiet: bool, as_json: bool) -> int:
    """Run an experiment and tell about it. Exit code 0, or 1 when a cell failed or diverged."""
    from ldbench.devices import keep_freed_memory
    from ldbench.io.checksums import plain
    from ldbench.records.plan_file import Outcome, all_finished
    from ldbench.records.results import load_results
    from ldbench.records.stored import Folder
    from ldbench.reporting.report import print_table
    from ldbench.reporting.summary import tabulate

    if dry_run:
        from ldbench.cli.dry_run import show_plan

        return show_plan(console(), experiment, out, as_json=as_json)
    keep_freed_memory()
    screen = console()
    progress = ConsoleProgress(Console(stderr=True) if as_json else screen, quiet or as_json)
    skipped = all_finished(out, experiment)
    outcome = Outcome(skipped=skipped) if skipped is not None else _run(experiment, out, progress)
    results = load_results(out)
    tables = tabulate(results)
    page = _write_report(Folder(out), results, tables)
    if as_json:
        rows = results.to_dict(orient="records")
        groups = _scalars(tables.groups.to_dict(orient="records"))
        print(json.dumps(plain({"out": str(out), "report": str(page), "groups": groups, "cells": _scalars(rows)})))
    else:
        print_table(screen, tables)
        _print_left_out(screen, results)
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


def _run(experiment: Experiment, out: Path, progress: ConsoleProgress) -> Outcome:
    from ldbench.runner.run_grid import run_experiment

    try:
        return run_experiment(experiment, out, progress)
    finally:
        progress.close()


def _write_report(place: Stored, results: Any, tables: Any, all_figures: bool = False) -> Path:
    from ldbench.reporting.report import write_report

    try:
        return write_report(place, results=results, tables=tables, all_figures=all_figures)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {place.report_folder}: {error.strerror}; make the folder writable, "
            "or copy the results to one that is"
        ) from error


def _print_left_out(screen: Console, results: Any) -> None:
    """How many records the table is without, and why."""
    left_out: list[tuple[str, str]] = results.attrs.get("left_out", [])
    if left_out:
        screen.print(f"{len(left_out)} cells left out:", markup=False)
    for path, reason in left_out[:_MOST_SHOWN]:
        screen.print(f"  {path}: {reason}", markup=False, soft_wrap=True)
    if len(left_out) > _MOST_SHOWN:
        screen.print(f"  and {len(left_out) - _MOST_SHOWN} more; the page lists them all", markup=False)


def _scalars(rows: list[dict[Any, Any]]) -> list[dict[str, Any]]:
    def known(value: Any) -> Any:
        if value is None or value != value:
            return None
        return value.item() if hasattr(value, "item") else value

    return [{str(k): known(v) for k, v in row.items() if not isinstance(v, (list, dict, bytes))} for row in rows]


def report_command(directory: Path, *, as_json: bool, all_figures: bool = False) -> int:
    """Table, page and CSV of a results folder, or of a packed one."""
    from ldbench.io.checksums import plain
    from ldbench.records.results import load_results
    from ldbench.records.stored import stored
    from ldbench.reporting.report import print_table
    from ldbench.reporting.summary import tabulate

    place = stored(directory)
    results = load_results(place)
    tables = tabulate(results)
    page = _write_report(place, results, tables, all_figures)
    if as_json:
        cells, groups = (_scalars(some.to_dict(orient="records")) for some in (results, tables.groups))
        print(json.dumps(plain({"report": str(page), "groups": groups, "cells": cells})))
        return 0
    screen = console()
    print_table(screen, tables)
    _print_left_out(screen, results)
    screen.print(f"Report: {page}", markup=False, soft_wrap=True)
    return 0


def export_command(directory: Path, form: str, columns: str | None) -> int:
    """The table of a results folder, or of a packed one, on standard output: for a paper or a program."""
    from ldbench.records.results import load_results
    from ldbench.records.stored import stored
    from ldbench.reporting.exports import FORMATS, columns_named, export
    from ldbench.reporting.summary import summarize

    if form not in FORMATS:
        raise UserError(f"--format {shown(form)} is unknown: {nearest(form, FORMATS)}")
    names = columns_named(columns)
    place = stored(directory)
    results = load_results(place)
    if results.empty:
        raise UserError(f"{place.path}: no finished run to make a table of")
    print(export(results, summarize(results), form, names), end="")
    _print_left_out(console(stderr=True), results)
    return 0


def compare_command(first: Path, second: Path, *, as_json: bool) -> int:
    """Two results folders, or packed ones, side by side."""
    from ldbench.io.checksums import plain
    from ldbench.records.results import load_results
    from ldbench.records.stored import stored
    from ldbench.reporting.side_by_side import print_side_by_side, side_by_side

    places = [stored(folder) for folder in (first, second)]
    results = [load_results(place) for place in places]
    for place, cells in zip(places, results, strict=True):
        if cells.empty:
            raise UserError(f"{place.path}: no finished run to compare")
    found = side_by_side(*results)
    if as_json:
        print(json.dumps(plain({"lines": found.lines.to_dict(orient="records"), "notes": found.notes})))
        return 0
    screen = console()
    print_side_by_side(screen, found)
    for cells in results:
        _print_left_out(screen, cells)
    return 0


def verify_command(directory: Path, *, as_json: bool) -> int:
    """Check a results folder, or a packed one. Exit code 0 when every file is whole, 1 when one is not."""
    from ldbench.records.integrity import verify
    from ldbench.records.stored import stored
    from ldbench.records.tuning import RUNS

    place = stored(directory)
    place.check()
    damaged = list(verify(place))
    cells, tuning = (len(place.cells(inside)) for inside in ("cells", f"{RUNS}/cells"))
    if as_json:
        found = [{"path": path, "reason": said} for path, said in damaged]
        print(json.dumps({"cells": cells, "tuning": tuning, "damaged": found}))
        return 1 if damaged else 0
    screen = console()
    _print_damaged(screen, damaged)
    cure = "; the command that made them sets them aside and runs their cells again" if damaged else ""
    checked = f"{cells} cells and {tuning} tuning runs checked" if tuning else f"{cells} cells checked"
    screen.print(f"{checked}, {len(damaged)} files damaged{cure}", markup=False, soft_wrap=True)
    return 1 if damaged else 0


def _print_damaged(screen: Console, damaged: list[tuple[str, str]]) -> None:
    for path, said in damaged:
        screen.print(f"{path}: {said}", markup=False, soft_wrap=True)


def pack_command(directory: Path, out: Path | None, *, scores: bool, brief: bool) -> int:
    """Write a results folder as one file. Exit code 0, or 1 when something in it is damaged, which is kept so."""
    from ldbench.io.atomic import write_bytes
    from ldbench.records.integrity import verify
    from ldbench.records.packing import pack
    from ldbench.records.stored import Folder

    if scores and brief:
        raise UserError("--scores keeps more and --brief less: choose one")
    place = Folder(directory)
    place.check()
    file = out if out is not None else directory.resolve().with_name(f"{directory.resolve().name}.jsonl")
    data, folders = pack(place, scores=scores, brief=brief)
    try:
        write_bytes(file, data)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; choose another --out") from error
    screen = console()
    damaged = list(verify(file))
    _print_damaged(screen, damaged)
    kept = f"; {len(damaged)} files are damaged, and are in it as they are" if damaged else ""
    screen.print(f"{folders} runs in {len(data) / 1e6:.1f} MB: {file}{kept}", markup=False, soft_wrap=True)
    return 1 if damaged else 0


def list_command(kind: str, *, as_json: bool) -> int:
    """Models, data sets, methods or suites with a line about each."""
    from ldbench.cli.listing import entries

    found = entries(kind)
    if as_json:
        print(json.dumps([{"name": name, "about": about} for name, about in found]))
        return 0
    width = max(len(name) for name, _ in found)
    for name, about in found:
        print(f"{name:<{width}}  {about}".rstrip())
    return 0


def doctor_command(*, as_json: bool) -> int:
    """What this machine can do. Exit code 0 when training works."""
    from ldbench.doctor.checks import doctor

    return doctor(console(), as_json=as_json)
