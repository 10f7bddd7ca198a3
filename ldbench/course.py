"""A run's steps in order: so many epochs over each set of a stream, all of them or a budget's share."""

from __future__ import annotations

from dataclasses import dataclass

from ldbench.stream import Stream


@dataclass(frozen=True)
class Epoch:
    """One pass over the samples of a chunk, or the beginning of one.

    Attributes:
        chunk: which set of the stream is drawn from.
        first_step: steps made before it.
        steps: its length.
        closes_chunk: nothing of the chunk comes after it.
    """

    chunk: int
    first_step: int
    steps: int
    closes_chunk: bool

    @property
    def end(self) -> int:
        """Steps made when it is over."""
        return self.first_step + self.steps


def full_steps(stream: Stream, batch_size: int, epochs: int) -> int:
    """Steps of ``epochs`` whole epochs over every set of the stream; the last, smaller minibatch of an epoch is left out."""
    return epochs * sum(len(chosen) // batch_size for chosen in stream.sets)


def make_course(stream: Stream, batch_size: int, epochs: int, budget: float | None) -> list[Epoch]:
    """The epochs of a run; ``budget`` is the share of each chunk's steps that is trained (at least one), None for all."""
    course: list[Epoch] = []
    made = 0
    for chunk, chosen in enumerate(stream.sets):
        length = len(chosen) // batch_size
        left = max(1, round(epochs * length * (budget or 1.0)))
        while left > 0:
            steps = min(left, length)
            left -= steps
            course.append(Epoch(chunk, made, steps, closes_chunk=left == 0))
            made += steps
    return course
