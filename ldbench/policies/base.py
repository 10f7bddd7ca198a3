"""The contract between rules and engine: what a rule is shown, what it answers, and the rule that never drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable


def is_number(value: object) -> bool:
    """An int or float, not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a check. What it did not ask for in ``needs`` is empty.

    Entries are None for dropped stages and until enough checks were made.

    Attributes:
        step: optimizer steps made so far.
        total_steps: optimizer steps of the whole run.
        dropped: leading stages dropped already.
        stages: number of stages, at least one of which always stays.
        change: layer-change score per stage, relative movement per unit of summed learning rate.
        continuation: continuation score per stage, in [0, 1].
        gradient: L1 norm per stage of the gradient summed over the interval that ends at this check; see
            ``ldbench.dropping.monitors.GradientMonitor``.
        plasticity: distance per stage of its output from a snapshot's; see
            ``ldbench.dropping.monitors.PlasticityMonitor``.
        settled: share of each stage's scalars that move about without getting anywhere, in [0, 1]; see
            ``ldbench.dropping.monitors.PerturbationMonitor``.
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

    @property
    def progress(self) -> float:
        """Where the run is on its schedule, in [0, 1]."""
        return self.step / self.total_steps


@runtime_checkable
class Policy(Protocol):
    """The contract of every drop rule.

    Attributes:
        needs: what has to be measured for it ("scores", "gradient", "plasticity", "settled") -> settings of that
            measurement; nothing else is measured.
        exact: the proposed cut or none; False: the engine picks the best-paying cut up to the proposed one.
        refreshes: BatchNorm's population statistics of the stages that are dropped are re-estimated, which costs
            forward passes.
        waits: where data arrive in chunks, what has stopped is dropped when its chunk is over.
    """

    needs: Mapping[str, Mapping[str, float]]
    exact: bool
    refreshes: bool
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

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        ...


class NeverDrop:
    """Full training: nothing ever stops. Base of the stateless policies."""

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    exact = False
    refreshes = False
    waits = False

    def stopped(self, seen: Observation) -> int:
        return seen.dropped

    def at_chunk_end(self, step: int, waiting: int) -> int:
        return waiting

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        return None

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state
