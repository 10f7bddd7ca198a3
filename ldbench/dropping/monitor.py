"""What every monitor is: a figure per stage at each check, and a state to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.io.tensors import copy_into

Levels = list[float | None]  # one figure per stage; None for dropped ones and where there is none at this check


class Monitor:
    """One kind of measurement; made only for a policy that needs it, and what it costs counts as training.

    Attributes:
        dropped: leading stages that are gone.
        flops: that the last check took itself, per stage.
        probed: samples that the last check sent through the network.
    """

    def __init__(self, stages: int) -> None:
        self.dropped = self.probed = 0
        self.flops = [0] * stages

    def see_gradients(self, scale: Any) -> None:
        """Called at every optimizer step while its gradients are there, multiplied by ``scale`` where it isn't None."""

    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
        """The figures of each stage, by their names in ``Observation``.

        Args:
            progress: share of the run that is over.
            summed_rate: learning rate summed over the steps since the last check.
        """
        raise NotImplementedError

    def drop(self, cut: int) -> None:
        """The first ``cut`` stages are gone."""
        self.dropped = cut

    def begin_chunk(self) -> None:
        """Other samples can be drawn from now on."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer, on a fresh monitor of which ``drop`` was told already."""
        raise NotImplementedError


class ParameterMonitor(Monitor):
    """Base of the monitors that keep tensors beside every live parameter."""

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        super().__init__(len(parameters))
        self.parameters = [list(stage) for stage in parameters]
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
        for stages in self.tensors.values():
            for stage in range(cut):
                stages[stage] = []
        super().drop(cut)

    def _by_stage(self, values: Sequence[Tensor]) -> Levels:
        """Sum of one scalar per live parameter, by stage."""
        numbers = iter(torch.stack([value.double() for value in values]).tolist())
        live = [sum(next(numbers) for _ in stage) for stage in self.parameters[self.dropped :]]
        return [None] * self.dropped + live

    def state_dict(self) -> dict[str, Any]:
        return {"dropped": self.dropped, **{name: self.live(name) for name in self.tensors}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drop(int(state["dropped"]))
        for name in self.tensors:
            for tensor, saved in zip(self.live(name), state[name], strict=True):
                copy_into(tensor, saved)
