"""A drop: statistics are re-estimated and the store is made, or nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ldbench.dropping.statistics import refresh_statistics
from ldbench.stages.undisturbed import remember_buffers
from ldbench.store.activation_store import ActivationStore
from ldbench.store.fill import Autocast, NoRoom, Source, Unfit


@dataclass(frozen=True)
class Drop:
    """One drop as the record tells it.

    Attributes:
        step: optimizer steps made before it.
        cut: leading stages gone from now on.
        reason: in words.
        store_tier, store_bytes, store_dtype: of the store; None, 0 and None where dropped stages go on running forward.
        store_relative_error: root mean square error that the store's dtype brings into the activations, relative to
            theirs.
        build_seconds: statistics and store.
        predicted_saving_seconds: over the rest of the run, building taken off; None where no time was measured.
        at_chunk_end: made when a chunk was over and evaluated, not at a check.
    """

    step: int
    cut: int
    reason: str
    store_tier: str | None
    store_bytes: int
    store_dtype: str | None
    store_relative_error: float
    build_seconds: float
    predicted_saving_seconds: float | None
    at_chunk_end: bool = False


@dataclass(frozen=True)
class Built:
    """What ``build_drop`` made.

    Attributes:
        store: None where none was asked for, or none had room.
        relative_error: of the store, see ``Drop``.
        passed: samples that went through the segment for its statistics.
        no_room, unfit: why there is no store; the segment is then as it was.
    """

    store: ActivationStore | None = None
    relative_error: float = 0.0
    passed: int = 0
    no_room: NoRoom | None = None
    unfit: str | None = None


def build_drop(
    segment: nn.Sequential,
    source: Source,
    autocast: Autocast,
    statistics: Sequence[Tensor],
    norms: Sequence[nn.Module],
    fill: Callable[[], tuple[ActivationStore, float]] | None,
) -> Built:
    """Make a segment of stages fit to leave training. Any exception leaves it as it was.

    Args:
        segment: the stages that leave; its modules keep their train/eval flags, which live stages may share.
        source: gives what the segment reads, for sample indices.
        autocast: gives the context the forward pass runs in.
        statistics: sample indices of the minibatches that BatchNorm's statistics are re-estimated on; none: they stay.
        norms: the BatchNorms whose statistics training moves.
        fill: makes the store; None: no store is wanted.
    """
    undo = remember_buffers(segment)
    passed = 0
    try:
        if statistics:
            passed = refresh_statistics(segment, norms, statistics, source, autocast)
        if fill is None:
            return Built(passed=passed)
        store, error = fill()
        return Built(store, error, passed)
    except NoRoom as full:
        undo()
        return Built(passed=passed, no_room=full)
    except Unfit as reason:
        undo()
        return Built(passed=passed, unfit=str(reason))
    except BaseException:
        undo()
        raise
