"""Records -> table on the terminal, one HTML page and CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldbench.errors import UserError, clean
from ldbench.io.atomic import write_text
from ldbench.records.results import load_results
from ldbench.records.stored import Place, stored
from ldbench.reporting.chunks import CHUNK_FIELDS, chunk_rows
from ldbench.reporting.comparisons import BETWEEN, by_comparison, comparison_title, records_of
from ldbench.reporting.exports import guarded_csv
from ldbench.reporting.formatting import accuracy, frontier_check, plus_minus, recipe, runs, slope, spanned
from ldbench.reporting.sentences import cheaper, family
from ldbench.reporting.summary import Tables, tabulate

WIDE = 110  # columns from which the terminal table shows every comparison
TONES = {"ahead": "green", "behind": "red", "control": "dim"}
UNITS = {"test_accuracy": "fraction", "val_accuracy": "fraction", "chance_accuracy": "fraction", "test_loss": "nats"}
NOT_IN_CSV = ("test_correct", "drops", "declined", "chunks", "stages")


def write_report(
    directory: Place,
    *,
    results: pd.DataFrame | None = None,
    tables: Tables | None = None,
    all_figures: bool = False,
) -> Path:
    """Write ``report/index.html`` with ``groups.csv``, ``table.csv``, ``cells.csv`` and ``drops.csv``; returns its path.

    Of a packed file NAME.jsonl they go into ``NAME-report`` beside it. Streams get a ``chunks.csv`` too.

    ``results`` is what ``load_results`` gave for the directory, ``tables`` what ``tabulate`` made of it, to spare
    doing either twice. Of more than 6 comparisons two have every figure, six more have accuracy against cost, the
    others have none, unless ``all_figures`` is set. Each file appears whole or not at all. Raises ``UserError`` when
    there is nothing to read or no place to write.
    """
    from ldbench.reporting.page import DROP_FIELDS, build_page, drop_rows  # draws: matplotlib is imported only here

    place = stored(directory)
    cells = load_results(place) if results is None else results
    if cells.empty:
        left_out = cells.attrs["left_out"]
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise UserError(f"{place.path}: no finished run to report ({len(left_out)} folders left out{why})")
    tables = tabulate(cells) if tables is None else tables
    wanted = cells.loc[:, [name for name in cells.columns if name not in NOT_IN_CSV]]
    named = wanted.rename(columns={name: f"{name}_{unit}" for name, unit in UNITS.items()})
    dropped = by_comparison(cells.loc[:, list(DROP_FIELDS)])
    every = [row for _, group in sorted(dropped.items()) for row in drop_rows(group)]
    streamed = by_comparison(cells[cells["chunks"].map(bool)].loc[:, list(CHUNK_FIELDS)])
    chunks = [row for _, group in sorted(streamed.items()) for row in chunk_rows(group)]
    files = {
        "groups.csv": guarded_csv(tables.groups),
        "table.csv": guarded_csv(tables.lines),
        "cells.csv": guarded_csv(named),
        "drops.csv": guarded_csv(pd.DataFrame(every)),
    }
    if chunks:
        files["chunks.csv"] = guarded_csv(pd.DataFrame(chunks))
    files["index.html"] = build_page(place, cells, tables, all_figures=all_figures)
    folder = place.report_folder
    if folder.is_symlink():  # in somebody else's results it may lead anywhere
        raise UserError(f"{folder} is a link: the report is written beside the results only; delete the link")
    try:
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written: {error.strerror}") from error
    return folder / "index.html"


def print_table(console: Console, results: pd.DataFrame | Tables) -> None:
    """Print one table per comparison; ``results`` is what ``load_results`` or ``tabulate`` gave.

    Seven columns fit 80 characters; from 110 characters on, the differences to shortened training stand in two more.
    """
    tables = results if isinstance(results, Tables) else tabulate(results) if len(results) else None
    summary = tables.lines if tables is not None else pd.DataFrame()
    if tables is None or summary.empty:
        console.print("no finished run yet", highlight=False)
        return
    wide = console.width >= WIDE
    for rows in by_comparison(summary).values():
        first = rows[0]
        title = Text(clean(comparison_title(first)), style="bold")
        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
            show_edge=False,
        )
        heads = ["method", "n", "x cheaper", "accuracy %", "vs full", "time÷full"]
        heads += ["FLOPs -%", "equal FLOPs", "equal time"] if wide else []
        for head in heads:
            table.add_column(head, justify="left" if head == "method" else "right", overflow="fold")
        table.add_column("vs short", overflow="fold")
        for row in rows:
            table.add_row(*(Text(text) for text in _cells(row, wide)), style=TONES.get(row["verdict"]))
        console.print(table)
        for note, style in _notes(rows):
            console.print(Text(note, style=style))
        console.print()
    groups = records_of(tables.groups)
    for row in groups:
        if row["comparisons"] != 1 or row["standing"] == "declared":
            over = f"{clean(row['model'])}, {row['kind']}, {clean(row['label'])}, {row['standing']}"
            console.print(Text(f"{over}: {clean(row['statement'])}", style=TONES.get(row["verdict"], "")))
    console.print(Text(family(groups)))


def _cells(row: dict[str, Any], wide: bool) -> list[str]:
    counts = "average_" if row["streamed"] else ""
    shorter = cheaper(row, "flops") if wide else cheaper(row, "flops").split(" [")[0]
    texts = [clean(row["label"]), str(row["runs"]), shorter or "-", "-" if row["synthetic"] else accuracy(row)]
    ratio = spanned(row, "train_time_ratio", "") if wide else f"{row['train_time_ratio_mean']:.2f}"
    texts += [plus_minus(row, f"{counts}difference_to_full_points", sign="+"), ratio.replace("nan", "-")]
    if wide:
        texts.append(plus_minus(row, "total_flops_reduction_percent", 1).split(" ")[0])
    for axis in ("flops", "time") if wide else ():
        texts.append(plus_minus(row, f"{counts}difference_at_equal_{axis}_points", sign="+"))
    return [*(text.replace(" ± ", "±").replace("n/a", "-") for text in texts), str(row["verdict"])]


def _notes(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Lines under a table with their style: what the numbers alone would hide."""
    yield f"frontier slope, points per doubled budget: {slope(rows[0])}", ""
    yield frontier_check(rows[0]), "dim"
    yield recipe(rows), "dim"
    if max(row["runs"] for row in rows) == 1:
        yield "n = 1: an anecdote; more --seeds give intervals", ""
    if any(row["synthetic"] for row in rows):
        yield "synthetic data: no accuracy to show", ""
    for row in rows:
        if row["diverged"] or row["failed"]:
            yield f"{clean(row['label'])}: {runs(row)}", "yellow"
        if row["statement"]:
            yield f"{clean(row['label'])}: {clean(row['statement'])}", ""
    for note in rows[0]["warnings"].split(BETWEEN) if rows[0]["warnings"] else []:
        yield f"warning: {clean(note)}", "yellow"
