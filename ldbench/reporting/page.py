"""The HTML page: one section per comparison, then what is needed to judge it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ldbench.errors import clean
from ldbench.io.checksums import Damaged
from ldbench.records.results import bounded, read_object
from ldbench.records.stored import Stored
from ldbench.reporting.beside_paper import beside_paper, cost_tables
from ldbench.reporting.chunks import chunk_section
from ldbench.reporting.comparisons import (
    BETWEEN,
    COMPARISON,
    Record,
    by_comparison,
    comparison_title,
    method_labels,
    records_of,
    variant,
    variant_order,
)
from ldbench.reporting.departures import departures
from ldbench.reporting.figures import comparison_figures
from ldbench.reporting.formatting import frontier_check, no_energy, quantity, recipe, recorded, slope, speed_up
from ldbench.reporting.glossary import (
    ACCURACY_COLUMNS,
    CHECK_MEANING,
    COST_COLUMNS,
    SLOPE_MEANING,
    TARGET_COLUMNS,
    Column,
)
from ldbench.reporting.markup import Html, page, table, tag
from ldbench.reporting.sentences import family
from ldbench.reporting.summary import Tables
from ldbench.reporting.tuning import tuning_section

MOST_DROPS = 30  # drops listed per comparison; all of them are in drops.csv
MOST_NAMED = 50
MOST_COMPLETE = 6  # comparisons that are all drawn in full; of more of them, as drawing is what takes the time:
MOST_FIGURES, MOST_DETAILED = 8, 2  # the first so many are drawn at all, and in full
BESIDE = (
    "Files beside this page: groups.csv and table.csv (every number below), cells.csv (one row per run), drops.csv "
    "(every drop)."
)
STANDARD = (
    "A saving that merely training for fewer steps also gives is not a saving. Every method is therefore "
    "set against full training and against shortened training at the same cost, seed by seed."
)
# What of the cells ``drop_rows`` needs.
DROP_FIELDS = (*COMPARISON, "cell", "seed", "method", "budget", "policy", "stage_count", "drops", "declined")


def build_page(place: Stored, cells: pd.DataFrame, tables: Tables, *, all_figures: bool = False) -> str:
    """The page for the results in ``place``; ``cells`` is what ``load_results`` gave, ``tables`` what it came to.

    A large experiment gets figures for its first comparisons only, and says so, unless ``all_figures``.
    """
    summary = tables.lines
    groups, runs = list(by_comparison(summary).values()), by_comparison(cells)
    left_out: list[tuple[str, str]] = cells.attrs.get("left_out", [])
    sections = [_opening(cells, groups, records_of(tables.groups), left_out)]
    for number, rows in enumerate(groups):
        of_these = runs[tuple(rows[0][name] for name in COMPARISON)]
        everything = all_figures or len(groups) <= MOST_COMPLETE
        sections.append(_comparison(place, number, rows, of_these, everything))
    sections += [
        beside_paper(cells, summary, cost_tables(place)),
        tuning_section(place),
        _left_out(cells, left_out),
        _environment(cells),
        _glossary(),
        _configuration(place),
    ]
    return page(f"ldbench report: {place.name}", sections)


def _opening(
    cells: pd.DataFrame,
    groups: Sequence[Sequence[Record]],
    means: Sequence[Record],
    left_out: Sequence[tuple[str, str]],
) -> Html:
    states = Counter(cells["status"])
    counted = ", ".join(f"{states[state]} {state}" for state in ("finished", "diverged", "failed") if states[state])
    lines = []
    for place, rows in enumerate(groups):
        methods = [row for row in rows if row["verdict"] != "control"]
        for row in methods or rows[:1]:
            link = tag("a", comparison_title(row), href=f"#comparison-{place}")
            texts = [clean(row["label"]), *_opened(row)] if methods else ["controls only", "", "", ""]
            lines.append((_tone(row["verdict"]), [link, *texts, slope(row)]))
    heads = ["comparison", "method", *OPENED, "frontier slope, points per doubled budget"]
    counts = f"{len(cells)} runs: {counted or 'none'}; {len(left_out)} folders left out."
    return tag(
        "header",
        tag("h1", "What layer dropping saved, and what it cost"),
        tag("p", f"{counts} {BESIDE}", class_="quiet"),
        tag("p", STANDARD),
        _group_means(means),
        tag("p", family(means), class_="quiet") if means else "",
        tag("h3", "Comparison by comparison"),
        table(heads, lines),
    )


def _opened(row: Record) -> list[str]:
    return [speed_up(row, "flops"), speed_up(row, "time"), clean(row["statement"])]


def _group_means(means: Sequence[Record]) -> Html:
    """Every rule over its groups of comparisons, what was declared first."""
    lines = []
    for row in means:
        setting = f" ({clean(row['setting_label'])})" if row["setting_label"] else ""
        of = " on ".join(clean(row[name]) for name in ("scenarios", "datasets") if row[name])
        over = f"{row['comparisons']} comparison{'s' * (row['comparisons'] != 1)}: {of}"
        texts = [f"{clean(row['model'])}, {row['kind']}{setting}", clean(row["label"]), row["standing"]]
        lines.append((_tone(row["verdict"]), [*texts, *_opened(row), f"{over}; n = {row['n']}"]))
    heads = ["mean over", "method", "standing", *OPENED, "of"]
    return table(heads, lines) if lines else tag("div")


OPENED = ("times cheaper, FLOPs", "times cheaper, time", "against shortened training")


def _tone(kind: str) -> str:
    return kind if kind in ("ahead", "behind", "control") else "open"


def _comparison(place: Stored, number: int, rows: Sequence[Record], cells: Sequence[Record], everything: bool) -> Html:
    first, detailed = rows[0], everything or number < MOST_DETAILED
    figures: list[Html] = []
    if everything or number < MOST_FIGURES:
        figures = comparison_figures(place, rows, cells, detailed)
    if not detailed:
        how = "More figures of this comparison: ldbench report DIR --all-figures."
        figures.append(tag("p", how, class_="quiet"))
    warnings = [tag("p", f"Warning: {note}", class_="warning") for note in first["warnings"].split(BETWEEN) if note]
    state = "warning" if first["frontier_state"] in ("saturated", "falling") else "plain"
    notes = {row["augmentation_after_drop"] for row in rows} - {"", "not applicable"}
    augmented = [tag("p", f"Augmentation after a drop: {'; '.join(sorted(notes))}")] if notes else []
    return tag(
        "section",
        tag("h2", comparison_title(first)),
        warnings,
        tag("p", f"Frontier slope, accuracy points per doubling of the training budget: {slope(first)}", class_=state),
        tag("p", f"F{frontier_check(first)[1:]}. Time: {first['time_basis']}.", class_="quiet"),
        tag("p", recipe(rows), class_="quiet"),
        [tag("h3", "Accuracy"), _columns(ACCURACY_COLUMNS, rows)],
        [tag("h3", "Cost"), _columns(COST_COLUMNS, rows), tag("p", no_energy(rows), class_="quiet")],
        [tag("h3", "Until full's accuracy, less half a point, is reached"), _columns(TARGET_COLUMNS, rows)],
        augmented,
        chunk_section(cells),
        tag("div", figures, class_="figures"),
        _drops(cells),
        departures(place, cells),
        id=f"comparison-{number}",
    )


def _columns(columns: Sequence[Column], rows: Sequence[Record]) -> Html:
    lines = [(_tone(row["verdict"]), [column.show(row) for column in columns]) for row in rows]
    return table([column.title for column in columns], lines)


def drop_rows(cells: Sequence[Record]) -> list[Record]:
    """Every drop made or declined in these runs of one comparison, as flat rows with units in the names."""
    labels = method_labels(cells)
    rows = []
    for cell in sorted(cells, key=lambda cell: (variant_order(variant(cell)), cell["seed"])):
        for made, key in (("made", "drops"), ("declined", "declined")):
            for entry in cell[key]:
                row = {name: cell[name] for name in (*COMPARISON, "seed", "cell")}
                row |= {"method": labels[variant(cell)], "drop": made, "stage_count": cell["stage_count"]}
                wanted = ("step", "epoch", "cut", "reason", "store_tier", "store_dtype", "store_bytes", "build_seconds")
                rows.append(row | {name: entry.get(name) for name in (*wanted, "predicted_saving_seconds")})
    return rows


def _drops(cells: Sequence[Record]) -> Html:
    rows = drop_rows(cells)
    if not rows:
        return tag("p", "No stage was dropped, and no drop was declined.", class_="quiet")
    heads = [
        "method",
        "seed",
        "drop",
        "epoch",
        "step",
        "stages gone",
        "why",
        "store",
        "built in s",
        "predicted saving s",
    ]
    lines = []
    for row in rows[:MOST_DROPS]:
        store = " ".join(recorded(row[key]) for key in ("store_tier", "store_dtype") if row[key] is not None)
        if bounded(row["store_bytes"]) > 0:
            store += f", {quantity(bounded(row['store_bytes']) / 2**20)} MiB"
        texts = [row["method"], str(row["seed"]), row["drop"], recorded(row["epoch"]), recorded(row["step"])]
        texts += [f"{recorded(row['cut'])} of {row['stage_count']}", recorded(row["reason"]), store or "-"]
        lines.append(("drop", [*texts, recorded(row["build_seconds"]), recorded(row["predicted_saving_seconds"])]))
    more = f"{len(rows) - MOST_DROPS} more are in drops.csv." if len(rows) > MOST_DROPS else ""
    return tag("div", tag("h3", "Drops, made and declined"), table(heads, lines), tag("p", more, class_="quiet"))


def _error(cell: Record) -> str:
    return cell["error"] if isinstance(cell["error"], str) else "no reason recorded"


def _left_out(cells: pd.DataFrame, left_out: Sequence[tuple[str, str]]) -> Html:
    lost = records_of(cells[cells["status"] != "finished"])
    rows = [("open", [f"cells/{cell['cell']}", cell["status"], _error(cell)]) for cell in lost]
    rows += [("open", [path, "left out", reason]) for path, reason in left_out]
    if not rows:
        return tag("section", tag("h2", "Left out"), tag("p", "Nothing: every folder held a finished run."))
    more = f"and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return tag(
        "section",
        tag("h2", "Left out, diverged, failed"),
        table(["run", "state", "why"], rows[:MOST_NAMED]),
        tag("p", more),
    )


def _environment(cells: pd.DataFrame) -> Html:
    lines = []
    for column in [name for name in cells.columns if name.startswith("environment_")]:
        values = Counter(_whole(value) for value in cells[column])
        said = [value if len(values) == 1 else f"{value} ({count} runs)" for value, count in values.most_common(8)]
        said += [f"and {len(values) - 8} more"] if len(values) > 8 else []
        lines.append(("open", [column.removeprefix("environment_").replace("_", " "), "; ".join(said)]))
    return tag("section", tag("h2", "Environment"), table(["what", "value"], lines))


def _whole(value: Any) -> str:
    """An environment entry as text; a missing one among whole numbers has turned them into floats."""
    if pd.isna(value):
        return "none"
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else clean(value)


def _glossary() -> Html:
    seen: Mapping[str, Column] = {
        column.title: column for column in (*ACCURACY_COLUMNS, *COST_COLUMNS, *TARGET_COLUMNS)
    }
    entries = [part for column in seen.values() for part in (tag("dt", column.title), tag("dd", column.meaning))]
    entries += [tag("dt", "frontier slope"), tag("dd", SLOPE_MEANING)]
    entries += [tag("dt", "leaving one budget out"), tag("dd", CHECK_MEANING)]
    return tag("section", tag("h2", "How to read the columns"), tag("dl", entries))


def _configuration(place: Stored) -> Html:
    try:
        text = json.dumps(read_object(place, "experiment.json"), indent=1, sort_keys=True)
    except Damaged as error:
        return tag("section", tag("h2", "Experiment"), tag("p", f"experiment.json: {error}"))
    lines = [part for line in text[:20_000].splitlines() for part in (line, tag("br"))]
    return tag("section", tag("h2", "Experiment"), tag("pre", lines))
