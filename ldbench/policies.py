"""When to drop: pure decisions from scores and progress, without torch, resumable through ``state_dict``.

A policy never touches the network. It is shown an ``Observation`` and answers how many leading stages have stopped; what
is then skipped (backward only, or forward too) is the execution's business, see ``ldbench.methods``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ldbench.errors import UserError, shown


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a check. Scores are None for dropped stages and until enough checks were made.

    Attributes:
        step: optimizer steps made so far.
        total_steps: optimizer steps of the whole run.
        dropped: leading stages dropped already.
        stages: number of stages, at least one of which always stays.
        change: layer-change score per stage, relative movement per unit of summed learning rate.
        continuation: continuation score per stage, in [0, 1].
    """

    step: int
    total_steps: int
    dropped: int
    stages: int
    change: Sequence[float | None] = ()
    continuation: Sequence[float | None] = ()

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]."""
        return self.step / self.total_steps


@runtime_checkable
class Policy(Protocol):
    """The contract of every drop rule."""

    uses_scores: bool
    exact: bool  # True: the proposed cut or none; False: the engine picks the best-paying cut up to the proposed one

    def stopped(self, seen: Observation) -> int:
        """Number of leading stages that have stopped, at least ``seen.dropped``, at most ``seen.stages - 1``."""
        ...

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        """Factor on the learning rate per stage at this progress, or None for one rate everywhere."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        ...


class NeverDrop:
    """Full training: nothing ever stops. Base of the stateless policies."""

    uses_scores = False
    exact = False

    def stopped(self, seen: Observation) -> int:
        return seen.dropped

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
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

    uses_scores = True

    def __init__(self, remaining: float = 0.2, patience: int = 2, earliest: float = 0.2) -> None:
        if (
            not all(map(_is_number, (remaining, patience, earliest)))
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
        if not all(0 <= at < 1 and _is_number(cut) and 0 <= cut < math.inf for at, cut in self.drops):
            raise UserError(f"schedule: progress lies in [0, 1) and stages from 0 up, not {shown(drops)}")

    def stopped(self, seen: Observation) -> int:
        cut = seen.dropped
        for at, wanted in self.drops:
            stages = wanted if isinstance(wanted, int) else math.floor(wanted * seen.stages)
            if seen.progress >= at:
                cut = max(cut, stages)
        return min(cut, seen.stages - 1)


class FreezeOut(NeverDrop):
    """Brock et al. 2017, "FreezeOut: Accelerate Training by Progressively Freezing Layers" (arXiv:1706.04983).

    Stage i anneals its own learning rate along half a cosine to zero at t_i and is frozen from then on; the t_i run
    linearly from ``t_first`` for the first stage to 1 for the last, cubed where ``cubic``. With ``scaled``, the rate of
    stage i starts at 1 / t_i times the base, so that each stage's rate has the same integral. What differs from the
    paper: its unit is a layer, ours a stage, and the last stage is never frozen before the end.
    """

    exact = True

    def __init__(self, t_first: float = 0.8, cubic: bool = True, scaled: bool = True) -> None:
        if not _is_number(t_first) or not 1e-3 <= t_first <= 1:  # its cube is divided by
            raise UserError(f"freezeout: t_first is a number in [0.001, 1], not {shown(t_first)}")
        if not isinstance(cubic, bool) or not isinstance(scaled, bool):
            raise UserError("freezeout: cubic and scaled are true or false")
        self.t_first, self.cubic, self.scaled = t_first, cubic, scaled

    def freeze_times(self, stages: int) -> list[float]:
        """t_i per stage as a share of the run."""
        linear = [self.t_first + (1 - self.t_first) * i / max(stages - 1, 1) for i in range(stages)]
        return [t**3 for t in linear] if self.cubic else linear

    def stopped(self, seen: Observation) -> int:
        done = sum(seen.progress >= t for t in self.freeze_times(seen.stages)[:-1])
        return max(seen.dropped, done)

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        scales = []
        for t in self.freeze_times(stages):
            start = 1 / t if self.scaled else 1.0
            scales.append(start * 0.5 * (1 + math.cos(math.pi * min(progress / t, 1.0))))
        return scales


class Replay(NeverDrop):
    """Repeats the drops of a recorded run: ``events`` is a list of (step, stages dropped)."""

    exact = True

    def __init__(self, events: Sequence[Sequence[int]] = ()) -> None:
        self.events = [(int(step), int(cut)) for step, cut in events]

    def stopped(self, seen: Observation) -> int:
        return max([seen.dropped, *(cut for step, cut in self.events if seen.step >= step)])
