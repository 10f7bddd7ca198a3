"""A run's steps in order, as planned: so many epochs over each set of a stream, all of them or a budget's share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldbench.data.stream import Stream
from ldbench.experiment.allocation import chunk_steps


@dataclass(frozen=True)
class Epoch:
    """One pass over the samples of a chunk, or the beginning of one.

    Attributes:
        chunk: which set of the stream is drawn from.
        first_step: steps made before it.
        steps: its length.
        chunk_first_step: steps made before its chunk.
        chunk_end: steps made when its chunk is over.
    """

    chunk: int
    first_step: int
    steps: int
    chunk_first_step: int
    chunk_end: int

    @property
    def end(self) -> int:
        """Steps made when it is over."""
        return self.first_step + self.steps

    @property
    def closes_chunk(self) -> bool:
        """Nothing of the chunk comes after it."""
        return self.end == self.chunk_end


def epoch_lengths(stream: Stream, batch_size: int) -> list[int]:
    """Steps of an epoch over each set of a stream."""
    return [len(chosen) // min(batch_size, *map(len, stream.sets)) for chosen in stream.sets]


def plan_epochs(
    stream: Stream,
    batch_size: int,
    epochs: int,
    budget: float | None,
    early: bool = False,
    allocation: Sequence[float] | None = None,
) -> list[Epoch]:
    """The epochs of a run; ``budget``, ``early`` and ``allocation`` as in ``chunk_steps``."""
    lengths = epoch_lengths(stream, batch_size)
    steps = chunk_steps(lengths, epochs, budget, early=early, allocation=allocation)
    planned: list[Epoch] = []
    made = 0
    for chunk, (length, left) in enumerate(zip(lengths, steps, strict=True)):
        for first in range(0, left, length):
            planned.append(Epoch(chunk, made + first, min(length, left - first), made, made + left))
        made += left
    return planned
