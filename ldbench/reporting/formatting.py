"""How a row of the summary is put into words: numbers with their intervals, reasons where there is no number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldbench.errors import clean
from ldbench.reporting.runs import RAW
from ldbench.reporting.sentences import cheaper

Row = Mapping[str, Any]
FLOPS_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))


def quantity(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits and no exponent below a million; "n/a" for a missing one."""
    if not math.isfinite(value):
        return "n/a"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:.{max(0, digits - whole)}f}"


def recorded(value: Any) -> str:
    """An entry of a record as text, whatever was written there; "-" for none."""
    if value is None or isinstance(value, str):
        return value or "-"
    return quantity(float(value)) if isinstance(value, float) else clean(value)[:80]


def plus_minus(row: Row, name: str, digits: int = 2, sign: str = "") -> str:
    """Mean and half-width, ``91.23 ± 0.40``; the bare mean where there is no interval."""
    mean, low, high = (float(row[f"{name}_{part}"]) for part in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return "n/a"
    text = f"{mean:{sign}.{digits}f}"
    return f"{text} ± {(high - low) / 2:.{digits}f}" if math.isfinite(low) else text


def spanned(row: Row, name: str, sign: str = "+", digits: int = 2) -> str:
    """Mean and interval, ``+0.35 [-0.10, +0.80]``; the reason where there is no mean."""
    mean, low, high = (float(row[f"{name}_{part}"]) for part in ("mean", "low", "high"))
    reason, form = clean(row[f"{name}_reason"]), f"{sign}.{digits}f"
    if not math.isfinite(mean):
        return f"n/a: {reason}" if reason and not reason.startswith("is ") else "-"
    text = f"{mean:{form}} [{low:{form}}, {high:{form}}]" if math.isfinite(low) else f"{mean:{form}}"
    return f"{text} ({reason})" if reason and math.isfinite(low) else text


def difference(row: Row, name: str) -> str:
    """A difference with its intervals, a line each: over seeds, and over seeds and images."""
    lines = [spanned(row, name)]
    low, high = float(row[f"{name}_two_way_low"]), float(row[f"{name}_two_way_high"])
    kind = "with images" if row[f"{name}_n"] > 1 else "images alone"
    lines += [f"{kind} [{low:+.2f}, {high:+.2f}]"] if math.isfinite(low) else []
    return "\n".join(lines)


def probability(p: float) -> str:
    """A p-value with two significant digits, or the bound it lies below."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def accuracy(row: Row) -> str:
    """Accuracy in percent, its interval, and a flag for runs at chance level."""
    if row["synthetic"]:
        return "n/a: synthetic data"
    at_chance = f" ({row['at_chance']} at chance level)" if row["at_chance"] else ""
    said = plus_minus(row, "test_accuracy_percent") + at_chance
    return said if not row["streamed"] else f"{said}, mean {plus_minus(row, 'average_accuracy_percent')}"


def runs(row: Row) -> str:
    """Finished runs, and how many did not finish."""
    parts = [str(row["runs"])]
    parts += ["anecdote"] if row["runs"] == 1 else []
    parts += [f"{row[state]} {state}" for state in ("diverged", "failed") if row[state]]
    return ", ".join(parts)


def energy(row: Row) -> str:
    """Joules with interval, measurement bound and ratio to full; ``no_energy`` tells once why there is no reading."""
    if not row["energy_joules_n"]:
        return "unavailable"
    text = plus_minus(row, "energy_joules", 0)
    bound, ratio = float(row["energy_bound_joules_max"]), float(row["energy_ratio_mean"])
    text += f", read to ± {quantity(bound)}" if math.isfinite(bound) else ""
    return text + (f", {ratio:.3f} of full" if math.isfinite(ratio) else "")


def no_energy(rows: Iterable[Row]) -> str:
    """Why rows have no energy, every reason once with the rows it holds for; "" where all have it."""
    reasons: dict[str, list[str]] = {}
    every = list(rows)
    for row in every:
        if not row["energy_joules_n"]:
            reason = clean(row["energy_unavailable_reason"]) or "not recorded"
            reasons.setdefault(reason, []).append(clean(row["label"]))
    said = [
        f"unavailable: {reason}" + (f" ({', '.join(labels)})" if len(labels) < len(every) else "")
        for reason, labels in reasons.items()
    ]
    return f"Energy {'; '.join(said)}" if said else ""


def reached(row: Row) -> str:
    """How many runs reached the target accuracy, and which that is."""
    if not math.isfinite(row["target_accuracy_percent"]):
        return "n/a: no full run to set it"
    return f"{row['target_hits']} of {row['target_runs']} runs reach {row['target_accuracy_percent']:.2f} %"


def to_target(row: Row, name: str) -> str:
    """Expected cost to the target accuracy with its interval, ``name`` being the cost's column."""
    mean, low, high = (float(row[f"{name}_to_target{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(mean):
        return "never" if not row["target_hits"] else "unavailable" if name == "energy_joules" else "not known"
    size, unit = (1.0, "s") if name == "train_seconds" else (1.0, "J")
    if name == "total_flops":
        size, unit = next((entry for entry in FLOPS_UNITS if mean >= entry[0]), FLOPS_UNITS[-1])
    interval = f" [{quantity(low / size)}, {quantity(high / size)}]" if math.isfinite(low) else ""
    return f"{quantity(mean / size)}{interval} {unit}"


def slope(row: Row) -> str:
    """What doubling the training budget buys, and the flag of a recipe that cannot tell methods apart."""
    text = spanned(row, "frontier_slope_points_per_doubling")
    notes = {
        "saturated": "saturated: cannot tell methods apart",
        "falling": "training longer lowers the accuracy: the recipe is broken",
        "unclear": "too few seeds to tell whether saturated",
        "one seed": "one seed: cannot say whether saturated",
    }
    note = notes.get(row["frontier_state"])
    return f"{text}; {note}" if note else text


def several(row: Row, mark: str, names: tuple[str, ...], scale: float = 1.0) -> str:
    """Several plain numbers of a row with ``mark`` between them."""
    values = [float(row[name]) * scale for name in names]
    return mark.join(f"{value:.0f}" if value.is_integer() else quantity(value, 2) for value in values)


def standing(row: Row) -> str:
    """Where the method stands against shortened training: its sentence without the figures."""
    if row["verdict"] == "control":
        return "control"
    said = clean(row["statement"]).split(":")[0].split(" (")[0]
    return f"{said}, p {probability(row['adjusted_p'])}" if math.isfinite(row["adjusted_p"]) else said


def speed_up(row: Row, axis: str) -> str:
    """How many times cheaper at equal accuracy, or why that cannot be told."""
    said, reason = cheaper(row, axis), clean(row[f"speed_up_{axis}_reason"])
    return said or (f"n/a: {reason}" if reason and not reason.startswith("is ") else "-")


def seconds(row: Row) -> str:
    """Training seconds by the median step times, and the raw ones beside them where they are not the same figure."""
    said = plus_minus(row, "compared_seconds", 1)
    return said if row["time_basis"].startswith(RAW) else f"{said}\nraw {plus_minus(row, 'train_seconds', 1)}"


def time_ratio(row: Row) -> str:
    """Training time over that of full training; the raw seconds' beside it where it is not the same figure."""
    said = spanned(row, "train_time_ratio", "", 3)
    return (
        said
        if row["time_basis"].startswith(RAW) or said == "-"
        else f"{said}\nraw {spanned(row, 'raw_time_ratio', '', 3)}"
    )


def recipe(rows: Sequence[Row]) -> str:
    """Which learning rate (or whatever was tuned) each row of a comparison was run with, and how it was come by."""
    tuned = [row for row in rows if row["tuned"]]
    if not tuned:
        rate = json.loads(rows[0]["setting"]).get("lr")
        said = f" (learning rate {rate:g})" if isinstance(rate, (int, float)) else ""
        return (
            f"One recipe for every row{said}, not tuned per method and budget (--tune): the best of each may be better."
        )
    parts = []
    for row in tuned:
        edge = f" at the edge of what was tried ({clean(row['tuned_edge'])})" if row["tuned_edge"] else ""
        parts.append(f"{clean(row['label'])} {clean(row['tuned'])}{edge}")
    return f"Tuned on validation images: {'; '.join(parts)}."


def frontier_check(row: Row) -> str:
    """The frontier's own check: what each budget's runs are above the frontier through the others."""
    check = clean(row["frontier_check"])
    budgets = f"frontier through {row['frontier_budgets']} budgets and full training"
    return f"{budgets}; leaving one budget out, its runs lie above the rest by (points) {check}" if check else budgets


def end_and_average(row: Row, name: str) -> str:
    """``name`` of the accuracy at the end, and where data arrive in chunks that of the mean over them, a line each."""
    if not row["streamed"]:
        return difference(row, name)
    return f"at the end {difference(row, name)}\nmean over the chunks {difference(row, f'average_{name}')}"


def planned_seeds(row: Row) -> str:
    """How many seeds a half-width of a quarter point would take."""
    seeds = float(row["seeds_needed_for_quarter_point"])
    return f"{seeds:.0f}" if math.isfinite(seeds) else "-"
