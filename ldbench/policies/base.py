"""The contract between rules and engine: what a rule is shown, what it answers, and the rule that never drops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

DEFAULT_METHOD = "paced"  # of those that drop layers the one that was most ahead, see docs/evidence.md


def is_number(value: object) -> bool:
    """An int or float, not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a check. What it did not ask for in ``needs`` is empty.

    Entries are None for dropped stages and until enough checks were made; for stages without a trainable parameter
    they may be None or 0, and say nothing.

    Attributes:
        step: optimizer steps made so far.
        total_steps: optimizer steps of the whole run.
        dropped: leading stages that are gone, or in front of all that trains: decisions begin behind them.
        stages: number of stages, at least one of which always stays.
        change: layer-change score per stage, relative movement per unit of summed learning rate.
        continuation: continuation score per stage, in [0, 1].
        gradient: L1 norm per stage of the gradient summed over the interval that ends at this check; see
            ``ldbench.dropping.monitors.GradientMonitor``.
        plasticity: distance per stage of its output from a snapshot's; see
            ``ldbench.dropping.monitors.PlasticityMonitor``.
        settled: share of each stage's scalars that move about without getting anywhere, in [0, 1]; see
            ``ldbench.dropping.monitors.PerturbationMonitor``.
        cka: similarity per stage of its output to the one it had at the beginning, in [0, 1]; None at the first check
            after another beginning, see ``ldbench.dropping.similarity.CkaMonitor``.
        trainable: whether each stage has a trainable parameter; empty: all have.
        position: steps of the plan that are behind, where epochs leave samples out and are shorter; None: those made.
    """

    step: int
    total_steps: int
    dropped: int
    stages: int
    change: Sequence[float | None] = ()
    continuation: Sequence[float | None] = ()
    gradient: Sequence[float | None] = ()
    plasticity: Sequence[float | None] = ()
    settled: Sequence[float | None] = ()
    cka: Sequence[float | None] = ()
    trainable: Sequence[bool] = ()
    position: float | None = None

    @property
    def progress(self) -> float:
        """Where the run is on its schedule, in [0, 1]."""
        return (self.step if self.position is None else self.position) / self.total_steps

    def trains(self, stage: int) -> bool:
        """Whether the stage has a trainable parameter; one without has stopped, and keeps none behind it from leaving."""
        return not self.trainable or self.trainable[stage]


@runtime_checkable
class Policy(Protocol):
    """The contract of every drop rule.

    A rule may have ``why(seen) -> list[str]`` as well, which is no part of what it has to have: for people, one text
    per stage, why it has not been stopped, with the figures and thresholds that the rule goes by. It is asked after
    ``stopped`` was shown the same observation and changes nothing. "" for the first ``seen.dropped`` stages, "has
    stopped" for those behind them that ``stopped`` let go. Stages are counted from 1 in it. See ``reasons``.

    Attributes:
        needs: what has to be measured for it ("scores", "gradient", "plasticity", "settled", "cka") -> settings of
            that measurement; nothing else is measured.
        exact: the proposed cut or none; False: the engine picks the best-paying cut up to the proposed one.
        waits: where data arrive in chunks, what has stopped is dropped when its chunk is over.
    """

    needs: Mapping[str, Mapping[str, float]]
    exact: bool
    waits: bool

    def stopped(self, seen: Observation) -> int:
        """Number of leading stages that have stopped, at least ``seen.dropped``, at most ``seen.stages - 1``."""
        ...

    def at_chunk_end(self, step: int, waiting: int) -> int:
        """Stages to drop when a chunk is over after ``step`` steps, ``waiting`` having stopped until now."""
        ...

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        """Factor on the base learning rate per stage at this progress, in place of the recipe's schedule but for its
        warm-up; None: the recipe's schedule, one rate everywhere.
        """
        ...

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        """Probability in (0, 1] of each residual block to take part in a step; None: none is skipped at random."""
        ...

    def image_side(self, progress: float, side: int) -> int | None:
        """Pixels that a side of ``side`` pixels of the training images is scaled to at this progress of what the learning
        rate's schedule spans; None: images are never scaled.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        ...


NOTHING_TO_TRAIN = "has no parameter to train, and leaves once it is reached"


def percent(share: float) -> str:
    """A share of the run for people: "27 %"."""
    return f"{100 * share:.3g} %"


def reasons(seen: Observation, stopped: int, reason: Callable[[int], str]) -> list[str]:
    """One text per stage, see ``Policy``: ``reason(stage)`` for those from ``stopped`` on, the last stage left out."""
    gone, last = min(seen.dropped, seen.stages - 1), seen.stages - 1
    texts = ["has stopped" if stage < stopped else reason(stage) for stage in range(gone, last)]
    return [""] * gone + texts + ["the last stage always stays"]


class NeverDrop:
    """Full training: nothing ever stops. Base of the policies, with an answer to all that they need not decide."""

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    exact = False
    waits = False

    def stopped(self, seen: Observation) -> int:
        return seen.dropped

    def why(self, seen: Observation) -> list[str]:
        if type(self).stopped is NeverDrop.stopped:
            return reasons(seen, seen.dropped, lambda stage: "this rule drops nothing")
        return reasons(seen, seen.dropped, lambda stage: f"{type(self).__name__} gives no reason")

    def at_chunk_end(self, step: int, waiting: int) -> int:
        return waiting

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        return None

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        return None

    def image_side(self, progress: float, side: int) -> int | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state
