"""A drop: statistics and store are made, the stages retire, and what that saves is noted or spent; or nothing changes."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldbench.costs.break_even import STATISTICS_SAMPLES
from ldbench.devices import synchronize
from ldbench.dropping.retirement import refresh_statistics, remember
from ldbench.dropping.weighing import resolved_budget, step_costs
from ldbench.seeds import sample_order
from ldbench.store.budget import StoreBudget, Tier, store_bytes
from ldbench.store.fill import NoRoom

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper


@dataclass(frozen=True)
class Drop:
    """One drop as the record tells it.

    ``cut`` counts the leading stages gone from now on; ``store_relative_error`` is the root mean square error that the
    store's dtype brings into the activations, relative to theirs. ``extra_steps`` were added to the run for what the drop
    saves; what they cost is no part of ``predicted_saving_seconds``. ``at_chunk_end``: made when a chunk was over and
    evaluated, not at a check.
    """

    step: int
    cut: int
    reason: str
    store_tier: str | None
    store_bytes: int
    store_dtype: str | None
    store_relative_error: float
    build_seconds: float
    predicted_saving_seconds: float
    extra_steps: int = 0
    at_chunk_end: bool = False


def make_drop(
    dropper: LayerDropper, cut: int, reason: str, saving: float, tier: Tier | None, at_chunk_end: bool = False
) -> Drop | None:
    """Drop the stages up to ``cut``; an exception on the way leaves the network as it was, and the drop pending.

    Args:
        saving: seconds that it is predicted to save.
        tier: where the store should lie; None for a drop that skips the backward pass alone.

    Returns:
        the drop, or None where no tier had room for its store.
    """
    synchronize(dropper.device)
    began = time.perf_counter()
    dropper.pending = {"cut": cut, "reason": reason, "saving": saving, "tier": tier, "at_chunk_end": at_chunk_end}
    segment = dropper.stages[dropper.cut : cut]
    undo = [remember(segment)]
    if dropper.averages is not None:
        undo.append(dropper.averages.put_into(cut))
    before, forward_from = dropper.cut, 0 if dropper.execution == "freeze" else dropper.cut
    passed = 0
    store, error = None, 0.0
    try:
        if dropper.refresh_statistics or dropper.averages is not None:
            batches = _statistics_batches(dropper)
            passed = refresh_statistics(segment, batches, dropper.activations.source, dropper.autocast)
        if tier is not None:
            store, error = dropper.activations.fill(cut, tier)
            passed += len(dropper.active)
    except NoRoom as full:
        for back in undo:
            back()
        _decline_for_room(dropper, cut, full)
    except BaseException:
        for back in undo:
            back()
        dropper.abandoned_seconds += time.perf_counter() - began
        raise
    dropper.pending = None
    if dropper.ledger is not None:
        dropper.ledger.add_forward(passed, forward_from, cut)
    if tier is not None and store is None:
        dropper.cache_build_seconds += time.perf_counter() - began
        return None
    dropper.retire(cut)
    if store is not None and tier is not None:
        dropper.activations.take(store, cut, tier)
        dropper.peak_store_bytes = max(dropper.peak_store_bytes, store.nbytes)
    dropper.rebuild_live()
    synchronize(dropper.device)
    seconds = time.perf_counter() - began
    dropper.cache_build_seconds += seconds
    size, dtype = (store.nbytes, store.dtype) if store is not None else (0, None)
    used = store.tier if store is not None else None
    extra, saving = _spend(dropper, before, saving, passed, tier)
    drop = Drop(dropper.step_count, cut, reason, used, size, dtype, error, seconds, saving, extra, at_chunk_end)
    dropper.drops.append(drop)
    return drop


def _spend(dropper: LayerDropper, before: int, saving: float, passed: int, tier: Tier | None) -> tuple[int, float]:
    """Add the steps that the policy spends a drop's saving on; returns them, and the seconds that are left of it."""
    if not dropper.policy.spend:
        return 0, saving
    costs, remaining = step_costs(dropper), dropper.total_steps - dropper.step_count
    if dropper.execution == "freeze":
        saving = remaining * (costs.seconds(before) - costs.seconds(dropper.cut))
    deeper = costs.table.flops[0 if dropper.execution == "freeze" else before : dropper.cut]
    if dropper.execution == "store":
        passed += dropper.stream.still_to_come(dropper.chunk)  # on their way into the store
    building = passed * sum(stage.forward for stage in deeper)
    extra = costs.extra_steps(dropper.policy.spend, before, dropper.cut, remaining, saving, building)
    if extra:
        dropper.stretched = dropper.step_count, dropper.progress
        dropper.total_steps += extra
    return extra, saving - extra * costs.seconds(dropper.cut, tier)


def _statistics_batches(dropper: LayerDropper) -> list[Tensor]:
    order = dropper.active[sample_order(len(dropper.active), 0, 0)[:STATISTICS_SAMPLES]]
    return [indices for indices in torch.split(order, dropper.batch_size) if len(indices) == dropper.batch_size]


def _decline_for_room(dropper: LayerDropper, cut: int, full: NoRoom) -> None:
    """No tier had room: train on with nothing dropped, and ask for no store of that size again."""
    size = store_bytes(dropper.stream.capacity, full.shape, dropper.cache_dtype)
    budget = resolved_budget(dropper)
    dropper.budget = StoreBudget(*(min(free, size - 1) for free in astuple(budget)))
    dropper.declined.append({"step": dropper.step_count, "cut": cut, "reason": f"no room for its store: {full}"})
    dropper.tell(f"no room for a store of {size} bytes ({full}): training goes on with nothing more dropped")
