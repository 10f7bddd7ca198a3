"""Where a run stands: its steps, minibatches and epochs, and when the next check is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Schedule:
    """Counts steps, minibatches and epochs.

    The length of a run is known in minibatches where it was given in epochs: a step may take several of them, which is
    seen only when it is made. Where it was given in steps, these count.

    Args:
        total: minibatches of the whole run, or steps with ``in_steps``.
        check_every: steps between two checks of what the policy goes by, or minibatches without ``checks_in_steps``.

    Attributes:
        step: optimizer steps made.
        consumed: minibatches they were made of.
        epoch: epochs begun by iterating over the engine.
        rate: minibatches of an epoch over those planned.
    """

    rate = 1.0

    def __init__(self, total: int, check_every: int, *, in_steps: bool = False, checks_in_steps: bool = True) -> None:
        self.total, self.check_every = total, check_every
        self.in_steps, self.checks_in_steps = in_steps, checks_in_steps
        self.step = self.epoch = self.consumed = self._before = 0

    def advance(self, minibatches: int) -> None:
        """A step was made of so many minibatches."""
        self.step += 1
        self._before, self.consumed = self.consumed, self.consumed + minibatches

    @property
    def steps_of_plan(self) -> float:
        """Steps of the plan that are behind: those made, unless epochs are shorter than planned."""
        return self.step

    @property
    def minibatches_of_plan(self) -> float:
        """Minibatches of the plan that are behind."""
        return self.consumed

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, as far as the steps until now tell how many minibatches one takes."""
        if self.in_steps or self.step == self.consumed:
            return self.total
        return max(self.step, round(self.total * self.step / self.consumed))

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]; above 1 in a run that goes on for longer than it was given."""
        return (self.steps_of_plan if self.in_steps else self.minibatches_of_plan) / self.total

    @property
    def remaining(self) -> int:
        """Minibatches still to come, each with a forward and a backward pass; 0 when the run is over."""
        if not self.in_steps:
            return max(0, self.total - self.consumed)
        each = self.consumed / self.step if self.step else 1
        return max(0, round((self.total - self.step) * each))

    @property
    def over(self) -> bool:
        """Whether the run is as long as it was given."""
        return (self.steps_of_plan if self.in_steps else self.minibatches_of_plan) >= self.total

    @property
    def check_due(self) -> bool:
        """Whether a check follows the step just made; none does after the last one."""
        if self.over:
            return False
        if self.checks_in_steps:
            return self.step % self.check_every == 0
        return self.consumed // self.check_every > self._before // self.check_every

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {name: getattr(self, name) for name in ("step", "epoch", "consumed", "total")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer; the length of the run is the present one."""
        self.step, self.epoch, self.consumed = state["step"], state["epoch"], state["consumed"]
        self._before = self.consumed
