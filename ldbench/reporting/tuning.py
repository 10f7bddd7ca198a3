"""What was tried in tuning, method by method and budget by budget, as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldbench.errors import clean
from ldbench.records.results import bounded
from ldbench.records.stored import Place
from ldbench.records.tuning import read_tuning
from ldbench.reporting.markup import Html, table, tag

MOST_SHOWN = 60


def tuning_section(place: Place) -> Html:
    """Every group of runs that was tuned: what was tried on validation images, what was chosen; empty without any."""
    groups = read_tuning(place)
    if not groups:
        return tag("div")
    heads = ["model, data set, scenario", "method", "chosen", "mean validation accuracy of each", "edge of the grid"]
    lines = [("open", _line(group)) for group in groups[:MOST_SHOWN]]
    more = f"{len(groups) - MOST_SHOWN} more are in tuning.json." if len(groups) > MOST_SHOWN else ""
    said = (
        "Chosen per method and budget by the mean accuracy on validation images, with seeds that no table here contains. "
        "A best value at the edge of its grid may not be the best there is: widen the grid."
    )
    return tag("section", tag("h2", "Tuning"), tag("p", said), table(heads, lines), tag("p", more, class_="quiet"))


def _line(group: Mapping[str, Any]) -> list[str]:
    place = ", ".join(clean(group.get(key)) for key in ("model", "dataset", "scenario"))
    budget = "" if group.get("budget") is None else f" {bounded(group['budget']):g}"
    method = f"{clean(group.get('method'))}{budget}"
    if group.get("as") is not None:
        return [place, method, _values(group.get("chosen")), f"as {clean(group['as'])}", ""]
    tried = [entry for entry in group.get("tried") or () if isinstance(entry, Mapping)]
    texts = []
    for entry in tried:
        mean = bounded(entry.get("mean"))
        texts.append(f"{_values(entry.get('values'))}: {f'{100 * mean:.2f} %' if mean == mean else 'failed'}")
    edge = ", ".join(clean(key) for key in group.get("edge") or ())
    return [place, method, _values(group.get("chosen")), "\n".join(texts), edge]


def _values(values: Any) -> str:
    if not isinstance(values, Mapping):
        return "?"
    return ", ".join(f"{clean(key)}={clean(value)}" for key, value in values.items())
