"""Which stages left a run, when and for what reason, and why the others stayed: a collapsed table per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldbench.errors import clean
from ldbench.io.checksums import Damaged
from ldbench.policies.registry import get_method, method_names
from ldbench.records.results import bounded, read_object
from ldbench.records.stored import Place
from ldbench.reporting.comparisons import Record, method_labels, variant, variant_order
from ldbench.reporting.formatting import recorded
from ldbench.reporting.markup import Html, table, tag

MOST_STAGES, MOST_DECLINED = 300, 20  # shown of a run
LONGEST = 300  # characters of a reason
BEYOND = "There is more of it in the run's result.json."
TITLE = "Which stages left, and why the others stayed"


def departures(place: Place, cells: Sequence[Record]) -> list[Html]:
    """A heading and one collapsed table per method that can drop, each of its finished run with the lowest seed.

    Nothing where no run says why its stages stayed, as of records that were written before there were reasons.

    Args:
        place: the results.
        cells: the runs of one comparison.
    """
    labels, shown = method_labels(cells), set()
    tables: list[Html] = []
    for cell in sorted(cells, key=lambda cell: (variant_order(variant(cell)), cell["seed"])):
        if cell["status"] != "finished" or variant(cell) in shown or not _can_drop(cell["method"]):
            continue
        shown.add(variant(cell))
        stages = _stages(place, cell["cell"])
        if any(_why(stage) for stage in stages):
            tables.append(_table(f"{clean(labels[variant(cell)])}, seed {cell['seed']}", stages, cell))
    return [tag("h3", TITLE), *tables] if tables else []


def _can_drop(method: str) -> bool:
    """Whether the method has a rule that lets stages go; of one that isn't known here it's taken for granted."""
    return method not in method_names() or get_method(method).stops


def _stages(place: Place, cell: str) -> list[Mapping[str, Any]]:
    try:
        listed = read_object(place, f"cells/{cell}/result.json").get("stages")
    except Damaged:
        return []
    return [stage for stage in listed if isinstance(stage, dict)] if isinstance(listed, list) else []


def _why(stage: Mapping[str, Any]) -> str:
    said = stage.get("why")
    return said if isinstance(said, str) else ""


def _table(run: str, stages: Sequence[Mapping[str, Any]], cell: Record) -> Html:
    rows, left = [], 0
    for place, stage in enumerate(stages):
        drop = next((drop for drop in cell["drops"] if bounded(drop.get("cut")) > place), None)
        left += drop is not None
        when, why = "stayed", _why(stage)
        if drop is not None:
            when = f"epoch {recorded(drop.get('epoch'))}, step {recorded(drop.get('step'))}"
            why = recorded(drop.get("reason"))
        name = f"{place + 1}: {recorded(stage.get('name'))}"
        rows.append(("open" if drop is None else "drop", [name, when, why[:LONGEST] or "-"]))
    declined = [
        f"Declined at step {recorded(entry.get('step'))}, {recorded(entry.get('cut'))} of {len(stages)} stages gone: "
        f"{recorded(entry.get('reason'))[:LONGEST]}"
        for entry in cell["declined"]
    ]
    return tag(
        "details",
        tag("summary", f"{run}: {left} of {len(stages)} stages left"),
        table(["stage", "left", "why"], rows[:MOST_STAGES]),
        [tag("p", text) for text in declined[:MOST_DECLINED]],
        tag("p", BEYOND, class_="quiet") if len(rows) > MOST_STAGES or len(declined) > MOST_DECLINED else "",
    )
