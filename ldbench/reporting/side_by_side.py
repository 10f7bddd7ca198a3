"""Two results folders side by side: what became of each method's accuracy, cost and energy, paired seed by seed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldbench.errors import clean
from ldbench.reporting.columns import columns
from ldbench.reporting.comparisons import (
    HARDWARE,
    SOFTWARE,
    Record,
    Variant,
    machine,
    method_labels,
    records_of,
    total_flops,
    values_seen,
    variant,
    variant_order,
)
from ldbench.reporting.formatting import spanned
from ldbench.reporting.stats import Estimate, paired_difference, paired_ratio, t_interval

Place = tuple[str, str, str]  # model, data set, scenario
Seeds = dict[int, Record]
ELSEWHERE = Estimate(reason="other hardware")
OTHER_DATA = Estimate(reason="other data")
MOST_NAMED = 5
UNMETERED = Estimate(reason="is not metered")
SYNTHETIC = Estimate(reason="synthetic data")
HEADS = ("method", "n", "accuracy %, first", "second", "points", "FLOPs, second ÷ first", "time", "energy")


class SideBySide(NamedTuple):
    """A row per method that both folders have, and what has to be known of them.

    Attributes:
        lines: see ``side_by_side``.
        notes: what differs between the folders, and what only one of them has.
    """

    lines: pd.DataFrame
    notes: list[str]


def side_by_side(first: pd.DataFrame, second: pd.DataFrame) -> SideBySide:
    """What the second folder's runs are beside the first's: of each method both have, the seeds both finished.

    A method is the same where model, data set, scenario, method, budget and policy options are. Runs of the same setting are
    paired; where each folder has one setting and these differ, they are paired too, and ``differs`` tells in what. Columns:
    ``first_accuracy_percent`` and ``second_...``, ``accuracy_difference_points`` (second less first; of streams the mean over
    the chunks), ``flops_ratio``, ``time_ratio`` and ``energy_ratio`` (second over first), each with ``_mean``, ``_low``, ``_high``
    (95 % over the seeds), ``_n`` and ``_reason``; ``same`` counts the seeds that ended with the same accuracy for the same
    FLOPs. Times and joules of different hardware are not compared, nor accuracies on different data.

    Args:
        first, second: what ``load_results`` gave of each.
    """
    ours, theirs = _by_method(first), _by_method(second)
    labels = method_labels([*records_of(first), *records_of(second)]) if len(first) or len(second) else {}
    rows: list[Record] = []
    apart: list[str] = []
    unlike: list[str] = []
    notes = [
        note
        for kind, keys in (("hardware", HARDWARE), ("software", SOFTWARE))
        for note in _differing(kind, keys, first, second)
    ]
    for place, name in sorted(ours.keys() & theirs.keys(), key=lambda key: (key[0], variant_order(key[1]))):
        title = _title(place, labels[name])
        pairs = list(_paired_settings(ours[place, name], theirs[place, name]))
        if not pairs:
            unlike.append(title)
        for differs, one, other in pairs:
            if not one.keys() & other.keys():
                apart.append(title)
                continue
            named = dict(zip(("model", "dataset", "scenario"), place, strict=True))
            rows.append(named | {"method": name[0], "label": labels[name], "differs": differs} | _row(one, other))
    unpaired = {
        "no seed that both folders finished": apart,
        "several settings, none of which both folders have": unlike,
    }
    for which, here, there in (("first", ours, theirs), ("second", theirs, ours)):
        alone = here.keys() - there.keys()
        unpaired[f"only in the {which}"] = sorted(_title(place, labels[name]) for place, name in alone)
    notes += [_listed(reason, titles) for reason, titles in unpaired.items() if titles]
    return SideBySide(pd.DataFrame(rows), notes)


def _title(place: Place, label: str) -> str:
    return f"{place[0]} on {place[1]}, {place[2]}, {label}"


def _listed(reason: str, titles: Sequence[str]) -> str:
    more = f" and {len(titles) - MOST_NAMED} more" if len(titles) > MOST_NAMED else ""
    return f"not compared, {reason}: {'; '.join(titles[:MOST_NAMED])}{more}"


def _by_method(cells: pd.DataFrame) -> dict[tuple[Place, Variant], dict[str, Seeds]]:
    """The finished runs by method, in it by setting, in it by seed."""
    found: dict[tuple[Place, Variant], dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for record in records_of(cells) if len(cells) else ():
        if record["status"] == "finished":
            place = str(record["model"]), str(record["dataset"]), str(record["scenario"])
            found[place, variant(record)][record["setting"]].setdefault(record["seed"], record)
    return found


def _paired_settings(ours: Mapping[str, Seeds], theirs: Mapping[str, Seeds]) -> Iterator[tuple[str, Seeds, Seeds]]:
    """What is paired of two folders' settings, with the options in which they differ."""
    for setting in sorted(ours.keys() & theirs.keys()):
        yield "", ours[setting], theirs[setting]
    if not ours.keys() & theirs.keys() and len(ours) == len(theirs) == 1:
        (one, runs), (other, their_runs) = next(iter(ours.items())), next(iter(theirs.items()))
        before, after = json.loads(one), json.loads(other)
        changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
        yield (
            ", ".join(f"{key} {_told(before.get(key))} -> {_told(after.get(key))}" for key in changed),
            runs,
            their_runs,
        )


def _told(value: Any) -> str:
    return "none" if value is None else str(value)


def _row(ours: Seeds, theirs: Seeds) -> Record:
    shared = sorted(ours.keys() & theirs.keys())
    one, other = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
    counts = "average_accuracy" if any(record["chunks"] for record in one) else "test_accuracy"
    row: Record = {"runs": len(shared)}
    for name, runs in (("first", one), ("second", other)):
        row |= columns(f"{name}_accuracy_percent", t_interval(record[counts] for record in runs).scaled(100))
    points = paired_difference(_values(theirs, shared, counts), _values(ours, shared, counts)).scaled(100)
    if any(record["synthetic"] for record in (*one, *other)):
        points = SYNTHETIC
    elif any(a["data_fingerprint"] != b["data_fingerprint"] for a, b in zip(one, other, strict=True)):
        points = OTHER_DATA
    row |= columns("accuracy_difference_points", points)
    flops = ({seed: total_flops(runs[seed]) for seed in shared} for runs in (theirs, ours))
    row |= columns("flops_ratio", paired_ratio(*flops))
    moved = any(machine(a) != machine(b) for a, b in zip(one, other, strict=True))
    for name, field in (("time_ratio", "train_seconds"), ("energy_ratio", "energy_joules")):
        ratio = paired_ratio(_values(theirs, shared, field), _values(ours, shared, field))
        row |= columns(name, ELSEWHERE if moved else ratio if ratio.n else UNMETERED)
    row["same"] = sum(
        a[counts] == b[counts] and total_flops(a) == total_flops(b) for a, b in zip(one, other, strict=True)
    )
    return row


def _values(runs: Seeds, seeds: Iterable[int], name: str) -> dict[int, float]:
    return {seed: float(runs[seed][name]) for seed in seeds if math.isfinite(runs[seed][name])}


def _differing(kind: str, keys: Iterable[str], first: pd.DataFrame, second: pd.DataFrame) -> Iterator[str]:
    """One note that names what of the environment differs between the folders."""
    said = []
    for key in keys:
        ours, theirs = (values_seen(cells, f"environment_{key}") for cells in (first, second))
        if ours != theirs:
            said.append(f"{key} {' and '.join(ours) or 'none'} -> {' and '.join(theirs) or 'none'}")
    if said:
        cure = "; times and energy are not compared" if kind == "hardware" else ""
        yield f"other {kind}: {'; '.join(said)}{cure}"


def print_side_by_side(screen: Console, found: SideBySide) -> None:
    """One table per model, data set and scenario, and what has to be known of both folders."""
    places = found.lines.groupby(["model", "dataset", "scenario"], sort=False) if len(found.lines) else ()
    for place, rows in places:
        table = Table(
            title=Text(clean(f"{place[0]} on {place[1]}, {place[2]}"), style="bold"), title_justify="left",
            box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
        )  # fmt: skip
        for head in HEADS:
            table.add_column(head, justify="left" if head == "method" else "right", overflow="fold")
        for row in records_of(rows):
            table.add_row(*map(Text, _texts(row)))
        screen.print(table)
        for differs in sorted({row["differs"] for row in records_of(rows)} - {""}):
            screen.print(Text(f"other options: {clean(differs)}"))
        screen.print()
    for note in found.notes:
        screen.print(Text(clean(note)), soft_wrap=True)


def _texts(row: Record) -> list[str]:
    same = f", {row['same']} the same" if row["same"] else ""
    accuracies = (f"{row[f'{name}_accuracy_percent_mean']:.2f}".replace("nan", "-") for name in ("first", "second"))
    points = spanned(row, "accuracy_difference_points")
    ratios = (spanned(row, f"{name}_ratio", "") for name in ("flops", "time", "energy"))
    return [clean(row["label"]), f"{row['runs']}{same}", *accuracies, points, *ratios]
