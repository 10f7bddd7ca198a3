"""An experiment expanded into its cells."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator

from ldbench.data.names import own_name
from ldbench.experiment.config import OF_STREAMS, OF_TUNING, Cell, Experiment
from ldbench.experiment.scenarios import CHUNKS, SCENARIOS, STREAM_SCHEDULES, STREAMS, init_identity
from ldbench.policies.registry import get_method, reads_store, replay_source, shortened_methods, stream_controls

if typing.TYPE_CHECKING:
    from ldbench.models.recipes import Recipe


def cells(experiment: Experiment, recipe_of: typing.Callable[[str], Recipe]) -> Iterator[Cell]:
    """Every cell of the grid, seeds outermost so that whole comparisons finish early.

    ``recipe_of`` gives a model family's default recipe; an option of the experiment overrides each of its fields.
    Raises ``UserError`` when the file of weights to begin with cannot be read.
    """
    methods = sorted(experiment.method, key=lambda name: replay_source(name) is not None)
    shared = {f.name for f in dataclasses.fields(Experiment)} & {f.name for f in dataclasses.fields(Cell)}
    shortened, of_streams = shortened_methods(), stream_controls()
    init = init_identity(experiment.init)
    for seed, dataset, scenario, model, method in itertools.product(
        experiment.seeds, experiment.dataset, experiment.scenario, experiment.model, methods
    ):
        if method in of_streams and not SCENARIOS[scenario].streamed:
            continue  # there it is short
        values = {name: getattr(experiment, name) for name in shared} | experiment.options_for(model)
        recipe = recipe_of(model)
        if not SCENARIOS[scenario].tuned:
            values |= dict.fromkeys(OF_TUNING)
        elif (source := experiment.pretrain_source(dataset)) is not None:
            values["pretrain_dataset"] = own_name(source)
            values["pretrain_epochs"] = experiment.pretrain_epochs or values["epochs"]
        if SCENARIOS[scenario].streamed:
            values |= {"chunks": experiment.chunks or CHUNKS, "stream": experiment.stream or STREAMS[0]}
            values["stream_schedule"] = experiment.stream_schedule or STREAM_SCHEDULES[0]
        else:
            values |= dict.fromkeys(OF_STREAMS)
        for entry in dataclasses.fields(recipe):
            if values.get(entry.name) is None:
                values[entry.name] = getattr(recipe, entry.name)
        values |= {"model": model, "dataset": own_name(dataset), "scenario": scenario, "method": method, "seed": seed}
        values["init"] = init if SCENARIOS[scenario].tuned else None
        values["policy"] = experiment.policy.get(method, {})
        stops = get_method(method).stops
        values["refresh_statistics"] = experiment.refresh_statistics if stops else None
        stored = reads_store(method)
        values["cache_views"] = experiment.cache_views if stored else 1
        values["change_features"] = experiment.change_features if stored else None
        values["refresh_views"] = experiment.refresh_views if stored else 0.0
        values["decide_by"] = "flops" if stops and experiment.decide_by == "flops" else None
        for budget in experiment.short_budgets if method in shortened else (None,):
            yield Cell(**values, budget=budget)
