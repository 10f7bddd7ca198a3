"""Makes a store: the output of a segment of stages, minibatch after minibatch, in the first tier that has room."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.errors import one_line
from ldbench.stages.train_mode import evaluating
from ldbench.store.activation_store import ActivationStore, StoreLost
from ldbench.store.budget import Tier

Source = Callable[[Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


class NoRoom(Exception):
    """No tier has room for a store.

    Attributes:
        shape: of one activation.
    """

    def __init__(self, shape: Sequence[int], problem: BaseException) -> None:
        super().__init__(one_line(problem))
        self.shape = tuple(shape)


@torch.no_grad()
def fill_store(
    segment: nn.Sequential,
    batches: Iterable[Tensor],
    source: Source,
    autocast: Autocast,
    allocate: Callable[..., ActivationStore],
    tier: Tier,
) -> tuple[ActivationStore, float]:
    """The segment's output in evaluation mode, row after row in the order of ``batches``, in the first tier from
    ``tier`` on that has room.

    Returns:
        the store, and the relative error of its first minibatch (what the store's dtype costs in precision).

    Raises:
        NoRoom: the last tier is full too; nothing is left behind.
        StoreLost: the file was truncated while it was written, twice.
    """
    tiers = _tiers_from(tier)
    for candidate in (*tiers, tiers[-1]):
        try:
            with evaluating(segment):
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
    segment: nn.Sequential,
    batches: Iterable[Tensor],
    source: Source,
    autocast: Autocast,
    allocate: Callable[[torch.Size], ActivationStore],
) -> tuple[ActivationStore, float]:
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
