"""What happens to leading stages when they leave training: their statistics, their store, their retirement."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.cache import ActivationStore, StoreLost, Tier

Source = Callable[[Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


class NoRoom(Exception):
    """No tier has room for a store.

    Attributes:
        shape: of one activation.
    """

    def __init__(self, shape: Sequence[int], problem: BaseException) -> None:
        super().__init__(" ".join(str(problem).split())[:200] or type(problem).__name__)
        self.shape = tuple(shape)


def remember(segment: nn.Module) -> Callable[[], None]:
    """Returns what puts the segment's buffers and modes back as they are now: undoes a drop that fell through."""
    buffers = [(buffer, buffer.clone()) for buffer in segment.buffers()]
    modes = [(module, module.training) for module in segment.modules()]

    def undo() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, training in modes:
            module.training = training

    return undo


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
    try:
        for indices in batches:
            with autocast():
                segment(source(indices))
    finally:
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
    allocate: Callable[..., ActivationStore],
    tier: Tier,
) -> tuple[ActivationStore, float]:
    """The segment's output in evaluation mode, row after row in the order of ``batches``, in the first tier from ``tier`` on that has room.

    Returns:
        the store, and the relative error of its first minibatch (what the store's dtype costs in precision).

    Raises:
        NoRoom: the last tier is full too; nothing is left behind.
        StoreLost: the file was truncated while it was written, twice.
    """
    segment.eval()
    tiers = _tiers_from(tier)
    for candidate in (*tiers, tiers[-1]):
        try:
            return _fill(segment, batches, source, autocast, functools.partial(allocate, tier=candidate))
        except StoreLost as error:  # the file was truncated while it was written: once more, as it's no lack of room
            problem: Exception = error
        except NoRoom as error:
            problem = error
            if candidate == tiers[-1]:
                break
    raise problem


def _tiers_from(tier: Tier) -> tuple[Tier, ...]:
    tiers: tuple[Tier, ...] = ("device", "pinned", "disk") if torch.cuda.is_available() else ("device", "disk")
    return tiers[tiers.index(tier) :]


def _fill(
    segment: nn.Sequential, batches: Iterable[Tensor], source: Source, autocast: Autocast,
    allocate: Callable[[torch.Size], ActivationStore],
) -> tuple[ActivationStore, float]:  # fmt: skip
    store: ActivationStore | None = None
    precision_error, filled = 0.0, 0
    try:
        for indices in batches:
            x = source(indices)
            with autocast():
                x = segment(x)
            rows = torch.arange(filled, filled + len(indices))
            filled += len(indices)
            if store is None:
                store = _allocate(x.shape[1:], allocate)
                store.write(rows, x)
                precision_error = store.relative_error(rows, x)
            else:
                store.write(rows, x)
    except (torch.OutOfMemoryError, MemoryError) as problem:  # the passes found no room beside the store
        if store is None:
            raise
        store.close()
        raise NoRoom(store.shape, problem) from problem
    except BaseException:
        if store is not None:
            store.close()
        raise
    assert store is not None, "there is at least one sample"
    return store, precision_error


def _allocate(shape: torch.Size, allocate: Callable[[torch.Size], ActivationStore]) -> ActivationStore:
    try:
        return allocate(shape)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as problem:
        raise NoRoom(shape, problem) from problem


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
