"""Where each method stands against shortened training, decided over the whole family of tests that a report makes.

The family is every method that is no control x every comparison x {equal FLOPs, equal time}, as far as there are two
seeds to test with. A test at one axis needs every interval there is (over seeds; over seeds and images) clear of 0: its
p-value is the largest of theirs (intersection-union test; Berger, Technometrics 24, 1982). Holm's correction decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldbench.multiplicity import LEVEL, holm, simultaneous_confidence
from ldbench.stats import Estimate

Pair = tuple[Estimate, Estimate]  # over seeds; over seeds and images
Record = dict[str, Any]
AXES = {"flops": "equal FLOPs", "time": "equal time"}
PHRASES = {
    "ahead": "beats shortened training",
    "behind": "behind shortened training",
    "undecided": "no difference shown",
    "n/a": "cannot be compared",
}
FLAT = "flat: this recipe cannot tell methods apart"


class Evidence(NamedTuple):
    """What a method's row has to show: differences (fractions) to the frontier, and what could have bent them."""

    flops: Pair
    time: Pair
    runs: int
    unfinished: int
    mixed_hardware: bool

    def tested(self) -> dict[str, float]:
        """p-value by axis, where a test is possible and its figures come from one machine."""
        pairs = {"flops": self.flops} | ({} if self.mixed_hardware else {"time": self.time})
        return {axis: p_value(pair) for axis, pair in pairs.items() if pair[0].n > 1}


def p_value(pair: Pair) -> float:
    """Of both samplings at once; 1 where they disagree on the direction."""
    known = [estimate for estimate in pair if math.isfinite(estimate.p_value)]
    return max(e.p_value for e in known) if len({e.mean > 0 for e in known}) == 1 else 1.0


def judge(rows: Sequence[Record], evidence: Sequence[Evidence | None]) -> None:
    """Fill in the verdicts of all ``rows`` of a report, ``evidence`` of each beside it (``None``: a control)."""
    tests = [(place, axis, p) for place, e in enumerate(evidence) if e for axis, p in e.tested().items()]
    adjusted: dict[int, dict[str, float]] = {}
    for (place, axis, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        adjusted.setdefault(place, {})[axis] = p
    for place, (row, one) in enumerate(zip(rows, evidence, strict=True)):
        row["tests_in_family"] = len(tests)
        plain, corrected = one.tested() if one else {}, adjusted.get(place, {})
        for axis in AXES:
            name = f"difference_at_equal_{axis}"
            row[f"{name}_p"], row[f"{name}_holm_p"] = plain.get(axis, math.nan), corrected.get(axis, math.nan)
            low, high = simultaneous(getattr(one, axis), len(tests)) if axis in plain else (math.nan, math.nan)
            row[f"{name}_points_simultaneous_low"], row[f"{name}_points_simultaneous_high"] = 100 * low, 100 * high
        row["verdict"], row["verdict_reason"] = verdict(one, corrected) if one else ("control", "")
        row["verdict_uncorrected"] = verdict(one, plain)[0] if one else "control"
        if row["verdict"] == "undecided" and row["verdict_uncorrected"] != "undecided":
            alone = "better" if row["verdict_uncorrected"] == "ahead" else "worse"
            row["verdict_reason"] = f"{alone} by these tests alone, but not among {len(tests)}"
        row["statement"] = statement(row)


def simultaneous(pair: Pair, tests: int) -> tuple[float, float]:
    """Ends of the interval that covers together with those of all ``tests``: the hull of both samplings'."""
    wide = [estimate.at(simultaneous_confidence(tests)) for estimate in pair if math.isfinite(estimate.freedom)]
    return min(estimate.low for estimate in wide), max(estimate.high for estimate in wide)


def verdict(evidence: Evidence, p_values: Mapping[str, float]) -> tuple[str, str]:
    """("ahead" | "behind" | "undecided" | "n/a", why) against shortened training, by the p-value of each axis.

    Ahead needs both equal FLOPs and equal time, behind needs one of them. Seeds that the frontier does not reach, runs
    that did not finish and pairs timed on different machines forbid a verdict that they could have bent.
    """
    pairs = {axis: getattr(evidence, axis) for axis in AXES}
    missing = [f"{AXES[axis]}: {pair[0].reason}" for axis, pair in pairs.items() if pair[0].n == 0]
    partial = [f"{AXES[axis]}: {pair[0].reason}" for axis, pair in pairs.items() if 0 < pair[0].n < evidence.runs]
    signs = {axis: (1 if pairs[axis][0].mean > 0 else -1) * (p <= LEVEL) for axis, p in p_values.items()}
    if len(missing) == len(AXES):
        reasons = dict.fromkeys(pair[0].reason for pair in pairs.values())
        return "n/a", next(iter(reasons)) if len(reasons) == 1 else "; ".join(missing)
    if evidence.runs < 2:
        return "undecided", "one seed is an anecdote"
    worse = [AXES[axis] for axis, sign in signs.items() if sign < 0]
    if worse and not partial:
        return "behind", "at " + " and ".join(worse)
    if missing:
        return "n/a", missing[0]
    doubts = partial + ["times come from different machines"] * evidence.mixed_hardware
    doubts += [f"{evidence.unfinished} runs did not finish"] * (evidence.unfinished > 0)
    if len(signs) == len(AXES) and all(sign > 0 for sign in signs.values()) and not doubts:
        return "ahead", "at equal FLOPs and at equal time"
    return "undecided", "; ".join(doubts) or "an interval over seeds, or over seeds and images, holds 0"


def statement(row: Mapping[str, Any]) -> str:
    """The verdict as one plain sentence with what decides it: differences with simultaneous intervals; "" for controls."""
    kind = row["verdict"]
    if kind == "control":
        return ""
    if kind == "undecided" and row["frontier_state"] == "saturated":
        return FLAT
    if kind == "n/a":
        return f"{PHRASES[kind]}: {row['verdict_reason']}"
    shown = ", ".join(text for axis in AXES if (text := _difference(row, axis)))
    said = f"{PHRASES[kind]}: {shown}" if shown else PHRASES[kind]
    usual = kind != "undecided" or row["verdict_reason"].startswith("an interval")
    return said if usual else f"{said} ({row['verdict_reason']})"


def _difference(row: Mapping[str, Any], axis: str) -> str:
    name = f"difference_at_equal_{axis}"
    low, high = (float(row[f"{name}_points_simultaneous_{end}"]) for end in ("low", "high"))
    if not math.isfinite(low):
        return ""
    by_steps = row[f"{name}_holm_p"] <= LEVEL and low <= 0 <= high
    note = f" (Holm's p = {row[f'{name}_holm_p']:.2g})" if by_steps else ""
    return f"{row[f'{name}_points_mean']:+.2f} [{low:+.2f}, {high:+.2f}] points at {AXES[axis]}{note}"
