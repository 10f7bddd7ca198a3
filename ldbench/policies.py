"""When to drop: pure decisions from scores and progress, without torch, resumable through ``state_dict``.

A policy never touches the network. It is shown an ``Observation`` and answers how many leading stages have stopped; what
is then skipped (backward only, or forward too) is the execution's business, see ``ldbench.methods``. Rules taken from
other papers are in ``ldbench.rivals``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from ldbench.errors import UserError, shown


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
            ``ldbench.watchers.GradientWatcher``.
        plasticity: distance per stage of its output from a snapshot's; see ``ldbench.watchers.PlasticityWatcher``.
        settled: share of each stage's scalars that move about without getting anywhere, in [0, 1]; see
            ``ldbench.watchers.PerturbationWatcher``.
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
        """Share of the run that is over, in [0, 1]."""
        return self.step / self.total_steps


@runtime_checkable
class Policy(Protocol):
    """The contract of every drop rule.

    Attributes:
        needs: what has to be measured for it ("scores", "gradient", "plasticity", "settled") -> settings of that
            measurement; nothing else is measured.
        exact: the proposed cut or none; False: the engine picks the best-paying cut up to the proposed one.
    """

    needs: Mapping[str, Mapping[str, float]]
    exact: bool

    def stopped(self, seen: Observation) -> int:
        """Number of leading stages that have stopped, at least ``seen.dropped``, at most ``seen.stages - 1``."""
        ...

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        """Factor on the learning rate per stage at this progress, or None for one rate everywhere."""
        ...

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        """Probability in (0, 1] with which each residual block takes part in a step; None: nothing is skipped at random."""
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

    def stopped(self, seen: Observation) -> int:
        return seen.dropped

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        return None

    def survival(self, progress: float, blocks: int) -> list[float] | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


class LearnAndDrop(NeverDrop):
    """Stops a stage when little of its movement still leads anywhere.

    The useful change of stage s is u_s = c_s x k_s, its layer-change score times its continuation score: movement per unit
    of learning rate, counted as far as it is directed. Both factors are needed. Under BatchNorm and weight decay c alone
    settles at a level that follows the learning rate, not learning; k alone rises again at the end of an annealed run,
    when hardly anything moves any more.

    A stage is calm at a check when u_s is at most ``remaining`` times the highest u_s it has had; it has stopped after
    ``patience`` calm checks in a row. Only a prefix of stopped stages may leave, none before ``earliest`` of the run.
    """

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({"scores": {}})

    def __init__(self, remaining: float = 0.2, patience: int = 2, earliest: float = 0.2) -> None:
        if (
            not all(map(is_number, (remaining, patience, earliest)))
            or not isinstance(patience, int)
            or patience < 1
            or not 0 <= remaining <= 1
            or not 0 <= earliest <= 1
        ):
            raise UserError(
                "learn-and-drop: remaining and earliest lie in [0, 1], patience is a whole number from 1 up"
            )
        self.remaining, self.patience, self.earliest = remaining, patience, earliest
        self.peak: list[float] = []
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        self.peak += [0.0] * (seen.stages - len(self.peak))
        self.calm += [0] * (seen.stages - len(self.calm))
        for stage in range(seen.dropped, seen.stages):
            change, ahead = seen.change[stage], seen.continuation[stage]
            if change is None or ahead is None:
                continue
            useful = change * ahead
            self.peak[stage] = max(self.peak[stage], useful)
            self.calm[stage] = self.calm[stage] + 1 if useful <= self.remaining * self.peak[stage] else 0
        cut = seen.dropped
        if seen.progress >= self.earliest:
            while cut < seen.stages - 1 and self.calm[cut] >= self.patience:
                cut += 1
        return cut

    def state_dict(self) -> dict[str, Any]:
        return {"peak": list(self.peak), "calm": list(self.calm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.peak, self.calm = list(state["peak"]), list(state["calm"])


class FixedSchedule(NeverDrop):
    """Drops at fixed shares of the run: ``drops`` is a list of (progress, stages or share of the stages).

    The default lets a quarter of the stages go at 30 %, half at 50 % and three quarters at 70 % of the run.
    """

    exact = True

    def __init__(self, drops: Sequence[Sequence[float]] = ((0.3, 0.25), (0.5, 0.5), (0.7, 0.75))) -> None:
        try:
            self.drops = sorted((float(at), cut) for at, cut in drops)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"schedule: drops is a list of [progress, stages] pairs, not {shown(drops)}") from None
        if not all(0 <= at < 1 and is_number(cut) and 0 <= cut < math.inf for at, cut in self.drops):
            raise UserError(f"schedule: progress lies in [0, 1) and stages from 0 up, not {shown(drops)}")

    def stopped(self, seen: Observation) -> int:
        cut = seen.dropped
        for at, wanted in self.drops:
            stages = wanted if isinstance(wanted, int) else math.floor(wanted * seen.stages)
            if seen.progress >= at:
                cut = max(cut, stages)
        return min(cut, seen.stages - 1)


class Replay(NeverDrop):
    """Repeats the drops of a recorded run: ``events`` is a list of (step, stages dropped)."""

    exact = True

    def __init__(self, events: Sequence[Sequence[int]] = ()) -> None:
        self.events = [(int(step), int(cut)) for step, cut in events]

    def stopped(self, seen: Observation) -> int:
        return max([seen.dropped, *(cut for step, cut in self.events if seen.step >= step)])
