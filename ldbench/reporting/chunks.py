"""What every chunk of a stream came to, method by method: rows for the CSV file, and a table for the page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from ldbench.records.results import bounded
from ldbench.reporting.comparisons import COMPARISON, Record, method_labels, variant, variant_order
from ldbench.reporting.formatting import quantity
from ldbench.reporting.markup import Html, table, tag

FIELDS = (
    "chunk", "step", "images_seen", "remembered", "test_accuracy", "train_seconds", "forward_flops", "backward_flops",
    "dropped_stages", "store_bytes",
)  # fmt: skip
CHUNK_FIELDS = (
    *COMPARISON,
    "seed",
    "cell",
    "status",
    "method",
    "budget",
    "policy",
    "chunks",
)  # of a run's row, all that is needed
MOST_SHOWN = 12


def chunk_rows(cells: Sequence[Record]) -> list[Record]:
    """One flat row per chunk of every finished run of one comparison, counted from its beginning."""
    labels = method_labels(cells)
    rows = []
    for cell in sorted(cells, key=lambda cell: (variant_order(variant(cell)), cell["seed"])):
        for entry in cell["chunks"] if cell["status"] == "finished" else ():
            row = {name: cell[name] for name in (*COMPARISON, "seed", "cell")} | {"method": labels[variant(cell)]}
            rows.append(row | {name: bounded(entry.get(name)) for name in FIELDS})
    return rows


def chunk_section(cells: Sequence[Record]) -> Html:
    """Accuracy and training seconds after every chunk, mean over the seeds; empty where the data came all at once."""
    found: dict[str, dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in chunk_rows(cells):
        found[row["method"]][row["chunk"]].append(row)
    numbers = sorted({chunk for chunks in found.values() for chunk in chunks if chunk == chunk})
    if not numbers:
        return tag("div")
    shown = numbers if len(numbers) <= MOST_SHOWN else [*numbers[: MOST_SHOWN - 1], numbers[-1]]

    def said(rows: Sequence[Record]) -> str:
        accuracy, seconds = (statistics.fmean(row[key] for row in rows) for key in ("test_accuracy", "train_seconds"))
        return f"{100 * accuracy:.2f} % after {quantity(seconds)} s"

    lines = []
    for method, chunks in found.items():
        every = [row["test_accuracy"] for rows in chunks.values() for row in rows]
        texts = [said(chunks[number]) if number in chunks else "-" for number in shown]
        lines.append(("open", [method, *texts, f"{100 * statistics.fmean(every):.2f} %"]))
    heads = ["method", *(f"chunk {number + 1:.0f}" for number in shown), "mean over the chunks"]
    return tag("div", tag("h3", "Accuracy and training seconds after every chunk"), table(heads, lines))
