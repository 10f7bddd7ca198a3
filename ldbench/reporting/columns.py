"""Estimates as the columns of a table: ``NAME_mean``, ``NAME_low``, ``NAME_high``, ``NAME_n``, ``NAME_reason``."""

from __future__ import annotations

from ldbench.reporting.comparisons import Record
from ldbench.reporting.equal_accuracy import SpeedUp
from ldbench.reporting.stats import Estimate


def columns(name: str, seeds: Estimate, both: Estimate | None = None) -> Record:
    """The columns of an estimate, and of its interval over images too."""
    row: Record = {f"{name}_{part}": getattr(seeds, part) for part in ("mean", "low", "high", "n", "reason")}
    if both is None:
        return row
    row |= {f"{name}_two_way_low": both.low, f"{name}_two_way_high": both.high}
    return row | {f"{name}_sd": seeds.spread}  # of the paired differences, from seed to seed


def speed_columns(name: str, found: SpeedUp) -> Record:
    """The columns of a speed-up."""
    row: Record = {f"{name}_{part}": getattr(found, part) for part in ("low", "high", "n", "bound", "reason")}
    return row | {f"{name}_mean": found.ratio, f"{name}_lowest": found.lowest, f"{name}_highest": found.highest}
