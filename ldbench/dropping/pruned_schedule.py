"""Where a run stands that leaves samples out of its epochs: fewer steps go through the same plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ldbench.dropping.schedule import Schedule

_ROUNDING = 1e-9  # of a share of the run


@dataclass(frozen=True)
class Span:
    """An epoch on its way through the plan.

    Attributes:
        steps_of_plan, minibatches_of_plan: behind when it began.
        step, consumed: made when it began.
        planned: minibatches of it, were it whole.
        kept: minibatches that it has.
    """

    steps_of_plan: float
    minibatches_of_plan: float
    step: int
    consumed: int
    planned: int
    kept: int


class PrunedSchedule(Schedule):
    """Counts steps of epochs that are shorter than planned; progress and checks go by the plan.

    An epoch of K minibatches in place of L moves on by L / K of the plan with each of them, so that it ends where the
    whole one would.

    Args:
        total, check_every, in_steps, checks_in_steps: as ``Schedule`` has them, of the plan.
        thin: parts of the run, as shares, whose epochs leave samples out: one per set of the stream.
        rate: K / L of such an epoch, as far as is known before one was made.
    """

    def __init__(
        self,
        total: int,
        check_every: int,
        *,
        in_steps: bool,
        checks_in_steps: bool,
        thin: Sequence[tuple[float, float]],
        rate: float,
    ) -> None:
        super().__init__(total, check_every, in_steps=in_steps, checks_in_steps=checks_in_steps)
        self.thin, self.rate = list(thin), rate
        self._span: Span | None = None
        self._behind: tuple[float, float] = 0, 0  # steps and minibatches of the plan, before the last step

    def thins(self, chunk: int) -> bool:
        """Whether an epoch that begins now, over set ``chunk`` of the stream, leaves samples out."""
        return self.progress < self.thin[chunk][1] - _ROUNDING

    def begin(self, planned: int, kept: int) -> None:
        """An epoch begins that has ``kept`` of its ``planned`` minibatches."""
        self._span = Span(self.steps_of_plan, self.minibatches_of_plan, self.step, self.consumed, planned, kept)
        if kept < planned:
            self.rate = kept / planned

    def advance(self, minibatches: int) -> None:
        self._behind = self.steps_of_plan, self.minibatches_of_plan
        super().advance(minibatches)

    @property
    def steps_of_plan(self) -> float:
        span = self._span
        return self.step if span is None else _moved(span.steps_of_plan, self.step - span.step, span)

    @property
    def minibatches_of_plan(self) -> float:
        span = self._span
        return self.consumed if span is None else _moved(span.minibatches_of_plan, self.consumed - span.consumed, span)

    @property
    def remaining(self) -> int:
        """Minibatches still to come, estimated: those that the epoch that runs has left; of the later ones as planned
        where all samples take part, and where not as many as the last epoch that left some out had of its own.
        """
        each = self.consumed / self.step if self.in_steps and self.step else 1
        total, left, after = self.total * each, 0, self.progress
        if self._span is not None:
            left = max(0, self._span.kept - (self.consumed - self._span.consumed))
            after = max(after, (self._span.minibatches_of_plan + self._span.planned) / total)
        thin = sum(max(0.0, end - max(begin, after)) for begin, end in self.thin)
        return left + round(total * (max(0.0, 1 - after) - (1 - self.rate) * thin))

    @property
    def check_due(self) -> bool:
        """Whether a check follows the step just made; as many are made as over a whole plan."""
        now = self.steps_of_plan if self.checks_in_steps else self.minibatches_of_plan
        before = self._behind[0 if self.checks_in_steps else 1]
        return not self.over and now // self.check_every > before // self.check_every

    def state_dict(self) -> dict[str, Any]:
        span = None if self._span is None else asdict(self._span)
        return super().state_dict() | {"span": span, "rate": self.rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._span, self.rate = None if state["span"] is None else Span(**state["span"]), state["rate"]
        self._behind = self.steps_of_plan, self.minibatches_of_plan


def _moved(begin: float, made: int, span: Span) -> float:
    return begin + span.planned * made / span.kept
