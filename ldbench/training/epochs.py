"""A run's steps in order: so many epochs over each set of a stream, all of them or a budget's share."""

from __future__ import annotations

from dataclasses import dataclass

from ldbench.data.stream import Stream


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


def plan_epochs(stream: Stream, batch_size: int, epochs: int, budget: float | None, early: bool = False) -> list[Epoch]:
    """The epochs of a run.

    Args:
        budget: the share of each chunk's steps that is trained (at least one); None for all.
        early: the budget is a share of all steps instead, and the first chunk is trained in full as far as it reaches;
            the others share what is left evenly.
    """
    lengths = [len(chosen) // batch_size for chosen in stream.sets]
    shares = [budget or 1.0] * len(lengths)
    if early and len(lengths) > 1:
        total = (budget or 1.0) * sum(lengths)
        shares[0] = min(1.0, total / lengths[0])
        shares[1:] = [max(0.0, total - shares[0] * lengths[0]) / sum(lengths[1:])] * (len(lengths) - 1)
    steps = [max(1, round(epochs * length * share)) for length, share in zip(lengths, shares, strict=True)]
    planned: list[Epoch] = []
    made = 0
    for chunk, (length, left) in enumerate(zip(lengths, steps, strict=True)):
        for first in range(0, left, length):
            planned.append(Epoch(chunk, made + first, min(length, left - first), made, made + left))
        made += left
    return planned
