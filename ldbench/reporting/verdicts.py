"""Where a method stands against shortened training: what was declared is tested, everything else is shown.

The primary tests are the groups that the experiment declared before it ran: the mean lead of one rule over the
comparisons of a model, data at once and streams apart. It is a t test whose variance is that of the seeds, steadied by
the other declared groups' (``moderation``), and of the choice of the test images. A group is ahead where its rule is
better on every declared axis: that p-value is the largest of theirs (intersection-union test; Berger, Technometrics 24,
1982). It is behind where it is worse on one of them: the smallest p-value times their number (Bonferroni). Both
directions are tested, at half the level each, and Holm's correction over the groups decides.

A single comparison of the rule is tested only behind the gate of its group's verdict, in that direction: with its
variance moderated by the rule's other lines, by Holm within the group, at the group's share of the level. Whatever was
not declared is exploratory: figures with their plain intervals, and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldbench.reporting.frontier import Leads, pooled
from ldbench.reporting.moderation import Prior, moderated, variance_prior
from ldbench.reporting.stats import LEVEL, Estimate, holm, image_variance

Pair = tuple[Estimate, Estimate]  # over seeds; over seeds and images
Record = dict[str, Any]
AXES = {"flops": "equal FLOPs", "time": "equal time"}
AT_THE_END = "behind at the end of the stream"


class Evidence(NamedTuple):
    """What a method's row has to show: its leads by axis, and what could have bent them.

    ``final``: the pairs of the accuracy at the end, where the leads are those of the mean over chunks. ``undeclared``:
    how many of the row's runs and of its controls' were not made under the claims in force.
    """

    leads: Mapping[str, Leads]
    runs: int
    unfinished: int
    mixed_hardware: bool
    final: tuple[Pair, ...] = ()
    undeclared: int = 0

    def tested(self, axes: Sequence[str]) -> dict[str, Leads]:
        """Leads by axis, where a test is possible and its figures come from one machine."""
        usable = [axis for axis in axes if axis != "time" or not self.mixed_hardware]
        return {axis: self.leads[axis] for axis in usable if len(self.leads[axis].seeds) > 1}

    def worse_at_the_end(self) -> bool:
        """Whether accuracy at the end is surely lower, at either axis: plain 95 %, since it only forbids a claim."""
        pairs = self.final[: 1 if self.mixed_hardware else None]
        return any(pair[0].n > 1 and one_sided(pair, -1) <= LEVEL / 2 for pair in pairs)

    def doubts(self, axes: Sequence[str]) -> list[str]:
        """What forbids a verdict that it could have bent."""
        found = [
            f"{AXES[axis]}: {some.reason or 'a seed is missing'}"
            for axis, some in self.leads.items()
            if axis in axes and 0 < len(some.seeds) < self.runs
        ]
        found += ["times come from different machines"] * (self.mixed_hardware and "time" in axes)
        found += [f"{self.unfinished} runs did not finish"] * (self.unfinished > 0)
        return found


class Direction(NamedTuple):
    """A test: two-sided p-value, and the direction (1 better, -1 worse) that it speaks of."""

    p: float
    sign: int


def one_sided(pair: Sequence[Estimate], sign: int) -> float:
    """p-value of "better" (``sign`` 1) or "worse" (-1), in all samplings at once: the largest one."""
    known = [estimate for estimate in pair if math.isfinite(estimate.p_value)]
    return max(e.p_value / 2 if e.mean * sign > 0 else 1 - e.p_value / 2 for e in known)


def direction_of(pairs: Mapping[str, Sequence[Estimate]], axes: int = len(AXES)) -> Direction | None:
    """Better on all of so many ``axes``, or worse on one of them; None without a pair."""
    if not pairs:
        return None
    ahead = max(one_sided(pair, 1) for pair in pairs.values()) if len(pairs) == axes else 1.0
    behind = len(pairs) * min(one_sided(pair, -1) for pair in pairs.values())
    return Direction(min(1.0, 2 * min(ahead, behind)), 1 if ahead <= behind else -1)


class Group(NamedTuple):
    """A rule over several comparisons: their evidence, the mean of their leads by axis, and on which axes it is judged.

    ``exploratory``: why it is not a declared one; "" where it is. ``missing``: why a declared one cannot be tested.
    """

    lines: Sequence[Evidence]
    leads: Mapping[str, Leads]
    axes: Sequence[str]
    exploratory: str = ""
    missing: str = ""

    @property
    def tested(self) -> bool:
        """Whether it was declared and can be tested."""
        return not self.exploratory and not self.missing


class Verdict(NamedTuple):
    """``kind``: "ahead", "behind", "undecided", "n/a" or "exploratory"; why; p before and after its correction."""

    kind: str
    reason: str = ""
    p: float = math.nan
    adjusted: float = math.nan


def group_of(lines: Sequence[Evidence], axes: Sequence[str], exploratory: str = "", missing: str = "") -> Group:
    """The group of these lines of one rule."""
    leads = {axis: pooled([line.leads[axis] for line in lines]) for axis in AXES}
    return Group(lines, leads, axes, exploratory, missing)


def priors_of(every: Sequence[Mapping[str, Leads]]) -> dict[str, Prior]:
    """By axis, what the scatter of these leads over the seeds says of each one's."""
    found = {}
    for axis in AXES:
        known = [leads[axis].differences for leads in every if len(leads[axis].seeds) > 1]
        found[axis] = variance_prior([float(some.var(ddof=1)) for some in known], [len(some) - 1.0 for some in known])
    return found


def judge_groups(groups: Sequence[Group]) -> list[Verdict]:
    """A verdict for each group, those that were declared tested together."""
    priors = priors_of([group.leads for group in groups if group.tested])
    tests = [_test(group, priors) if group.tested else None for group in groups]
    places = [place for place, test in enumerate(tests) if test is not None]
    adjusted = dict(zip(places, holm([test.p for test in tests if test is not None]), strict=True))
    return [
        _group_verdict(group, test, adjusted.get(place, math.nan))
        for place, (group, test) in enumerate(zip(groups, tests, strict=True))
    ]


def _test(group: Group, priors: Mapping[str, Prior]) -> Direction | None:
    mixed = any(line.mixed_hardware for line in group.lines)
    usable = [axis for axis in group.axes if axis != "time" or not mixed]
    return _direction({axis: group.leads[axis] for axis in usable}, priors, len(group.axes))


def _direction(leads: Mapping[str, Leads], priors: Mapping[str, Prior], axes: int) -> Direction | None:
    estimates = {
        axis: [moderated(some.differences, priors[axis], of_images(some))]
        for axis, some in leads.items()
        if len(some.seeds) > 1
    }
    return direction_of(estimates, axes)


def _group_verdict(group: Group, test: Direction | None, adjusted: float) -> Verdict:
    if group.exploratory:
        return Verdict("exploratory", group.exploratory)
    if group.missing:
        return Verdict("n/a", group.missing)
    if test is None:
        reasons = dict.fromkeys(some.reason for some in group.leads.values() if some.reason)
        few = any(len(some.seeds) == 1 for some in group.leads.values())
        return Verdict("undecided", "one seed is an anecdote") if few else Verdict("n/a", "; ".join(reasons))
    doubts = dict.fromkeys(doubt for line in group.lines for doubt in _doubts(line, group.axes, test.sign))
    return _decided(test, adjusted, list(doubts))


def _decided(test: Direction, adjusted: float, doubts: Sequence[str]) -> Verdict:
    if adjusted > LEVEL:
        return Verdict("undecided", "an interval holds 0", test.p, adjusted)
    if doubts:
        return Verdict("undecided", "; ".join(doubts), test.p, adjusted)
    return Verdict("ahead" if test.sign > 0 else "behind", "", test.p, adjusted)


def judge_lines(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """For every group the verdicts of its lines, which were tested where the group's own opened the gate."""
    declared = [group for group in groups if group.tested]
    priors = priors_of([line.leads for group in declared for line in group.lines])
    found = []
    for group, verdict in zip(groups, verdicts, strict=True):
        if verdict.kind not in ("ahead", "behind"):
            why = "" if group.exploratory else "its group's verdict opens no gate"
            found.append([Verdict("exploratory", group.exploratory or why)] * len(group.lines))
            continue
        tests = [_direction(line.tested(group.axes), priors, len(group.axes)) for line in group.lines]
        sign = 1 if verdict.kind == "ahead" else -1
        p_values = [test.p if test is not None and test.sign == sign else 1.0 for test in tests]
        adjusted = [max(verdict.adjusted, min(1.0, len(declared) * p)) for p in holm(p_values)]
        found.append(
            [
                _decided(Direction(p, sign), corrected, _doubts(line, group.axes, sign))
                for line, p, corrected in zip(group.lines, p_values, adjusted, strict=True)
            ]
        )
    return found


def _doubts(line: Evidence, axes: Sequence[str], sign: int) -> list[str]:
    return line.doubts(axes) + [AT_THE_END] * (sign > 0 and line.worse_at_the_end())


def of_images(leads: Leads) -> float:
    """What the choice of the test images adds to the variance of the mean lead, where it is known image by image."""
    return 0.0 if leads.images is None else image_variance(np.asarray(leads.images, dtype=np.float64))
