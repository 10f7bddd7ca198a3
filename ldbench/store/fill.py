"""Makes a store: the output of a segment of stages, minibatch after minibatch, in the first tier that has room."""

from __future__ import annotations

import functools
import math
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


class Unfit(Exception):
    """Stored rows would not be what the stages compute: training must not read them."""


PROBED = 2  # samples of the first minibatch that pass once more, by themselves
_ALONE = 0.05  # relative: rounding, in half precision too, stays well below, another sample's influence doesn't


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
        Unfit: the output isn't finite, the store's dtype does not hold it, or a sample's depends on the others in its
            minibatch; nothing is left behind.
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
    precision_error, filled, largest = 0.0, 0, torch.zeros(())
    try:
        for indices in batches:
            read = source(indices)
            with autocast():
                x = segment(read)
            largest = torch.maximum(largest.to(x.device), torch.linalg.vector_norm(x, math.inf).float())
            rows = torch.arange(filled, filled + len(indices))
            filled += len(indices)
            if store is None:
                store = _allocate(x.shape[1:], allocate)
                _check_range(segment, float(largest), store)
                with autocast():
                    _check_alone(segment, read, x)
                store.write(rows, x)
                precision_error = store.relative_error(rows, x)
            else:
                store.write(rows, x)
        assert store is not None, "there is at least one sample"
        _check_range(segment, float(largest), store)
    except (torch.OutOfMemoryError, MemoryError) as problem:  # the passes found no room beside the store
        if store is None:
            raise
        store.close()
        raise NoRoom(store.shape, problem) from problem
    except BaseException:
        if store is not None:
            store.close()
        raise
    return store, precision_error


def _check_range(segment: nn.Sequential, largest: float, store: ActivationStore) -> None:
    if not math.isfinite(largest):
        raise Unfit(f"the output of {_last(segment)} is not finite")
    if largest > store.largest:
        raise Unfit(
            f"values of the output of {_last(segment)} reach {largest:.3g} and a store in {store.dtype} ends at "
            f"{store.largest:.3g}: let it be in bf16 or fp32"
        )


def _check_alone(segment: nn.Sequential, read: Tensor, output: Tensor) -> None:
    """Some samples of the first minibatch, by themselves: a stored row is read beside other ones than it was made."""
    few = min(PROBED, len(read) - 1)
    if few < 1:
        return
    whole = output[:few].double()
    change = (segment(read[:few]).double() - whole).norm()
    if not change <= _ALONE * whole.norm().clamp_min(1e-30):
        raise Unfit(
            f"the output of {_last(segment)} for a sample depends on the other samples of its minibatch, or on chance"
        )


def _last(segment: nn.Sequential) -> str:
    return f"stage {getattr(segment[-1], 'stage_name', len(segment) - 1)}"


def _allocate(shape: torch.Size, allocate: Callable[[torch.Size], ActivationStore]) -> ActivationStore:
    try:
        return allocate(shape)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as problem:
        raise NoRoom(shape, problem) from problem
