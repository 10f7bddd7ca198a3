"""Makes a cost table in the middle of somebody's training: measured, or counted."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.by_flops import table_in_flops
from ldbench.costs.table import CostTable
from ldbench.costs.timing import Criterion, measure_costs, normalised_stages
from ldbench.data.dataset_source import DatasetSource
from ldbench.errors import one_line
from ldbench.seeds import preserved_streams
from ldbench.stages.flops import count_stage_flops
from ldbench.store.activations import Activations


@preserved_streams()
def count_on_the_spot(stages: nn.Sequential, activations: Activations) -> CostTable:
    """The cost table in FLOPs, for samples like the first one that can be drawn."""
    x, _ = activations.images.batch(activations.active[:1])
    shape = tuple(x.shape[1:])
    return table_in_flops(count_stage_flops(stages, shape), activations.batch_size, shape, normalised_stages(stages))


@preserved_streams()
def measure_on_the_spot(
    stages: nn.Sequential,
    activations: Activations,
    optimizer: torch.optim.Optimizer,
    criterion: Criterion | None,
    note: Callable[[str], None],
    waits: Sequence[float] = (),
) -> CostTable:
    """The cost table of the stages, on the first minibatch that can be drawn.

    Where the user's criterion fails on it a loss of our own stands in, with a note. What a minibatch of a data set costs
    the loop is known from the loop: processes that read ahead hide most of it.

    Args:
        waits: seconds that the loop waited for its last minibatches of images.
    """
    indices = activations.active[: activations.batch_size]
    names = [str(stage.stage_name) for stage in stages]
    fetch: Callable[[], tuple[Tensor, Any]] = functools.partial(activations.images.batch, indices)
    waited = statistics.median(waits) if len(waits) and isinstance(activations.images, DatasetSource) else None
    if waited is not None:  # and reading it anew every time would take that long
        batch = fetch()
        fetch = lambda: batch  # noqa: E731
    measure = functools.partial(
        measure_costs,
        stages,
        names,
        fetch,
        optimizer,
        device=activations.device,
        folder=activations.folder,
        cache_dtype=activations.dtype,
        autocast=activations.autocast,
    )
    try:
        table = measure(criterion)
    except Exception as error:
        if criterion is None:
            raise
        note(f"costs are measured without the criterion, which failed on a minibatch: {one_line(error, kind=True)}")
        table = measure(None)
    return table if waited is None else dataclasses.replace(table, input_seconds=waited)
