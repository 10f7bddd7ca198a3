"""The cells of an experiment, and whether each of them can run, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldbench.data.datasets import check_dataset_name
from ldbench.errors import UserError, nearest, shown
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.grid import cells
from ldbench.models.fit import model_names
from ldbench.models.recipes import default_recipe
from ldbench.policies.registry import build_policy, get_method, replay_source
from ldbench.runner.preparation import Preparation
from ldbench.store.budget import parse_budget
from ldbench.store.changes import Changes
from ldbench.store.views import Views
from ldbench.training.optim import PRECISIONS


def plan(experiment: Experiment) -> list[Cell]:
    """All cells of the grid, names and options checked; what is to be tuned is the recipe's own still. Raises
    ``UserError``.
    """
    for model in experiment.model:
        if ":" not in model and model not in model_names():
            raise UserError(f"unknown model {shown(model)}: {nearest(model, model_names())}")
    for dataset in experiment.datasets_named:
        check_dataset_name(dataset)
    for method in experiment.method:
        get_method(method)
    for method, options in experiment.policy.items():
        build_policy(method, options)
    if experiment.cache_views > 1 and experiment.augment == "none":
        raise UserError(
            f"--cache-views {experiment.cache_views}: without augmentation all views of a sample are the same one; add "
            "--augment flip+crop"
        )
    Changes.named(experiment.change_features or ())
    Views(experiment.cache_views, renewed=experiment.refresh_views)
    if experiment.cache_budget is not None:
        parse_budget(experiment.cache_budget)
    return list(cells(experiment, default_recipe))


def check_plan(planned: Sequence[Cell], preparation: Preparation) -> None:
    """What can be known about a plan before training: models, data, stores, replays. Raises ``UserError``."""
    seen: set[tuple[str | int, ...]] = set()
    wanted = {(*cell.place, cell.method) for cell in planned}
    for cell in planned:
        source = replay_source(cell.method)
        if source is not None and (*cell.place, source) not in wanted:
            raise UserError(f"method {cell.method} repeats the drops of {source}: add --method {source}")
        key = (cell.model, cell.dataset, cell.scenario, cell.method, cell.batch_size)
        if key not in seen:
            seen.add(key)
            preparation.check(cell)
    if preparation.device.type == "cpu" and any(PRECISIONS[cell.precision] is torch.float16 for cell in planned):
        raise UserError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
