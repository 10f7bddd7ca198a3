"""Which minibatches the loop was handed, which of them it has trained on, and where each enters the network."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from ldbench.dropping.schedule import Schedule


@dataclass
class Handed:
    """A minibatch in the loop's hands.

    Attributes:
        number: minibatches of the run before it: decides its random masks and its augmentation.
        cut: leading stages that it has been through.
        samples: in it.
        shape: of one sample.
    """

    number: int
    cut: int
    samples: int
    shape: tuple[int, ...]
    _tensor: weakref.ref[Tensor] | None = field(default=None, repr=False)

    def is_made_of(self, x: Tensor) -> bool:
        """Whether ``x`` is its very tensor."""
        return self._tensor is not None and self._tensor() is x


class HandOut:
    """Counts minibatches on their way through a loop that may fetch some ahead, and may take several for a step.

    A minibatch that is fetched before a drop and trained on after it has been through fewer stages than are gone by
    then. It is known by its tensor; where the loop has made another one of it (moved, mixed up), by the shape of its
    samples where that tells, else by its turn.

    Args:
        schedule: counts what steps were made of.
        accumulate: minibatches for a step; None: they are counted.
    """

    def __init__(self, schedule: Schedule, accumulate: int | None = None) -> None:
        self._schedule, self.accumulate = schedule, accumulate
        self._waiting: deque[Handed] = deque()
        self._shapes: dict[int, tuple[int, ...]] = {}  # of one sample, by cut
        self._seen: Handed | None = None  # the furthest minibatch since the last step
        self._forwards = 0  # since the last step

    def __len__(self) -> int:
        """Minibatches in the loop's hands."""
        return len(self._waiting)

    @property
    def untouched(self) -> int:
        """Of the minibatches in the loop's hands those that were not sent forward yet: it fetched them ahead."""
        return sum(self._seen is None or each.number > self._seen.number for each in self._waiting)

    @property
    def next_number(self) -> int:
        """The number of the minibatch that is handed out next."""
        return self._schedule.consumed + len(self._waiting)

    def give(self, x: Tensor, samples: int, cut: int) -> None:
        """The loop is handed ``x``, which has been through ``cut`` stages."""
        self._shapes[cut] = tuple(x.shape[1:])
        self._waiting.append(Handed(self.next_number, cut, samples, self._shapes[cut], weakref.ref(x)))

    def take_back(self, given: int) -> None:
        """The loop has let go of an epoch after ``given`` minibatches of it: what it hasn't trained on never comes."""
        for _ in range(min(given, len(self._waiting))):
            self._waiting.pop()
        self._seen = None

    def arrive(self, x: Tensor, cut: int, training: bool = True) -> Handed:
        """The minibatch that ``x`` is, on its way into the network whose first ``cut`` stages are gone.

        ``training``: the loop trains on it; else it evaluates, on images of its own maybe.
        """
        found = next((each for each in self._waiting if each.is_made_of(x)), None)
        if not training:
            return found or self._foreign(x, cut)
        self._forwards += 1
        found = found or self._by_shape_or_turn(x)
        if found is None:
            return self._foreign(x, cut)
        if self._seen is None or found.number > self._seen.number:
            self._seen = found
        return found

    def _foreign(self, x: Tensor, cut: int) -> Handed:
        """Something that was not handed out: what enters where its shape belongs, as images do in front."""
        shape = tuple(x.shape[1:])
        fitting = [each for each, known in self._shapes.items() if known == shape]
        entry = cut if cut in fitting or not fitting else min(fitting)
        return Handed(self.next_number, entry, len(x), shape)

    def _by_shape_or_turn(self, x: Tensor) -> Handed | None:
        if not self._waiting:
            return None
        turn = self._waiting[min(self._forwards, len(self._waiting)) - 1]
        if turn.shape == x.shape[1:]:
            return turn
        return next((each for each in self._waiting if each.shape == x.shape[1:]), turn)

    def step(self) -> tuple[int, int]:
        """A step was made.

        Returns:
            how many minibatches it was made of, and the samples in them; (1, 0) where they weren't ours.
        """
        seen, samples = self._seen, 0
        used = max(1, self.accumulate or (seen.number - self._schedule.consumed + 1 if seen is not None else 1))
        for _ in range(min(used, len(self._waiting))):
            samples += self._waiting.popleft().samples
        self._seen, self._forwards = None, 0
        self._schedule.advance(used)
        return used, samples
