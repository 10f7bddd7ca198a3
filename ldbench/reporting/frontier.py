"""Runs against the frontier of shortened training, seed by seed: how far above it, at its own cost and at others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldbench.reporting.curve import Curve, Floats, OffFrontier
from ldbench.reporting.stats import Estimate, t_interval, two_way_interval

# What the control may spend, as multiples of a run's own cost: 4 % apart, from a 32nd to 64 times.
RATIOS: Floats = np.exp(np.arange(-math.log(32), math.log(64), 0.04))
FULL = 1.0  # the budget of full training


class Run(NamedTuple):
    """A finished run as the frontier sees it.

    Attributes:
        cost: in any unit.
        accuracy: fraction.
        correct: per test image 1 or 0, or of a stream the share of the chunks after which it was right; None: unknown.
        budget: of a control, ``FULL`` for full training.
    """

    cost: float
    accuracy: float
    correct: NDArray[Any] | None = None
    budget: float = math.nan


Way = Mapping[int, tuple[Curve | OffFrontier, Sequence[Run]]]  # a way of training less: by seed its curve and controls


@dataclass(frozen=True)
class Leads:
    """How far a method's runs end above the frontier, seed by seed.

    Attributes:
        seeds: that the frontier reaches.
        differences: accuracy less the frontier's at the run's own cost, fractions [seeds].
        images: the same image by image [seeds, images]; None where a record lacks them.
        over_ratios: the same where the control may spend ``RATIOS`` times the run's cost [seeds, ratios]; None unless
            asked for.
        lowest, highest: the ratios between which the controls were run, geometric means over the seeds.
        reason: what kept seeds out, or makes the comparison a kinder one.
        control: the way of training less that does best at these costs.
    """

    seeds: tuple[int, ...] = ()
    differences: Floats = field(default_factory=lambda: np.empty(0))
    images: Floats | None = None
    over_ratios: Floats | None = None
    lowest: float = math.nan
    highest: float = math.nan
    reason: str = ""
    control: str = ""

    def pair(self) -> tuple[Estimate, Estimate]:
        """Mean lead with its interval over seeds, and over seeds and images."""
        over_seeds = t_interval(self.differences)
        if self.reason:
            over_seeds = replace(over_seeds, reason=self.reason)
        both = Estimate(reason="no per-image record") if self.images is None else two_way_interval(self.images)
        return over_seeds, both


def way_of(frontier: Mapping[int, Sequence[Run]]) -> Way:
    """The curve of every seed, or why there is none."""
    made: dict[int, tuple[Curve | OffFrontier, Sequence[Run]]] = {}
    for seed, controls in frontier.items():
        dearest = next((place for place, run in enumerate(controls) if run.budget == FULL), None)
        try:
            made[seed] = Curve([run.cost for run in controls], [run.accuracy for run in controls], dearest), controls
        except OffFrontier as reason:
            made[seed] = reason, controls
    return made


def leads(method: Mapping[int, Run], ways: Mapping[str, Way], *, ratios: bool = False) -> Leads:
    """A method's runs against that way of training less which does best at their costs.

    Best on average over the seeds, among those ways that reach as many of them: what is left to choice favours the
    control. A run dearer than full training is compared with full training itself.

    Args:
        ratios: at other costs too; the best way is then chosen for each of them.
    """
    found = [_along(method, way, name) for name, way in ways.items() if way] or [_along(method, {}, "")]
    most = max(len(some.seeds) for some in found)
    best = min((some for some in found if len(some.seeds) == most), key=lambda some: _mean(some.differences))
    if not ratios or not best.seeds:
        return best
    tables = []
    for some in found:
        if some.seeds == best.seeds:
            curves = [ways[some.control][seed][0] for seed in some.seeds]
            tables.append(np.stack([_over_ratios(method[s], c) for s, c in zip(some.seeds, curves, strict=True)]))
    hardest = np.argmin([table.mean(axis=0) for table in tables], axis=0)
    over = np.stack(tables)[hardest, :, np.arange(len(RATIOS))].T
    return replace(best, over_ratios=over)


def _along(method: Mapping[int, Run], way: Way, name: str) -> Leads:
    seeds, differences, images, spans = [], [], [], []
    missed: Counter[str] = Counter()
    dearer = 0
    for seed, run in sorted(method.items()):
        curve, controls = way.get(seed, (OffFrontier("no short run to compare with"), ()))
        try:
            if isinstance(curve, OffFrontier):
                raise curve
            curve.check(run.cost)
        except OffFrontier as reason:
            missed[str(reason)] += 1
            continue
        weights = curve.weights(np.array([run.cost]))[0]
        seeds.append(seed)
        differences.append(run.accuracy - float(weights @ curve.accuracies))
        dearer += run.cost > curve.highest
        end = curve.highest if curve.dearest is None else controls[curve.dearest].cost
        spans.append((math.log(curve.cheapest / run.cost), math.log(end / run.cost)))
        theirs = [control.correct for control in controls if control.correct is not None]
        if run.correct is not None and [len(some) for some in theirs] == [len(run.correct)] * len(controls):
            images.append(run.correct - weights @ np.stack(theirs))
    every = len(method)
    said = [why if count == every else f"{count} of {every} seeds: {why}" for why, count in missed.items()]
    if dearer:
        said.append(f"{dearer} of {every} seeds cost more than full training and are compared with it")
    whole = len(images) == len(seeds) > 0 and len({len(row) for row in images}) == 1
    lowest, highest = np.exp(np.mean(spans, axis=0)) if spans else (math.nan, math.nan)
    return Leads(
        tuple(seeds),
        np.array(differences),
        np.stack(images) if whole else None,
        None,
        float(lowest),
        float(highest),
        ", ".join(said),
        name,
    )


def _over_ratios(run: Run, curve: Curve | OffFrontier) -> Floats:
    assert isinstance(curve, Curve), "the seed is one that the frontier reaches"
    return run.accuracy - curve.values(RATIOS * run.cost)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.inf


def pooled(lines: Sequence[Leads]) -> Leads:
    """The mean over several comparisons of every seed that has them all.

    Images of comparisons with as many test images are taken to be the same ones, and averaged; else all of them stand
    side by side, each comparison with the same weight.
    """
    if not lines:
        return Leads(reason="no comparison")
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines)))
    if not seeds:
        return Leads(
            reason="; ".join(dict.fromkeys(line.reason for line in lines if line.reason)) or "no seed in common"
        )
    rows = [[line.seeds.index(seed) for seed in seeds] for line in lines]
    images = [line.images[some] for line, some in zip(lines, rows, strict=True) if line.images is not None]
    both = None
    if len(images) == len(lines):
        sizes = {some.shape[1] for some in images}
        total, parts = sum(some.shape[1] for some in images), len(images)
        scaled = [some * (total / (parts * some.shape[1])) for some in images]
        both = np.mean(images, axis=0) if len(sizes) == 1 else np.concatenate(scaled, axis=1)
    over = [line.over_ratios[some] for line, some in zip(lines, rows, strict=True) if line.over_ratios is not None]
    return Leads(
        tuple(seeds),
        np.mean([line.differences[some] for line, some in zip(lines, rows, strict=True)], axis=0),
        both,
        np.mean(over, axis=0) if len(over) == len(lines) else None,
        max(line.lowest for line in lines),
        min(line.highest for line in lines),
        "; ".join(dict.fromkeys(line.reason for line in lines if line.reason)),
        "; ".join(dict.fromkeys(line.control for line in lines if line.control)),
    )


def two_way_difference(method: Mapping[int, Run], control: Mapping[int, Run]) -> Estimate:
    """``two_way_interval`` of the right-or-wrong differences over the seeds that both have."""
    rows = []
    for seed in sorted(method.keys() & control.keys()):
        ours, theirs = method[seed].correct, control[seed].correct
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            rows.append(ours.astype(np.float64) - theirs)
    if not rows or len({row.size for row in rows}) != 1:
        return Estimate(reason="no per-image record" if not rows else "seeds were tested on different images")
    return two_way_interval(np.stack(rows))


def frontier_check(frontier: Mapping[int, Sequence[Run]]) -> dict[float, Estimate]:
    """The frontier's own check: each budget's runs less what the frontier through the others gives at their cost.

    By budget, the cheapest one and full training left out, which have no neighbour on one side. Around what is left
    out the gap is about twice as wide as the gaps that methods are compared in: a bound on the frontier's error, with
    the runs' own scatter in it.
    """
    left_out: dict[float, list[float]] = {}
    for controls in frontier.values():
        ordered = sorted(controls, key=lambda run: run.cost)
        for place, run in enumerate(ordered[1:-1], 1):
            others = ordered[:place] + ordered[place + 1 :]
            try:
                curve = Curve([o.cost for o in others], [o.accuracy for o in others])
                curve.check(run.cost)
            except OffFrontier:
                continue
            if run.budget < FULL:
                below = run.accuracy - float(curve.values(np.array([run.cost]))[0])
                left_out.setdefault(run.budget, []).append(below)
    return {budget: t_interval(values) for budget, values in sorted(left_out.items())}


def frontier_slope(frontier: Mapping[int, Mapping[float, float]]) -> Estimate:
    """Least-squares slope of accuracy over log2(budget), per seed, averaged: the gain from doubling the budget.

    ``frontier`` maps a seed to {budget: accuracy}. Where it is surely next to 0, training length does not matter, and
    no comparison with shortened training can tell methods apart.
    """
    slopes = []
    for points in frontier.values():
        if len(points) >= 2:
            x, y = np.log2(list(points)), np.array(list(points.values()))
            slopes.append(float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()))
    return t_interval(slopes) if slopes else Estimate(reason="no short run")
