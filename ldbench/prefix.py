"""What happens to leading stages when they leave training: their statistics, their store, their retirement."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.cache import ActivationStore, Tier

Source = Callable[[Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def refresh_statistics(segment: nn.Sequential, batches: Sequence[Tensor], source: Source, autocast: Autocast) -> int:
    """Re-estimate BatchNorm's population statistics as plain averages over minibatches; dropout is off.

    Training's running averages mix in older weights; the store is made with the statistics of the final ones.

    Args:
        segment: the stages being dropped, left in evaluation mode.
        batches: sample indices of each minibatch.
        source: the segment's input for sample indices.

    Returns:
        Samples that passed; 0 where there is nothing to estimate.
    """
    norms: list[Any] = [m for m in segment.modules() if getattr(m, "running_mean", None) is not None]
    segment.eval()
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative average
        module.train()
    for indices in batches:
        with autocast():
            segment(source(indices))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return sum(len(indices) for indices in batches)


@torch.no_grad()
def fill_store(
    segment: nn.Sequential,
    batches: Iterable[Tensor],
    source: Source,
    autocast: Autocast,
    allocate: Callable[[torch.Size, Tier], ActivationStore],
    tier: Tier,
) -> tuple[ActivationStore, float]:
    """The segment's output in evaluation mode for every sample, in the first tier from ``tier`` on that has room.

    Returns:
        the store, and the relative error of its first minibatch (what the store's dtype costs in precision).

    Raises:
        torch.OutOfMemoryError, MemoryError, OSError: when the last tier is full too; nothing is left behind.
    """
    segment.eval()
    store: ActivationStore | None = None
    error = 0.0
    try:
        for indices in batches:
            x = source(indices)
            with autocast():
                x = segment(x)
            if store is None:
                store = _allocate(x.shape[1:], tier, allocate)
                store.write(indices, x)
                error = store.relative_error(indices, x)
            else:
                store.write(indices, x)
    except BaseException:
        if store is not None:
            store.close()
        raise
    assert store is not None, "there is at least one sample"
    return store, error


def _allocate(
    shape: torch.Size, tier: Tier, allocate: Callable[[torch.Size, Tier], ActivationStore]
) -> ActivationStore:
    try:
        return allocate(shape, tier)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError):
        if tier == "disk":
            raise
        slower: Tier = "pinned" if tier == "device" and torch.cuda.is_available() else "disk"
        return _allocate(shape, slower, allocate)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for ``train``: a later ``model.train()`` must not wake a dropped stage's BatchNorm or dropout."""
    del mode
    return module


def retire(stages: Iterable[nn.Module], parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Take stages out of training for good: gradients, optimizer entries and state, and train mode."""
    gone = {id(p): p for p in parameters}
    for group in optimizer.param_groups:  # an emptied group stays: schedulers count the groups
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None  # a stale gradient is how momentum and weight decay move frozen layers elsewhere
        parameter.requires_grad_(False)
    for stage in stages:
        stage.eval()
        for module in stage.modules():
            module.__dict__["train"] = types.MethodType(_stay_in_eval, module)


def release(stages: Iterable[nn.Module]) -> None:
    """Give retired stages back their ordinary behaviour (``train`` and ``requires_grad``)."""
    for stage in stages:
        for module in stage.modules():
            module.__dict__.pop("train", None)
        for parameter in stage.parameters():
            parameter.requires_grad_(True)
