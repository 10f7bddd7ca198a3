"""What the experiment in a results folder declared that it would show, as its report reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldbench.data.names import own_name
from ldbench.errors import UserError
from ldbench.experiment.claims import claims_table
from ldbench.io.checksums import Damaged, parse_sealed
from ldbench.records.stored import Place, stored


@dataclass(frozen=True)
class Declared:
    """The claims of an experiment.

    Attributes:
        digest: that every record of a run made under them carries.
        method: the rule that is claimed to be ahead.
        axes: of what.
        groups: (model, kind) in whose mean.
        datasets, scenarios: of the grid; a group has all of them that belong to its kind.
        seeds: with which.
    """

    digest: str
    method: str
    axes: tuple[str, ...]
    groups: tuple[tuple[str, str], ...]
    datasets: tuple[str, ...]
    scenarios: tuple[str, ...]
    seeds: tuple[int, ...]


def read_declared(place: Place) -> Declared | None:
    """The claims in ``experiment.json``; None where there are none, or where the file does not hold what was written."""
    try:
        told = parse_sealed(stored(place).read("experiment.json"))
    except Damaged:
        return None
    digest, lists = told.get("claims_sha256"), [told.get(key) for key in ("dataset", "scenario", "seeds")]
    if not isinstance(digest, str) or not all(isinstance(some, list) for some in lists) or told.get("claims") is None:
        return None
    try:
        table: dict[str, Any] = claims_table("claims", told["claims"])
    except UserError:
        return None
    groups = tuple((str(model), str(kind)) for model, kind in table.get("groups", ()))
    datasets, scenarios, seeds = (tuple(some or ()) for some in lists)
    called = tuple(own_name(name) for name in datasets if isinstance(name, str))
    return Declared(digest, table["method"], tuple(table["axes"]), groups, called, scenarios, seeds)
