"""Tensors kept beside every live parameter, by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldbench.io.tensors import copy_into

if TYPE_CHECKING:
    pass


Levels = list[float | None]


class OfParameters:
    """Base of the watchers that keep tensors beside every live parameter."""

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        self.parameters = [list(stage) for stage in parameters]
        self.flops = [0] * len(self.parameters)
        self.dropped = self.probed = 0
        self.tensors: dict[str, list[list[Tensor]]] = {}

    def live(self, name: str) -> list[Tensor]:
        """The kept tensors called ``name`` of the live stages, in the order of ``live_parameters``."""
        return [tensor for stage in self.tensors[name][self.dropped :] for tensor in stage]

    def live_parameters(self) -> list[Tensor]:
        """Parameters of the live stages."""
        return [p for stage in self.parameters[self.dropped :] for p in stage]

    def zeros(self) -> list[list[Tensor]]:
        """One tensor of zeros for each parameter, by stage."""
        return [[torch.zeros_like(p, requires_grad=False) for p in stage] for stage in self.parameters]

    def drop(self, cut: int) -> None:
        """Forget the first ``cut`` stages."""
        for stages in self.tensors.values():
            for stage in range(cut):
                stages[stage] = []
        self.dropped = cut

    def begin_chunk(self) -> None:
        """Parameters know of no samples."""

    def _by_stage(self, values: Sequence[Tensor]) -> Levels:
        """Sum of one scalar per live parameter, by stage."""
        numbers = iter(torch.stack([value.double() for value in values]).tolist())
        live = [sum(next(numbers) for _ in stage) for stage in self.parameters[self.dropped :]]
        return [None] * self.dropped + live

    def state_dict(self) -> dict[str, Any]:
        """The tensors of the live stages."""
        return {"dropped": self.dropped, **{name: self.live(name) for name in self.tensors}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        self.drop(int(state["dropped"]))
        for name in self.tensors:
            for tensor, saved in zip(self.live(name), state[name], strict=True):
                copy_into(tensor, saved)
