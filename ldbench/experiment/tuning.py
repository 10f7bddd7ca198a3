"""What is tried for each method before its cells are run, and which of it is taken."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldbench.experiment.allocation import allocations
from ldbench.experiment.config import Cell, Experiment
from ldbench.policies.registry import replay_source, shortened_methods

Variant = tuple[str, str, str, str, float | None]


@dataclass(frozen=True)
class Trial:
    """Values that are tried, and the runs that try them: one per seed of the tuning."""

    values: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone, and what is tried for them.

    Attributes:
        own: one of them, with the recipe's own values.
        trials: everything that is tried, at least one.
    """

    own: Cell
    trials: tuple[Trial, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields whose values are tried."""
        return tuple(self.trials[0].values)


def variant(cell: Cell) -> Variant:
    """What cells share that are tuned together."""
    return cell.model, cell.dataset, cell.scenario, cell.method, cell.budget


def tuned_like(cell: Cell) -> Variant:
    """Whose values a cell takes: its own group's, or those of the method whose drops it repeats."""
    source = replay_source(cell.method)
    return variant(cell) if source is None else (cell.model, cell.dataset, cell.scenario, source, None)


def tuned_keys(experiment: Experiment, cell: Cell) -> tuple[str, ...]:
    """The fields of a cell whose values are chosen by tuning."""
    placed = cell.method in shortened_methods("placed")
    return (*experiment.tune, *(("allocation",) if placed else ()))


def tuning_groups(
    experiment: Experiment, planned: Sequence[Cell], lengths_of: Callable[[Cell], Sequence[int]]
) -> list[Group]:
    """What is tried for each method of a plan that has something to choose and repeats no other's drops.

    Args:
        lengths_of: steps of an epoch over each chunk of a cell's stream.
    """
    groups = []
    for cell in planned:
        if cell.seed != experiment.seeds[0] or replay_source(cell.method) is not None:
            continue
        if not tuned_keys(experiment, cell):
            continue
        trials = []
        for combination in itertools.product(*experiment.tune.values()):
            values = dict(zip(experiment.tune, combination, strict=True))
            for placed in _placements(dataclasses.replace(cell, **values), lengths_of):
                whole = values | placed
                runs = [dataclasses.replace(cell, seed=seed, **whole) for seed in experiment.seeds_to_tune]
                trials.append(Trial(whole, tuple(runs)))
        groups.append(Group(cell, tuple(trials)))
    return groups


def _placements(cell: Cell, lengths_of: Callable[[Cell], Sequence[int]]) -> list[dict[str, Any]]:
    if cell.method not in shortened_methods("placed") or cell.budget is None:
        return [{}]
    return [{"allocation": made} for made in allocations(lengths_of(cell), cell.epochs, cell.budget)]


def tuning_runs(groups: Sequence[Group]) -> list[tuple[Cell, dict[str, Any]]]:
    """Every run of a tuning with the values that it tries, seeds outermost."""
    trials = [trial for group in groups for trial in group.trials]
    seeds = zip(*(trial.cells for trial in trials), strict=True)
    return [(cell, trial.values) for cells in seeds for cell, trial in zip(cells, trials, strict=True)]


def with_values(planned: Sequence[Cell], chosen: Mapping[Variant, Mapping[str, Any]]) -> list[Cell]:
    """The cells of a plan with the values that were chosen for them; what nothing was chosen for stays as it is."""
    return [dataclasses.replace(cell, **chosen.get(tuned_like(cell), {})) for cell in planned]


def stand_ins(planned: Sequence[Cell], groups: Sequence[Group]) -> list[Cell]:
    """The cells of a plan with the first values that are tried, to look at before any are chosen."""
    return with_values(planned, {variant(group.own): group.trials[0].values for group in groups})


def mean_accuracy(accuracies: Sequence[float | None]) -> float | None:
    """The mean over the seeds; a run without accuracy got nothing right. None where no run has one."""
    known = [value for value in accuracies if value is not None]
    return math.fsum(known) / len(accuracies) if known else None


def best_trial(group: Group, means: Sequence[float | None]) -> int | None:
    """Which trial is taken: the highest mean, of equals the one nearest to the recipe's own values, then the first.

    None where no trial has a mean.
    """
    known = [number for number, mean in enumerate(means) if mean is not None]

    def rank(number: int) -> tuple[float, float]:
        values = group.trials[number].values.items()
        return -(means[number] or 0.0), sum(_distance(getattr(group.own, key), value) for key, value in values)

    return min(known, key=rank, default=None)


def _distance(own: Any, value: Any) -> float:
    """How far a value lies from the recipe's: numbers by their ratio, everything else the same or not."""
    if own == value or isinstance(value, tuple):
        return 0.0
    if not isinstance(own, int | float) or not isinstance(value, int | float):
        return 1.0
    return abs(math.log(value / own)) if own > 0 and value > 0 else abs(value - own)


def edge_keys(group: Group, chosen: Mapping[str, Any]) -> list[str]:
    """The numeric keys whose best value is the smallest or the largest that was tried: a better one may lie beyond."""
    found = []
    for key in group.keys:
        tried = [trial.values[key] for trial in group.trials]
        if all(isinstance(value, int | float) for value in tried) and chosen[key] in (min(tried), max(tried)):
            found.append(key)
    return found


def values_text(values: Mapping[str, Any]) -> str:
    """Values as a person reads them: ``lr=0.05, allocation=0.2/0.4/0.4``."""

    def said(value: Any) -> str:
        if isinstance(value, tuple | list):
            return "/".join(f"{some:.3g}" if isinstance(some, float) else str(some) for some in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key}={said(value)}" for key, value in values.items())
