"""The columns of the report: for each its title, how a summary row fills it, and what it means, in one place."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Column(NamedTuple):
    """``title`` heads the column, ``show`` gives a row's text, ``meaning`` is the glossary entry."""

    title: str
    show: Callable[[Row], str]
    meaning: str


def clean(value: Any) -> str:
    """Text of a record made harmless for terminal and page: control and invisible characters become U+FFFD."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in " ".join(text.split()))


def quantity(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits and no exponent below a million; "n/a" for a missing one."""
    if not math.isfinite(value):
        return "n/a"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:.{max(0, digits - whole)}f}"


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
    """A difference with both its intervals: over seeds, and over seeds and test images."""
    text = spanned(row, name)
    low, high = float(row[f"{name}_two_way_low"]), float(row[f"{name}_two_way_high"])
    kind = "with images" if row[f"{name}_n"] > 1 else "images alone"
    return f"{text}; {kind} [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else text


def accuracy(row: Row) -> str:
    """Accuracy in percent, its interval, and a flag for runs at chance level."""
    if row["synthetic"]:
        return "n/a: synthetic data"
    at_chance = f" ({row['at_chance']} at chance level)" if row["at_chance"] else ""
    return plus_minus(row, "test_accuracy_percent") + at_chance


def runs(row: Row) -> str:
    """Finished runs, and how many did not finish."""
    parts = [str(row["runs"])]
    parts += ["anecdote"] if row["runs"] == 1 else []
    parts += [f"{row[state]} {state}" for state in ("diverged", "failed") if row[state]]
    return ", ".join(parts)


def energy(row: Row) -> str:
    """Joules with interval, measurement bound and ratio to full; the reason where there is no reading."""
    if not row["energy_joules_n"]:
        return f"unavailable: {clean(row['energy_unavailable_reason']) or 'not recorded'}"
    text = plus_minus(row, "energy_joules", 0)
    bound, ratio = float(row["energy_bound_joules_max"]), float(row["energy_ratio_mean"])
    text += f", read to ± {quantity(bound)}" if math.isfinite(bound) else ""
    return text + (f", {ratio:.3f} of full" if math.isfinite(ratio) else "")


def to_target(row: Row) -> str:
    """Expected cost to the target accuracy, and how many runs reached it."""
    if not math.isfinite(row["target_accuracy_percent"]):
        return "n/a: no full run to set it"
    reached = f"{row['target_hits']} of {row['target_runs']} runs reach {row['target_accuracy_percent']:.2f} %"
    seconds, joules = float(row["train_seconds_to_target"]), float(row["energy_joules_to_target"])
    costs = [f"{quantity(seconds)} s"] if math.isfinite(seconds) else []
    costs += [f"{quantity(joules)} J"] if math.isfinite(joules) else []
    return f"{', '.join(costs)} ({reached})" if costs else reached


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


def verdict(row: Row) -> str:
    """Where the method stands against shortened training, and why."""
    return f"{row['verdict']}: {clean(row['verdict_reason'])}" if row["verdict_reason"] else str(row["verdict"])


METHOD = Column(
    "method", lambda row: clean(row["label"]), "What decided when to drop. full and short are the controls."
)
ENERGY = Column(
    "energy J", energy, "Joules of training with the bound of the meter. Unavailable is never 0, and never a guess."
)
ACCURACY_COLUMNS = (
    METHOD,
    Column(
        "n", runs, "Finished runs, one per seed. One run is an anecdote; diverged and failed runs have no accuracy "
        "and are counted here, so that a mean over survivors is seen for what it is.",
    ),
    Column("accuracy %", accuracy, "Test accuracy: mean over seeds ± half the 95 % interval (Student's t)."),
    Column(
        "points vs full", lambda row: difference(row, "difference_to_full_points"),
        "Accuracy minus that of full training with the same seed, in percentage points: mean [95 % interval]. The "
        "interval 'with images' also covers the choice of the test images: from which images each run got right, as "
        "crossed random effects of seeds and images; of a single run it covers the images alone.",
    ),
    Column(
        "points vs short, equal FLOPs", lambda row: difference(row, "difference_at_equal_flops_points"),
        "Accuracy minus what shortened training reaches for the same total FLOPs: per seed, on straight lines between "
        "the short budgets and full. Never extrapolated. Accuracy usually bends above such straight lines, so few "
        "budgets flatter the method a little.",
    ),
    Column(
        "points vs short, equal time", lambda row: difference(row, "difference_at_equal_time_points"),
        "The same at equal training seconds.",
    ),
    Column(
        "against shortened training", verdict,
        "ahead: better at equal FLOPs and at equal time; behind: worse at one of them; each with all intervals clear "
        "of 0. Otherwise undecided, or n/a where the frontier does not reach. Intervals are not widened for the number "
        "of comparisons: of twenty between equals, one is expected to look decided.",
    ),
)  # fmt: skip
COST_COLUMNS = (
    METHOD,
    Column(
        "training s", lambda row: plus_minus(row, "train_seconds", 1),
        "Seconds of training with every cost of the method in it: scoring, building the store, recompiling after a "
        "drop. Evaluation, data preparation, first compile and cost table stand apart in the figure.",
    ),
    Column(
        "time ÷ full", lambda row: spanned(row, "train_time_ratio", "", 3),
        "Training seconds over those of full with the same seed: geometric mean [95 % interval].",
    ),
    Column(
        "forward FLOPs saved %", lambda row: plus_minus(row, "forward_flops_reduction_percent", 1),
        "Forward FLOPs not executed, of those of the full recipe (2 per multiply-add; store building counts as "
        "executed). Freezing alone saves none.",
    ),
    Column(
        "all FLOPs saved %", lambda row: plus_minus(row, "total_flops_reduction_percent", 1),
        "The same for forward and backward together.",
    ),
    Column(
        "realised ÷ predicted", lambda row: spanned(row, "realised_over_predicted", "", 2),
        "Seconds saved against full, over the saving that the measured cost of each stage predicts for the same "
        "drops: what the engine itself loses. FLOPs do not predict time.",
    ),
    Column(
        "stages dropped", lambda row: several(row, " of ", ("dropped_stages_mean", "stage_count_max")),
        "Stages gone at the end of training, mean over seeds.",
    ),
    Column(
        "store build + scoring s",
        lambda row: several(row, " + ", ("cache_build_seconds_mean", "scoring_seconds_mean")),
        "What the method itself cost, mean over seeds; contained in training s.",
    ),
    Column(
        "peak / store MiB", lambda row: several(row, " / ", ("peak_memory_bytes_max", "store_bytes_max"), 2**-20),
        "Largest memory of any seed, and the largest store of activations.",
    ),
    ENERGY,
    Column(
        "to target", to_target,
        "What it takes, on average, until a run ends within half a point of full's mean accuracy: the cost of all runs, "
        "misses included, over the number that reached it (expected running time). Seconds, and joules where metered.",
    ),
)  # fmt: skip
SLOPE_MEANING = (
    "Frontier slope: accuracy points gained by doubling the training budget (least squares over the logarithm of the "
    "budget, per seed, with 95 % interval). Where the interval holds 0 and ends below half a point, the recipe is "
    "saturated: training less costs next to nothing here, every method ties, and the comparison says nothing. Where it "
    "holds 0 and reaches further, too few seeds were run to tell."
)
