"""What happens to leading stages when they leave training: their statistics, and their parameters' retirement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.stages.train_mode import evaluating
from ldbench.store.fill import Autocast, Source


def remember_buffers(segment: nn.Module) -> Callable[[], None]:
    """Returns what puts the segment's buffers back as they are now: undoes a drop that fell through."""
    buffers = [(buffer, buffer.clone()) for buffer in segment.buffers()]

    def undo() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)

    return undo


@torch.no_grad()
def refresh_statistics(segment: nn.Sequential, batches: Sequence[Tensor], source: Source, autocast: Autocast) -> int:
    """Re-estimate BatchNorm's population statistics as plain averages over minibatches; dropout is off.

    Training's running averages mix in older weights; the store is made with the statistics of the final ones.

    Args:
        segment: the stages being dropped.
        batches: sample indices of each minibatch.
        source: the segment's input for sample indices.

    Returns:
        Samples that passed; 0 where there is nothing to estimate.
    """
    norms: list[Any] = [m for m in segment.modules() if getattr(m, "running_mean", None) is not None]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    with evaluating(segment):
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # a cumulative average
            module.train()
        try:
            for indices in batches:
                with autocast():
                    segment(source(indices))
        finally:
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
    return sum(len(indices) for indices in batches)


def retire(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Take the parameters of stages out of training for good: gradients, optimizer entries and state.

    Modules are left as they are, since a live stage may share one, such as a dropout: whoever sends a minibatch through
    dropped stages has them in evaluation mode meanwhile (``LiveNetwork``, ``Activations``).
    """
    gone = {id(p): p for p in parameters}
    for group in optimizer.param_groups:  # an emptied group stays: schedulers count the groups
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None  # a stale gradient is how momentum and weight decay move frozen layers elsewhere
        parameter.requires_grad_(False)


def release(stages: Iterable[nn.Module]) -> None:
    """Let the parameters of retired stages be trained again."""
    for stage in stages:
        for parameter in stage.parameters():
            parameter.requires_grad_(True)
