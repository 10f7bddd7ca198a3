"""BatchNorm's statistics of the stages that leave training, made anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.stages.train_mode import evaluating
from ldbench.store.fill import Autocast, Source


@torch.no_grad()
def refresh_statistics(
    segment: nn.Sequential, norms: Sequence[Any], batches: Sequence[Tensor], source: Source, autocast: Autocast
) -> int:
    """Re-estimate BatchNorm's population statistics as plain averages over minibatches; dropout is off.

    Training's running averages mix in older weights; the store is made with the statistics of the final ones.

    Args:
        segment: the stages being dropped.
        norms: of their BatchNorms those that training moved, see ``moving_statistics``.
        batches: sample indices of each minibatch.
        source: the segment's input for sample indices.

    Returns:
        Samples that passed; 0 where there is nothing to estimate.
    """
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


def moving_statistics(stages: nn.Module) -> list[nn.Module]:
    """The BatchNorms whose statistics a forward pass moves now.

    Not those that the user holds in evaluation mode, as of a frozen backbone, those without running statistics, or
    torchvision's frozen ones.
    """
    norms = nn.modules.batchnorm._BatchNorm
    return [m for m in stages.modules() if isinstance(m, norms) and m.training and m.running_mean is not None]
