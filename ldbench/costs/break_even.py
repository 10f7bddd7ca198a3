"""The break-even rule: which of the cuts that may be made pays, building the store included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ldbench.costs.table import CostTable
from ldbench.store.budget import StoreBudget, Tier, store_bytes

STATISTICS_SAMPLES = 8192  # BatchNorm statistics settle long before; bounds the cost on large sets


@dataclass(frozen=True)
class CutChoice:
    """The cut that is taken, or why none is (``cut`` is then the present one).

    Attributes:
        saving_seconds: over the steps that remain, building the store taken off; None where no time was measured.
        tier: where the store should lie; None: no store is made, dropped stages go on running forward.
    """

    cut: int
    reason: str
    saving_seconds: float | None = 0.0
    build_seconds: float = 0.0
    tier: Tier | None = "device"


@dataclass(frozen=True)
class StorePlan:
    """What the store of this run may be.

    Attributes:
        samples: how many pass when it is built now.
        dtype: of its rows.
        budget: bytes allowed per tier.
        current_tier: where the present store lies.
        capacity: rows it has to hold at any time; None: ``samples``.
        arrivals: samples that come later and will pass through all dropped stages on their way in.
        refreshed: BatchNorm's statistics are re-estimated before the store is made.
        views: of each sample, each of which passes and has a row of its own.
        renewed: share of these that passes through all dropped stages again in every so many steps as there are minibatches.
    """

    samples: int
    dtype: str
    budget: StoreBudget
    current_tier: Tier = "device"
    capacity: int | None = None
    arrivals: int = 0
    refreshed: bool = False
    views: int = 1
    renewed: float = 0.0

    def store_bytes(self, table: CostTable, cut: int) -> int:
        """Bytes of the store behind ``cut`` stages."""
        return store_bytes((self.capacity or self.samples) * self.views, table.flops[cut - 1].output_shape, self.dtype)

    def row_bytes(self, table: CostTable, cut: int) -> float:
        """Bytes of a row of the store behind ``cut`` stages."""
        return store_bytes(self.samples, table.flops[cut - 1].output_shape, self.dtype) / self.samples

    def source_seconds(self, table: CostTable, cut: int, tier: str) -> float:
        """One minibatch of what training reads at ``cut``: images at 0, else the store."""
        return table.input_seconds if cut == 0 else table.read_seconds(tier, self.row_bytes(table, cut))


def build_seconds(table: CostTable, plan: StorePlan, current: int, cut: int, tier: str) -> float:
    """Time to make the store at ``cut`` from what training reads at ``current``, statistics re-estimated included."""
    batches = plan.samples * plan.views / table.batch_size
    source = plan.source_seconds(table, current, plan.current_tier)
    per_batch = source + sum(table.inference[current:cut])
    per_batch += table.tiers[tier].write_per_byte * plan.row_bytes(table, cut) * table.batch_size
    total = batches * per_batch
    if plan.refreshed and any(table.normalised[current:cut]):
        passes = min(plan.samples, STATISTICS_SAMPLES) / table.batch_size
        total += passes * (source + sum(table.forward[current:cut]))
    return total


def arrival_seconds(table: CostTable, plan: StorePlan, cut: int, tier: str) -> float:
    """Time that the samples still to come take into the store at ``cut``; nothing while images are read."""
    if cut == 0:
        return 0.0
    return plan.arrivals * plan.views / table.batch_size * _through_seconds(table, plan, cut, tier)


def renewal_seconds(table: CostTable, plan: StorePlan, cut: int, tier: str) -> float:
    """Time per step that views made anew take, of a store at ``cut``; nothing while images are read."""
    if cut == 0 or not plan.renewed:
        return 0.0
    return plan.renewed * plan.views * _through_seconds(table, plan, cut, tier)


def _through_seconds(table: CostTable, plan: StorePlan, cut: int, tier: str) -> float:
    """A minibatch of images through all dropped stages into the store."""
    write = table.tiers[tier].write_per_byte * plan.row_bytes(table, cut) * table.batch_size
    return table.input_seconds + sum(table.inference[:cut]) + write


def price(table: CostTable, plan: StorePlan, current: int, cut: int, tier: str) -> tuple[float, float]:
    """What a step at ``cut`` costs less than one at ``current``, and what it costs to get there, in the table's unit.

    What later samples take on their way into the store, beyond what they take now, is part of the building cost.
    """
    now = table.step_seconds(current, plan.source_seconds(table, current, plan.current_tier))
    now += renewal_seconds(table, plan, current, plan.current_tier)
    there = table.step_seconds(cut, plan.source_seconds(table, cut, tier)) + renewal_seconds(table, plan, cut, tier)
    arriving = arrival_seconds(table, plan, cut, tier) - arrival_seconds(table, plan, current, plan.current_tier)
    return now - there, build_seconds(table, plan, current, cut, tier) + arriving


def in_seconds(seconds: float) -> str:
    """Seconds for people: "0.0052 s"."""
    return f"{seconds:.3g} s"


def best_cut(
    table: CostTable,
    plan: StorePlan,
    current: int,
    stopped: int,
    remaining_steps: int,
    legal: Sequence[bool],
    exact: bool = False,
    obstacles: Mapping[int, str] = MappingProxyType({}),
    show: Callable[[float], str] = in_seconds,
) -> CutChoice:
    """Among the stopped prefixes the cut with the largest remaining_steps x (step now - step there) - building cost.

    Only a positive balance is taken; ``exact`` considers ``stopped`` alone. ``obstacles`` says of cuts why they are not
    legal, ``show`` writes a cost of this table for people.
    """
    best, most = CutChoice(current, "no stage has stopped"), 0.0
    reasons = []
    for cut in range(stopped if exact else current + 1, stopped + 1):
        if cut <= current:
            continue
        if not legal[cut]:
            reasons.append(
                f"cut {cut} is not possible: {obstacles.get(cut, 'it splits stages that share a parameter')}"
            )
            continue
        size = plan.store_bytes(table, cut)
        tier = plan.budget.tier_for(size)
        if tier is None:
            reasons.append(f"the store of cut {cut} takes {size} bytes and fits no tier")
            continue
        per_step, build = price(table, plan, current, cut, tier)
        saving = remaining_steps * per_step - build
        if saving <= 0:
            reasons.append(
                f"cut {cut} does not pay: {remaining_steps} steps x {show(per_step)} saved "
                f"- {show(build)} to build = {show(saving)}"
            )
        elif saving > most:
            most = saving
            best = CutChoice(cut, f"saves about {show(saving)} over {remaining_steps} steps", saving, build, tier)
    if best.cut == current and reasons:
        return CutChoice(current, reasons[-1])
    return best
