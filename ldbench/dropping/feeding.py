"""What a dropper's loop is fed with: minibatches of images, or of the store; and how new samples get into it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from ldbench.devices import synchronize
from ldbench.dropping.deciding import drop_what_waited
from ldbench.seeds import sample_order

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper


def minibatches(dropper: LayerDropper, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Those of an epoch from the ``first`` on, see ``LayerDropper.loader``."""
    size = dropper.batch_size
    order = dropper.active[sample_order(len(dropper.active), dropper.seed, epoch)]
    for start in range(first * size, dropper.steps_per_epoch * size, size):
        indices = order[start : start + size]
        if dropper.store is None:
            augment = dropper.augment
            draw = augment.draw(dropper.step_count, len(indices)) if augment is not None else None
            yield (*dropper.feed.batch(indices, draw), indices)
        else:
            began = time.perf_counter()
            x, y = dropper.activations.batch(indices)
            dropper.store_read_seconds += time.perf_counter() - began
            yield x, y, indices


def begin_chunk(dropper: LayerDropper, chunk: int) -> None:
    """Go on to the next set of the stream, see ``LayerDropper.begin_chunk``; charged where new samples join a store."""
    drop_what_waited(dropper)
    if dropper.store is None:
        dropper.activations.advance(chunk)
    else:
        with dropper.around_building():
            passed = _admit(dropper, chunk)
        if dropper.ledger is not None:
            dropper.ledger.add_forward(passed, 0, dropper.cut)
    for watcher in dropper.watchers.values():
        watcher.begin_chunk()


def _admit(dropper: LayerDropper, chunk: int) -> int:
    synchronize(dropper.device)
    began = time.perf_counter()
    try:
        passed = dropper.activations.advance(chunk)
    except BaseException:
        dropper.abandoned_seconds += time.perf_counter() - began
        raise
    synchronize(dropper.device)
    dropper.cache_build_seconds += time.perf_counter() - began
    return passed
