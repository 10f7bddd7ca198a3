"""Where each method stands against shortened training, decided over the whole family of tests that a report makes.

The family is every method that is no control x every comparison, as far as there are two seeds to test with. Where the
data arrive in chunks, the accuracy that counts is the mean over the chunks, since the model is used all along; else it
is the one at the end. A method is ahead where it is better at equal FLOPs and at equal time, in every interval there is
(over seeds; over seeds and images): that p-value is the largest of theirs (intersection-union test; Berger,
Technometrics 24, 1982). It is behind where it is worse at one of the two: the smaller p-value times two (Bonferroni).
Both directions are tested, at half the level each, and Holm's correction over the family decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldbench.reporting.stats import LEVEL, Estimate, holm, simultaneous_confidence

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
AT_THE_END = "behind at the end of the stream"


class Evidence(NamedTuple):
    """What a method's row has to show: differences (fractions) to the frontier, and what could have bent them.

    ``final``: of the accuracy at the end, where ``flops`` and ``time`` are those of the mean over chunks; else None.
    """

    flops: Pair
    time: Pair
    runs: int
    unfinished: int
    mixed_hardware: bool
    final: tuple[Pair, Pair] | None = None

    def tested(self) -> dict[str, Pair]:
        """Pair by axis, where a test is possible and its figures come from one machine."""
        pairs = {"flops": self.flops} | ({} if self.mixed_hardware else {"time": self.time})
        return {axis: pair for axis, pair in pairs.items() if pair[0].n > 1}

    def worse_at_the_end(self) -> bool:
        """Whether accuracy at the end is surely lower, at either axis: plain 95 %, since it only forbids a claim."""
        pairs = self.final[: 1 if self.mixed_hardware else 2] if self.final else ()
        return any(pair[0].n > 1 and one_sided(pair, -1) <= LEVEL / 2 for pair in pairs)


class Direction(NamedTuple):
    """A row's test: two-sided p-value, and the direction (1 better, -1 worse) that it speaks of."""

    p: float
    sign: int


def one_sided(pair: Pair, sign: int) -> float:
    """p-value of "better" (``sign`` 1) or "worse" (-1), in both samplings at once: the larger one."""
    known = [estimate for estimate in pair if math.isfinite(estimate.p_value)]
    return max(e.p_value / 2 if e.mean * sign > 0 else 1 - e.p_value / 2 for e in known)


def direction_of(pairs: Mapping[str, Pair]) -> Direction | None:
    """Better at all of ``AXES``, or worse at one of them; None without a pair."""
    if not pairs:
        return None
    ahead = max(one_sided(pair, 1) for pair in pairs.values()) if len(pairs) == len(AXES) else 1.0
    behind = len(pairs) * min(one_sided(pair, -1) for pair in pairs.values())
    return Direction(min(1.0, 2 * min(ahead, behind)), 1 if ahead <= behind else -1)


def judge(rows: Sequence[Record], evidence: Sequence[Evidence | None]) -> None:
    """Fill in the verdicts of all ``rows`` of a report, ``evidence`` of each beside it (``None``: a control).

    ``p`` and ``holm_p`` are the row's, before and after the correction; the simultaneous intervals are those of the
    accuracy that counts, in the columns of ``stem(row)``.
    """
    tests = [direction_of(one.tested()) if one else None for one in evidence]
    places = [place for place, test in enumerate(tests) if test is not None]
    adjusted = dict(zip(places, holm([test.p for test in tests if test is not None]), strict=True))
    for place, (row, one, test) in enumerate(zip(rows, evidence, tests, strict=True)):
        row["tests_in_family"] = len(places)
        row["p"], row["holm_p"] = (test.p, adjusted[place]) if test else (math.nan, math.nan)
        pairs = one.tested() if one else {}
        for axis in AXES:
            name = f"{stem(row)}_{axis}_points"
            low, high = simultaneous(pairs[axis], len(AXES) * len(places)) if axis in pairs else (math.nan, math.nan)
            row[f"{name}_simultaneous_low"], row[f"{name}_simultaneous_high"] = 100 * low, 100 * high
        corrected = Direction(row["holm_p"], test.sign) if test else None
        row["verdict"], row["verdict_reason"] = verdict(one, corrected) if one else ("control", "")
        row["verdict_uncorrected"] = verdict(one, test)[0] if one else "control"
        if row["verdict"] == "undecided" and row["verdict_uncorrected"] != "undecided":
            alone = "better" if row["verdict_uncorrected"] == "ahead" else "worse"
            row["verdict_reason"] = f"{alone} by this test alone, but not among {len(places)}"
        row["statement"] = statement(row)


def stem(row: Mapping[str, Any]) -> str:
    """How the columns of the differences that count begin."""
    return "average_difference_at_equal" if row.get("streamed") else "difference_at_equal"


def simultaneous(pair: Pair, tests: int) -> tuple[float, float]:
    """Ends of the interval that covers together with those of all ``tests``: the hull of both samplings'."""
    wide = [estimate.at(simultaneous_confidence(tests)) for estimate in pair if math.isfinite(estimate.freedom)]
    return min(estimate.low for estimate in wide), max(estimate.high for estimate in wide)


def verdict(evidence: Evidence, test: Direction | None) -> tuple[str, str]:
    """("ahead" | "behind" | "undecided" | "n/a", why) against shortened training, by the row's test.

    Seeds that the frontier does not reach, runs that did not finish and pairs timed on different machines forbid a
    verdict that they could have bent.
    """
    pairs = {axis: getattr(evidence, axis) for axis in AXES}
    missing = [f"{AXES[axis]}: {pair[0].reason}" for axis, pair in pairs.items() if pair[0].n == 0]
    partial = [f"{AXES[axis]}: {pair[0].reason}" for axis, pair in pairs.items() if 0 < pair[0].n < evidence.runs]
    sign = test.sign if test and test.p <= LEVEL else 0
    if len(missing) == len(AXES):
        reasons = dict.fromkeys(pair[0].reason for pair in pairs.values())
        return "n/a", next(iter(reasons)) if len(reasons) == 1 else "; ".join(missing)
    if evidence.runs < 2:
        return "undecided", "one seed is an anecdote"
    if sign < 0 and not partial:
        worse = [AXES[axis] for axis, pair in evidence.tested().items() if pair[0].sign < 0]
        return "behind", "at " + " and ".join(worse)
    if missing:
        return "n/a", missing[0]
    doubts = partial + ["times come from different machines"] * evidence.mixed_hardware
    doubts += [f"{evidence.unfinished} runs did not finish"] * (evidence.unfinished > 0)
    doubts += [AT_THE_END] * evidence.worse_at_the_end()
    if sign > 0 and not doubts:
        return "ahead", "at equal FLOPs and at equal time"
    return "undecided", "; ".join(doubts) or "an interval over seeds, or over seeds and images, holds 0"


def statement(row: Mapping[str, Any]) -> str:
    """The verdict as one plain sentence with what decides it: differences, simultaneous intervals; "" for controls."""
    kind = row["verdict"]
    if kind == "control":
        return ""
    if kind == "undecided" and row["frontier_state"] == "saturated":
        return FLAT
    if kind == "n/a":
        return f"{PHRASES[kind]}: {row['verdict_reason']}"
    shown = ", ".join(text for axis in AXES if (text := _difference(row, axis)))
    shown += " in the mean over the chunks" if shown and row.get("streamed") else ""
    said = f"{PHRASES[kind]}: {shown}" if shown else PHRASES[kind]
    said += f" (Holm's p = {row['holm_p']:.2g})" if kind in ("ahead", "behind") and _narrow(row) else ""
    usual = kind != "undecided" or row["verdict_reason"].startswith("an interval")
    return said if usual else f"{said} ({row['verdict_reason']})"


def _difference(row: Mapping[str, Any], axis: str) -> str:
    name = f"{stem(row)}_{axis}_points"
    low, high = (float(row[f"{name}_simultaneous_{end}"]) for end in ("low", "high"))
    if not math.isfinite(low):
        return ""
    return f"{row[f'{name}_mean']:+.2f} [{low:+.2f}, {high:+.2f}] points at {AXES[axis]}"


def _narrow(row: Mapping[str, Any]) -> bool:
    """Whether Holm's steps decided what the simultaneous intervals alone do not show."""
    ends = [tuple(row[f"{stem(row)}_{axis}_points_simultaneous_{end}"] for end in ("low", "high")) for axis in AXES]
    clear = [low > 0 if row["verdict"] == "ahead" else high < 0 for low, high in ends]
    return not (all(clear) if row["verdict"] == "ahead" else any(clear))
