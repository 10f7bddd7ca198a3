"""Rules held against each other over everything that an evidence suite has: how far each is ahead of training less.

A run's lead is what it reaches above the frontier of training less at its own cost, with the same seed, of a stream in
the mean over the chunks. Rules that stop at different costs can so be held against each other. Comparisons (network,
data set, scenario) count alike. Nobody declared this before the runs: it is exploratory.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from benches.lab_tables import line
from ldbench.policies.base import DEFAULT_METHOD
from ldbench.policies.registry import get_method
from ldbench.reporting.columns import columns, speed_columns
from ldbench.reporting.comparisons import COMPARISON, Record, controls, records_of, with_options
from ldbench.reporting.equal_accuracy import SpeedUp, speed_up
from ldbench.reporting.formatting import spanned
from ldbench.reporting.formatting import speed_up as cheaper
from ldbench.reporting.frontier import Leads, leads, pooled
from ldbench.reporting.runs import controls_of, finished_runs, prepare, runs_of, ways_of
from ldbench.reporting.stats import Estimate, t_interval
from ldbench.reporting.verdicts import AXES

Rule = tuple[str, str]  # method, its options as JSON


class Place(NamedTuple):
    """Where a run was made."""

    model: str
    dataset: str
    scenario: str
    seed: int


class Compared(NamedTuple):
    """A rule in one comparison: its leads, at other costs too, and by seed its cost over full training's and its accuracy
    less full training's (fractions).
    """

    leads: Leads
    share: Mapping[int, float]
    to_full: Mapping[int, float]


Comparisons = Sequence[tuple[Place, Mapping[Rule, Compared]]]  # with seed -1


def _comparisons(cells: pd.DataFrame, axis: str) -> Comparisons:
    found = []
    for _, group in cells.groupby(COMPARISON, sort=True):
        records = records_of(group)
        prepare(records)
        by_method, _, _ = finished_runs(records)
        counts = "average_accuracy" if any(record["chunks"] for record in records) else "test_accuracy"
        full, shortened = controls_of(by_method)
        ways, of_full = ways_of(shortened, axis, counts), runs_of(full, axis, counts)
        rules = {}
        for (method, _, policy), some in by_method.items():
            if method in controls():
                continue
            runs = runs_of(some, axis, counts)
            both = [(seed, run, of_full[seed]) for seed, run in runs.items() if seed in of_full]
            rules[method, policy] = Compared(
                leads(runs, ways, ratios=True),
                {seed: run.cost / control.cost for seed, run, control in both},
                {seed: run.accuracy - control.accuracy for seed, run, control in both},
            )
        found.append((Place(*(str(records[0][name]) for name in COMPARISON[:3]), -1), rules))
    return found


def leads_of_all(cells: pd.DataFrame, axis: str) -> dict[Rule, dict[Place, float]]:
    """By method and its options the lead in points of every finished run of a rule."""
    return _of_runs(_comparisons(cells, axis))


def _of_runs(comparisons: Comparisons) -> dict[Rule, dict[Place, float]]:
    found: dict[Rule, dict[Place, float]] = defaultdict(dict)
    for place, rules in comparisons:
        for rule, compared in rules.items():
            for seed, lead in zip(compared.leads.seeds, compared.leads.differences, strict=True):
                found[rule][place._replace(seed=seed)] = 100 * float(lead)
    return dict(found)


def _over_seeds(several: Sequence[Mapping[int, float]]) -> list[float]:
    """The mean over several comparisons of every seed that has them all."""
    seeds = sorted(set.intersection(*(set(some) for some in several)))
    return [float(np.mean([some[seed] for some in several])) for seed in seeds]


def mean_difference(ours: Mapping[Place, float], theirs: Mapping[Place, float]) -> Estimate:
    """How much further ahead ``ours`` is: mean over the comparisons of each seed that has them all, with its interval."""
    differences: dict[int, list[float]] = defaultdict(list)
    for place in ours.keys() & theirs.keys():
        differences[place.seed].append(ours[place] - theirs[place])
    comparisons = len({place._replace(seed=-1) for place in ours})
    return t_interval(float(np.mean(some)) for some in differences.values() if len(some) == comparisons)


@dataclass(frozen=True)
class Overall:
    """A rule over all comparisons.

    Attributes:
        share: by axis its cost over full training's, mean over the comparisons (geometric) and seeds.
        to_full: its accuracy less full training's, in points.
        speed_ups: by axis how many times cheaper it is at equal accuracy.
        leads: by axis its mean lead over training less.
        default_ahead: by axis how many points further ahead of training less the default rule is.
    """

    method: str
    policy: str
    comparisons: int
    share: Mapping[str, Estimate]
    to_full: Estimate
    leads: Mapping[str, Leads]
    speed_ups: Mapping[str, SpeedUp]
    default_ahead: Mapping[str, Estimate]

    def is_a_candidate(self) -> bool:
        """Whether it could be the default: it drops layers, their forward pass too, and does nothing besides."""
        method = get_method(self.method)
        return method.stops and method.execution == "store" and method.prunes is None

    def is_the_default(self) -> bool:
        """Whether it is the default method, its options at their defaults, named or not."""
        return _is_the_default((self.method, self.policy))

    def label(self) -> str:
        """The method, with its options where it has any."""
        return with_options(self.method, self.policy)


def ranking(cells: pd.DataFrame) -> list[Overall]:
    """Every rule that was run in all comparisons, that with the highest speed-up by FLOPs first.

    FLOPs, since they repeat to the bit: a ranking by time would be one of the neighbours on the machine.
    """
    by_axis = {axis: _comparisons(cells, axis) for axis in AXES}
    of_runs = {axis: _of_runs(comparisons) for axis, comparisons in by_axis.items()}
    default = next((rule for rule in of_runs["flops"] if _is_the_default(rule)), None)
    everywhere = set.intersection(*(set(rules) for _, rules in by_axis["flops"])) if by_axis["flops"] else set()
    found = []
    for rule in sorted(everywhere):
        of = {axis: [rules[rule] for _, rules in comparisons] for axis, comparisons in by_axis.items()}
        mean = {axis: pooled([some.leads for some in several]) for axis, several in of.items()}
        ahead = {
            axis: Estimate()
            if default is None or rule == default
            else mean_difference(of_runs[axis][default], of_runs[axis][rule])
            for axis in AXES
        }
        logs = {axis: [{k: math.log(v) for k, v in some.share.items()} for some in of[axis]] for axis in AXES}
        found.append(
            Overall(
                *rule,
                len(of["flops"]),
                {axis: _exponential(t_interval(_over_seeds(some))) for axis, some in logs.items()},
                t_interval(_over_seeds([some.to_full for some in of["flops"]])).scaled(100),
                mean,
                {axis: speed_up(some) for axis, some in mean.items()},
                ahead,
            )
        )
    return sorted(found, key=lambda rule: -np.nan_to_num(rule.speed_ups["flops"].ratio))


def _exponential(of: Estimate) -> Estimate:
    return replace(of, mean=math.exp(of.mean), low=math.exp(of.low), high=math.exp(of.high))


def winner(cells: pd.DataFrame) -> Overall:
    """The rule that drops layers and is most times cheaper than training less at equal accuracy, by FLOPs."""
    return next(rule for rule in ranking(cells) if rule.is_a_candidate())


def _is_the_default(rule: Rule) -> bool:
    method, policy = rule
    if method != DEFAULT_METHOD:
        return False
    known = inspect.signature(get_method(method).policy).parameters
    return all(name in known and known[name].default == value for name, value in json.loads(policy).items())


def figures(rule: Overall) -> Record:
    """A rule's estimates as columns: ``to_full``, and by axis ``share``, ``speed_up`` and ``default``."""
    row: Record = columns("to_full", rule.to_full)
    for axis in AXES:
        row |= columns(f"share_{axis}", rule.share[axis])
        row |= speed_columns(f"speed_up_{axis}", rule.speed_ups[axis])
        row |= columns(f"default_{axis}", rule.default_ahead[axis])
    return row


def ranking_lines(cells: pd.DataFrame) -> list[str]:
    """The table of ``ranking``; nothing where there are fewer than two rules or two seeds to tell them apart by."""
    rules = ranking(cells)
    if len(rules) < 2 or max(len(rule.leads["flops"].seeds) for rule in rules) < 2:
        return []
    spans = ["to_full"]
    head = [
        "rule", "n", "times cheaper at equal accuracy, by FLOPs", "by time", "FLOPs ÷ full", "time ÷ full", "points to full",
    ]  # fmt: skip
    default = next((rule.label() for rule in rules if rule.is_the_default()), None)
    if default is not None:
        head += [f"`{default}` is further ahead of training less, points by FLOPs", "by time"]
        spans += [f"default_{axis}" for axis in AXES]
    lines = [line(head), line(["---"] * len(head))]
    for rule in rules:
        row = figures(rule)
        texts = [rule.label(), str(len(rule.leads["flops"].seeds)), *(cheaper(row, axis) for axis in AXES)]
        texts += [spanned(row, f"share_{axis}", "") for axis in AXES]
        texts += [spanned(row, name) for name in spans]
        lines.append(line(texts))
    many = rules[0].comparisons
    over = f"All {many} comparisons together" if many > 1 else "The only comparison"
    return [f"{over}, each rule at its own cost, means over the seeds' means (exploratory):", "", *lines, ""]
