"""What a step costs at every cut, and how many more steps a drop pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldbench.costs.break_even import StorePlan
from ldbench.costs.table import CostTable
from ldbench.stages.flops import StageFlops
from ldbench.store.budget import Tier


def step_flops(table: Sequence[StageFlops], cut: int, *, store: bool) -> int:
    """FLOPs per sample of a training step with ``cut`` stages gone; without a store they still run forward."""
    forward = sum(stage.forward for stage in table[cut if store else 0 :])
    return forward + table[cut].backward_first + sum(stage.backward for stage in table[cut + 1 :])


@dataclass(frozen=True)
class StepCosts:
    """Seconds and FLOPs of a step at each cut.

    Attributes:
        plan: what the store may be; None for freezing, where dropped stages still run forward.
    """

    table: CostTable
    plan: StorePlan | None

    def seconds(self, cut: int, tier: Tier | None = None) -> float:
        """One step; ``tier``: where the store lies, by default the first with room. Infinite where none has any."""
        if self.plan is None:
            return self.table.step_seconds(cut) + sum(self.table.inference[:cut])
        if cut and tier is None:
            tier = self.plan.budget.tier_for(self.plan.store_bytes(self.table, cut))
            if tier is None:
                return math.inf
        return self.table.step_seconds(cut, self.plan.source_seconds(self.table, cut, tier or "device"))

    def flops(self, cut: int) -> int:
        """FLOPs of one step."""
        return self.table.batch_size * step_flops(self.table.flops, cut, store=self.plan is not None)

    def savings(self, current: int) -> list[float]:
        """For every cut the share of the present step's seconds that a step there takes less, at least 0."""
        now = self.seconds(current, None if self.plan is None else self.plan.current_tier)
        cuts = range(len(self.table.flops))
        return [0.0 if cut <= current else max(0.0, 1 - self.seconds(cut) / now) for cut in cuts]

    def extra_steps(self, spend: float, before: int, cut: int, remaining: int, seconds: float, flops: int) -> int:
        """Steps that ``spend`` of a drop's saving pays for, in seconds and in FLOPs; at most as many as remain.

        The bound matters when nearly everything is dropped: a saving would then pay for thousands of steps of the last
        layers alone, which learn next to nothing from them.

        Args:
            before, cut: stages gone before and after the drop.
            remaining: steps that were left.
            seconds: predicted to be saved over them, building included.
            flops: that building took.
        """
        saved = remaining * (self.flops(before) - self.flops(cut)) - flops
        steps = min(seconds / self.seconds(cut), saved / self.flops(cut))
        return max(0, math.floor(min(spend * steps, remaining)))
