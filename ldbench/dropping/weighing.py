"""What a step and a store cost at every cut of a network, as its drops are weighed by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldbench.costs.break_even import StorePlan
from ldbench.costs.model import StepCosts
from ldbench.costs.table import CostTable
from ldbench.costs.timing import measure_costs
from ldbench.store.budget import StoreBudget, Tier, resolve_budget

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper


def cost_table(dropper: LayerDropper) -> CostTable:
    """The dropper's cost table, measured now where it was given none."""
    if dropper.costs is None:
        indices = dropper.active[: dropper.batch_size]
        dropper.costs = measure_costs(
            dropper.stages, dropper.stage_names, lambda: dropper.feed.batch(indices), dropper.optimizer, dropper.criterion,
            device=dropper.device, folder=dropper.folder, cache_dtype=dropper.cache_dtype, autocast=dropper.autocast,
        )  # fmt: skip
    return dropper.costs


def store_plan(dropper: LayerDropper) -> StorePlan:
    """What a store made now would have to hold, now and later."""
    tier: Tier = dropper.store.tier if dropper.store is not None else "device"
    return StorePlan(
        len(dropper.active), dropper.cache_dtype, resolved_budget(dropper), tier, dropper.stream.capacity,
        dropper.stream.still_to_come(dropper.chunk),
    )  # fmt: skip


def step_costs(dropper: LayerDropper) -> StepCosts:
    """Seconds and FLOPs of a step at every cut."""
    return StepCosts(cost_table(dropper), store_plan(dropper) if dropper.execution == "store" else None)


def resolved_budget(dropper: LayerDropper) -> StoreBudget:
    """Bytes a store may take in each tier, settled when it is first asked for."""
    if not isinstance(dropper.budget, StoreBudget):
        dropper.budget = resolve_budget(dropper.budget, dropper.device, dropper.folder)
    return dropper.budget
