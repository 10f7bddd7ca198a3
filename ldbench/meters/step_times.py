"""A run's training time from its typical steps: for every kind of step the median time of one, times their number.

What a busy machine does to a few steps does nothing to their median. The figure stands beside the time that passed: it
is what the run takes where nothing gets in its way.
"""

from __future__ import annotations

import functools
import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

FEWEST_STEPS = 3  # a kind with fewer has no median worth the name


Sort = Literal["step", "check", "first"]


class StepKind(NamedTuple):
    """Steps that do the same work.

    Attributes:
        dropped: leading stages that are gone.
        sort: "check" where a check of what the policy goes by follows the step; "first" for the first one after a
            start, a drop, a checkpoint or the beginning of an epoch, which starts the loader and may compile.
        left_out: residual blocks that are left out at random.
        image_side: pixels that the images are scaled to; 0 at their own size.
    """

    dropped: int
    sort: Sort
    left_out: int
    image_side: int = 0


class Marks(Protocol):
    """Takes points in time, and tells the seconds between them."""

    def take(self) -> Any:
        """A mark, now."""
        ...

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Seconds between neighbours, the device having come past the last; all but that one may be taken again."""
        ...


class HostMarks:
    """Marks of the host's monotonic clock."""

    take = staticmethod(time.perf_counter)

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return [end - begin for begin, end in pairwise(marks)]


def _timed_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class CudaMarks:
    """Marks in the work of a CUDA stream: events, which nobody waits for.

    Args:
        stream: gives the stream that the work is put on.
        event: makes an event that takes its time.
    """

    def __init__(
        self,
        stream: Callable[[], Any],
        event: Callable[[], Any] = _timed_event,
    ) -> None:
        self._stream, self._event = stream, event
        self._spare: list[Any] = []

    def take(self) -> Any:
        event = self._spare.pop() if self._spare else self._event()
        event.record(self._stream())
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        laps = [begin.elapsed_time(end) / 1000 for begin, end in pairwise(marks)]
        self._spare += marks[:-1]
        return laps


class StepTimes:
    """Takes the time of every step, without waiting for the device.

    Args:
        device: that the steps run on.
        marks: takes the points in time; by default the host's clock, or events on CUDA.

    Attributes:
        fresh: whether the next step is the first of its kind for loader and compiler, see ``StepKind``.
    """

    def __init__(self, device: torch.device, marks: Marks | None = None) -> None:
        if marks is None:
            cuda = device.type == "cuda"
            marks = CudaMarks(functools.partial(torch.cuda.current_stream, device)) if cuda else HostMarks()
        self.fresh, self._marks = True, marks
        self._taken: list[Any] = []  # those whose laps were not added yet, one more than laps
        self._laps: list[tuple[StepKind, float]] = []
        self._seconds: dict[StepKind, array[float]] = {}

    def begin(self) -> None:
        """A span of training begins; the device has come past the one before."""
        self._add_up()
        self._taken, self.fresh = [self._marks.take()], True

    def lap(self, kind: StepKind, apart_seconds: float = 0.0) -> None:
        """A step is over. ``apart_seconds``: of the time since the last, what is accounted for elsewhere."""
        self._taken.append(self._marks.take())
        self._laps.append((kind, apart_seconds))
        self.fresh = False

    def typical_seconds(self, apart_seconds: float) -> float | None:
        """Training time of all steps, and the seconds that lay apart from them; None where no step was made."""
        kinds = self.record()
        return math.fsum([apart_seconds, *(kind["counted_seconds"] for kind in kinds)]) if kinds else None

    def record(self) -> list[dict[str, Any]]:
        """Per kind of step how many there were, their median, 20th and 80th percentile, and what they count as.

        They count as median times number; as their sum where they are first ones or too few.
        """
        self._add_up()
        told = []
        for kind, seconds in sorted(self._seconds.items()):
            p20, median, p80 = (float(value) for value in np.percentile(seconds, (20, 50, 80)))
            summed = kind.sort == "first" or len(seconds) < FEWEST_STEPS
            told.append(
                {
                    "dropped": kind.dropped,
                    "kind": kind.sort,
                    "left_out": kind.left_out,
                    "image_side": kind.image_side or None,
                    "steps": len(seconds),
                    "median_seconds": median,
                    "p20_seconds": p20,
                    "p80_seconds": p80,
                    "counted_seconds": math.fsum(seconds) if summed else median * len(seconds),
                }
            )
        return told

    def _add_up(self) -> None:
        """Put the laps until now with their kinds; the device has come past them."""
        between = self._marks.seconds(self._taken)
        for (kind, apart), seconds in zip(self._laps, between, strict=True):
            self._seconds.setdefault(kind, array("d")).append(max(0.0, seconds - apart))
        self._taken, self._laps = self._taken[-1:], []

    def state_dict(self) -> dict[str, Any]:
        """Every kind with its steps' seconds (float64 [steps]), between two spans."""
        self._add_up()
        seconds = [torch.from_numpy(np.array(each)) for each in self._seconds.values()]
        return {"kinds": [list(kind) for kind in self._seconds], "seconds": seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        pairs = zip(state["kinds"], state["seconds"], strict=True)
        self._seconds = {StepKind(*kind): array("d", seconds.tolist()) for kind, seconds in pairs}
