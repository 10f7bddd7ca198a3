"""What a verdict says, in one plain sentence with the figures that decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ldbench.reporting.verdicts import AXES

PHRASES = {
    "ahead": "beats shortened training",
    "behind": "behind shortened training",
    "undecided": "no difference shown",
    "n/a": "cannot be compared",
    "exploratory": "exploratory",
}
FLAT = "flat: this recipe cannot tell methods apart"
Row = Mapping[str, Any]


def cheaper(row: Row, axis: str, digits: int = 2) -> str:
    """How many times cheaper at equal accuracy, ``1.43x [1.21, 1.65]``; bounds as such; "" where there is no figure."""
    name = f"speed_up_{axis}"
    ratio, low, high = (float(row.get(f"{name}_{part}", math.nan)) for part in ("mean", "low", "high"))
    if not math.isfinite(ratio):
        return ""
    bound = {"at least": "\N{GREATER-THAN OR EQUAL TO} ", "at most": "\N{LESS-THAN OR EQUAL TO} "}.get(
        row[f"{name}_bound"], ""
    )
    said = f"{bound}{ratio:.{digits}f}x"
    if math.isnan(low):
        return said
    least = f"{low:.{digits}f}" if low > 0 else f"< {row[f'{name}_lowest']:.{digits}f}"
    most = f"{high:.{digits}f}" if math.isfinite(high) else f"> {row[f'{name}_highest']:.{digits}f}"
    return f"{said} [{least}, {most}]"


def speed_sentence(row: Row) -> str:
    """ "1.43x cheaper [1.21, 1.65] by FLOPs, 1.30x cheaper [1.10, 1.52] by time, at equal accuracy"; "" without."""
    parts = []
    for axis, name in AXES.items():
        said = cheaper(row, axis)
        if said:
            number, _, rest = said.partition("x")
            worse = " as cheap" if float(row[f"speed_up_{axis}_mean"]) < 1 else " cheaper"
            parts.append(f"{number}x{worse}{rest} by {name.removeprefix('equal ')}")
    return f"{', '.join(parts)}, at equal accuracy" if parts else ""


def points_sentence(row: Row, names: Mapping[str, str]) -> str:
    """ "+0.62 [+0.30, +0.94] points at equal FLOPs, ..."; ``names``: the column of each axis."""
    parts = []
    for axis, name in names.items():
        mean, low, high = (float(row.get(f"{name}_{part}", math.nan)) for part in ("mean", "low", "high"))
        if math.isfinite(mean):
            interval = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""
            parts.append(f"{mean:+.2f}{interval} points at {AXES[axis]}")
    return ", ".join(parts)


def line_statement(row: Row) -> str:
    """The sentence of a method in one comparison; "" for controls."""
    stem = "average_difference_at_equal" if row["streamed"] else "difference_at_equal"
    points = points_sentence(row, {axis: f"{stem}_{axis}_points" for axis in AXES})
    points += " in the mean over the chunks" if points and row["streamed"] else ""
    return _statement(row, points, row["frontier_state"] == "saturated")


def group_statement(row: Row) -> str:
    """The sentence of a rule over a group of comparisons."""
    points = points_sentence(row, {axis: f"lead_{axis}_points" for axis in AXES})
    return _statement(row, points, bool(row["flat"]))


def _statement(row: Row, points: str, flat: bool) -> str:
    kind = row["verdict"]
    if kind == "control":
        return ""
    if kind == "n/a":
        return f"{PHRASES[kind]}: {row['verdict_reason']}"
    figures = "; ".join(part for part in (speed_sentence(row), points) if part)
    if flat and kind in ("undecided", "exploratory"):
        return f"{FLAT} ({figures})" if figures else FLAT
    said = f"{PHRASES[kind]}: {figures}" if figures else PHRASES[kind]
    adjusted = float(row["adjusted_p"])
    if math.isfinite(adjusted):
        said += f" (Holm's p = {adjusted:.2g})"
    usual = kind != "undecided" or str(row["verdict_reason"]).startswith("an interval")
    return said if usual or not row["verdict_reason"] else f"{said} ({row['verdict_reason']})"


def family(groups: Sequence[Row]) -> str:
    """What the verdicts of a report rest on: how many groups were declared and tested, or that none was."""
    declared = [row for row in groups if row["standing"] == "declared"]
    if not declared:
        return (
            "Exploratory: nothing was declared before these runs were made, so no verdict is given. Intervals are plain "
            "95 % ones, each by itself. A [claims] table in the experiment file declares what is to be shown."
        )
    tests = int(declared[0]["tests"])
    return (
        f"Declared before the runs: {len(declared)} group{'s' * (len(declared) != 1)} of comparisons, {tests} of them "
        "tested (Holm's p over these; better on every axis named). Single comparisons of the declared rule are tested "
        "only where their group's verdict opens the gate. All else is exploratory, with plain 95 % intervals."
    )
