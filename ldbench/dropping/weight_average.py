"""Moving averages of the weights, for stages that are dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ldbench.dropping.parameter_state import OfParameters


class WeightAverages(OfParameters):
    """The mean of each parameter over the steps made, from ``horizon`` steps on an exponential one with that time constant.

    Memory: one copy of the live parameters; one pass over it per step.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], horizon: int) -> None:
        super().__init__(parameters)
        self.horizon, self.steps = max(1, horizon), 0
        self.tensors = {"mean": self.zeros()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the weights of a step in."""
        self.steps += 1
        torch._foreach_lerp_(self.live("mean"), self.live_parameters(), 1 / min(self.steps, self.horizon))

    @torch.no_grad()
    def put_into(self, cut: int) -> Callable[[], None]:
        """Set the parameters of the live stages before ``cut`` to their averages; returns what puts the last ones back."""
        changed = []
        for stage in range(self.dropped, cut):
            for parameter, mean in zip(self.parameters[stage], self.tensors["mean"][stage], strict=True):
                changed.append((parameter, parameter.detach().clone()))
                parameter.copy_(mean)

        @torch.no_grad()
        def undo() -> None:
            for parameter, last in changed:
                parameter.copy_(last)

        return undo

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = int(state["steps"])
