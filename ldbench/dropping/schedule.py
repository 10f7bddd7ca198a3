"""Where a run stands: its steps and epochs, and when the next check is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Schedule:
    """Counts steps and epochs.

    Args:
        total_steps: optimizer steps of the whole run.
        check_every: steps between two checks of what the policy goes by.

    Attributes:
        step: optimizer steps made.
        epoch: epochs begun by iterating over the engine.
    """

    def __init__(self, total_steps: int, check_every: int) -> None:
        self.total_steps, self.check_every = total_steps, check_every
        self.step = self.epoch = 0

    @property
    def progress(self) -> float:
        """Share of the steps that were made, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def remaining(self) -> int:
        """Steps still to come."""
        return self.total_steps - self.step

    @property
    def check_due(self) -> bool:
        """Whether a check follows the step just made; none does after the last one."""
        return self.step % self.check_every == 0 and self.step < self.total_steps

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {"step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        self.step, self.epoch = state["step"], state["epoch"]
