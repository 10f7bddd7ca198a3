"""When to drop: pure decisions from scores and progress, without torch, resumable through ``state_dict``.

A policy never touches the network. It is shown an ``Observation`` and answers how many leading stages have stopped;
what is then skipped (backward only, or forward too) is the execution's business, see ``ldbench.policies.registry``.
Rules of other papers are in ``ldbench.policies.baselines`` and ``ldbench.policies.plateaus``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ldbench.errors import UserError, shown
from ldbench.policies.base import NeverDrop, Observation, is_number, percent, reasons
from ldbench.policies.options import check_count, check_flag, check_share
from ldbench.policies.resting import in_a_row, resting_prefix, why_not_gone

PACE_DEPTH = 11  # stages of the deepest network that the default pace was chosen on
CHECKS_TO_SCORE = 4  # before a continuation score is there: the window of ``ldbench.dropping.scores.ScoreTracker``


def useful_changes(seen: Observation) -> list[float | None]:
    """u_s = c_s x k_s per stage, its layer-change score times its continuation score; None where either is missing."""
    pairs = zip(seen.change, seen.continuation, strict=True)
    return [None if change is None or ahead is None else change * ahead for change, ahead in pairs]


def pace_at_depth(pace: float, pace_depth: int, stages: int) -> float:
    """The pace for a network of ``stages`` stages: of those deeper than ``pace_depth`` it rises in proportion.

    A deep network's stages are many and small, and neighbours do alike, so that more of them may leave at a time.
    """
    return pace * max(1.0, stages / pace_depth)


def due_at(stage: int, stages: int, pace: float, earliest: float) -> float:
    """The share of the run after which a pace lets a stage (from 0) go; infinite at a pace of 0."""
    return max(earliest, (stage + 1) / stages / pace) if pace else math.inf


def hold_at_depth(hold: float, pace_depth: int, stages: int) -> float:
    """Share of the run that a stage of a network of ``stages`` stages may go on after its time by the pace: without end up to
    ``pace_depth`` stages, then ``hold`` x ``pace_depth`` over the stages beyond, so that the more stages there are, the shorter a single one
    can hold back all that are behind it.
    """
    return hold * pace_depth / (stages - pace_depth) if stages > pace_depth else math.inf


def check_pace(method: str, pace: Any, pace_depth: Any) -> None:
    """Raises ``UserError`` unless both can be what they are called."""
    if not is_number(pace) or not 0 <= pace <= 1e6:
        raise UserError(f"{method}: pace is a number from 0 up, not {shown(pace)}")
    check_count(method, pace_depth=pace_depth)


class LearnAndDrop(NeverDrop):
    """Stops a stage when little of its movement still leads anywhere.

    The useful change of stage s is u_s = c_s x k_s, its layer-change score times its continuation score: movement per
    unit of learning rate, counted as far as it is directed. Both factors are needed. Under BatchNorm and weight decay
    c alone settles at a level that follows the learning rate, not learning; k alone rises again at the end of an
    annealed run, when hardly anything moves any more.

    A stage is calm at a check when u_s is at most ``remaining`` times the highest u_s it has had; it has stopped after
    ``patience`` calm checks in a row. Only a prefix of stopped stages may leave, none before ``earliest`` of the run,
    and after a share p of the run at most ``pace`` x p of all stages, of networks of more than ``pace_depth`` stages in
    proportion more (``pace_at_depth``): scores of neighbouring stages fall together, and what leaves all at once leaves
    too early. In these deeper networks a stage that isn't calm leaves all the same ``hold_at_depth(hold, ...)`` after its time by the pace: a
    prefix has to be calm from end to end, so that the more stages there are, the likelier one of them holds back all others. Where data arrive in chunks they leave when the chunk is over, or at once
    without ``waits``.
    """

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({"scores": {}})

    def __init__(
        self,
        remaining: float = 0.6,
        patience: int = 2,
        earliest: float = 0.2,
        pace: float = 1.5,
        waits: bool = True,
        pace_depth: int = PACE_DEPTH,
        hold: float = 0.2,
    ) -> None:
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
        check_pace("learn-and-drop", pace, pace_depth)
        check_flag("learn-and-drop", waits=waits)
        if not is_number(hold) or not 0 <= hold <= 1e6:
            raise UserError(f"learn-and-drop: hold is a number from 0 up, not {shown(hold)}")
        self.hold = hold
        self.remaining, self.patience, self.earliest, self.pace = remaining, patience, earliest, pace
        self.pace_depth = pace_depth
        self.waits = waits
        self.peak: list[float] = []
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        self.peak += [0.0] * (seen.stages - len(self.peak))
        self.calm += [0] * (seen.stages - len(self.calm))
        useful = useful_changes(seen)
        for stage in range(seen.dropped, seen.stages):
            now = useful[stage]
            if now is None or not seen.trains(stage):
                continue
            self.peak[stage] = max(self.peak[stage], now)
            self.calm[stage] = self.calm[stage] + 1 if now <= self.remaining * self.peak[stage] else 0
        return resting_prefix(seen, self.earliest, self._leaves(seen), self._most(seen))

    def _leaves(self, seen: Observation) -> Callable[[int], bool]:
        """Of a stage whether it is calm, or has been held back long enough."""
        return lambda stage: self._calm(stage) or seen.progress >= self._latest(stage, seen.stages)

    def _latest(self, stage: int, stages: int) -> float:
        """The share of the run after which a stage (from 0) leaves, calm or not."""
        pace = pace_at_depth(self.pace, self.pace_depth, stages)
        return due_at(stage, stages, pace, self.earliest) + hold_at_depth(self.hold, self.pace_depth, stages)

    def _calm(self, stage: int) -> bool:
        return self.calm[stage] >= self.patience

    def _most(self, seen: Observation) -> int:
        return math.floor(pace_at_depth(self.pace, self.pace_depth, seen.stages) * seen.progress * seen.stages)

    def why(self, seen: Observation) -> list[str]:
        useful, most, now = useful_changes(seen), self._most(seen), percent(seen.progress)
        return why_not_gone(
            seen,
            self.earliest,
            self._leaves(seen),
            lambda stage: self._lively(stage, useful[stage]) + self._at_the_latest(stage, seen.stages),
            resting="calm",
            most=most,
            limit=f"at most {most} of {seen.stages} stages may be gone after {now} of the run "
            f"(pace {pace_at_depth(self.pace, self.pace_depth, seen.stages):.3g})",
        )

    def _lively(self, stage: int, now: float | None) -> str:
        """Why a stage isn't calm whose useful change is ``now``."""
        if now is None:
            return (
                "no score at this check" if self.peak[stage] else f"no score yet: {CHECKS_TO_SCORE} checks are needed"
            )
        if not math.isfinite(now):
            return "its score is not a number"
        share = now / self.peak[stage] if self.peak[stage] else 0.0
        said = f"useful change at {share:.3g} of its peak; stops at {self.remaining:g} or less"
        return said + in_a_row(self.patience, self.calm[stage])

    def _at_the_latest(self, stage: int, stages: int) -> str:
        latest = self._latest(stage, stages)
        return f"; leaves after {percent(latest)} of the run at the latest" if latest < 1 and stage < stages - 1 else ""

    def state_dict(self) -> dict[str, Any]:
        return {"peak": list(self.peak), "calm": list(self.calm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.peak, self.calm = list(state["peak"]), list(state["calm"])


class Paced(NeverDrop):
    """Lets stages go at a steady pace: a timetable in shares of the run, which looks at no score.

    After a share p of the run floor(``pace`` x p x stages) leading stages are gone, none before ``earliest`` and never the
    last one: with a pace of 1.5 half of them after a third of the run, all but the last after two thirds. Networks of more
    than ``pace_depth`` stages go in proportion faster (``pace_at_depth``). Of the stages
    that are due the engine takes those that it pays to drop. In streams they leave at once, or with ``waits`` when their
    chunk is over: at once was 2.8 times cheaper than training less at equal accuracy, and waiting 2.2 times (a narrow
    VGG-11, five chunks of 400 images, two seeds).
    """

    def __init__(
        self, pace: float = 1.5, earliest: float = 0.2, waits: bool = False, pace_depth: int = PACE_DEPTH
    ) -> None:
        check_pace("paced", pace, pace_depth)
        check_share("paced", earliest=earliest)
        check_flag("paced", waits=waits)
        self.pace, self.earliest, self.waits, self.pace_depth = pace, earliest, waits, pace_depth

    def pace_of(self, stages: int) -> float:
        """The pace for a network of so many stages."""
        return pace_at_depth(self.pace, self.pace_depth, stages)

    def stopped(self, seen: Observation) -> int:
        if seen.progress < self.earliest:
            return seen.dropped
        # A hair more than the product, so that a share of the run that is reached in exact arithmetic is reached here.
        due = math.floor(self.pace_of(seen.stages) * seen.progress * seen.stages + 1e-9)
        return max(seen.dropped, min(due, seen.stages - 1))

    def leaves(self, stage: int, stages: int) -> float:
        """The share of the run after which a stage (from 0) of so many is gone; infinite where it stays to the end."""
        at = due_at(stage, stages, self.pace_of(stages), self.earliest)
        return at if at <= 1 and stage < stages - 1 else math.inf

    def why(self, seen: Observation) -> list[str]:
        def reason(stage: int) -> str:
            at = self.leaves(stage, seen.stages)
            if at == math.inf:
                return f"stays to the end at a pace of {self.pace_of(seen.stages):.3g}"
            return f"leaves after {percent(at)} of the run, now {percent(seen.progress)}"

        return reasons(seen, self.stopped(seen), reason)


class FixedSchedule(NeverDrop):
    """Drops at fixed shares of the run: ``drops`` is a list of (progress, stages or share of the stages).

    The default lets a quarter of the stages go at 30 %, half at 50 % and three quarters at 70 % of the run. With
    ``cheapest`` the engine takes the cut that pays best up to the scheduled one, by the cost table, instead of that
    very one: a wide activation may cost more to read than the stages behind it cost to run. With ``waits`` a stage that is
    due leaves when its chunk is over, where data arrive in chunks.
    """

    def __init__(
        self,
        drops: Sequence[Sequence[float]] = ((0.3, 0.25), (0.5, 0.5), (0.7, 0.75)),
        cheapest: bool = False,
        waits: bool = True,
    ) -> None:
        try:
            self.drops = sorted((float(at), cut) for at, cut in drops)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"schedule: drops is a list of [progress, stages] pairs, not {shown(drops)}") from None
        if not all(0 <= at < 1 and is_number(cut) and 0 <= cut < math.inf for at, cut in self.drops):
            raise UserError(f"schedule: progress lies in [0, 1) and stages from 0 up, not {shown(drops)}")
        check_flag("schedule", cheapest=cheapest, waits=waits)
        self.exact, self.waits = not cheapest, waits

    def _planned(self, stages: int) -> list[tuple[float, int]]:
        counts = [(at, cut if isinstance(cut, int) else math.floor(min(cut, 1.0) * stages)) for at, cut in self.drops]
        return [(at, min(count, stages - 1)) for at, count in counts]

    def stopped(self, seen: Observation) -> int:
        due = (count for at, count in self._planned(seen.stages) if seen.progress >= at)
        return max([seen.dropped, *due])

    def why(self, seen: Observation) -> list[str]:
        def reason(stage: int) -> str:
            leaves = next((at for at, count in self._planned(seen.stages) if count > stage), None)
            if leaves is None:
                return "is not on the schedule"
            return f"leaves after {percent(leaves)} of the run, now {percent(seen.progress)}"

        return reasons(seen, self.stopped(seen), reason)


class Replay(NeverDrop):
    """Repeats the drops of a recorded run: ``events`` is a list of (step, stages dropped[, made at a chunk's end])."""

    exact = True

    def __init__(self, events: Sequence[Sequence[int]] = ()) -> None:
        self.events = [(int(event[0]), int(event[1]), any(event[2:])) for event in events]

    def stopped(self, seen: Observation) -> int:
        due = (cut for at, cut, later in self.events if seen.step > at or (seen.step == at and not later))
        return max([seen.dropped, *due])

    def why(self, seen: Observation) -> list[str]:
        def reason(stage: int) -> str:
            leaves = next(((at, later) for at, cut, later in self.events if cut > stage), None)
            if leaves is None:
                return "stays to the end, as recorded"
            return f"leaves {'when the chunk is over, at' if leaves[1] else 'at'} step {leaves[0]}, as recorded"

        return reasons(seen, self.stopped(seen), reason)

    def at_chunk_end(self, step: int, waiting: int) -> int:
        return max([waiting, *(cut for at, cut, _ in self.events if step >= at)])
