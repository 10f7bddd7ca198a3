"""When to drop: pure decisions from scores and progress, without torch, resumable through ``state_dict``.

A policy never touches the network. It is shown an ``Observation`` and answers how many leading stages have stopped; what
is then skipped (backward only, or forward too) is the execution's business, see ``ldbench.policies.registry``. Rules taken from
other papers are in ``ldbench.policies.baselines``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ldbench.errors import UserError, shown
from ldbench.policies.base import NeverDrop, Observation, is_number


class Dropping(NeverDrop):
    """Base of this project's rules: what they do about a drop, besides deciding when.

    Args:
        rule: name of the rule, for messages.
        anneal: share of the run over which a stage's own learning rate goes to zero along half a cosine, on top of the
            recipe's schedule, before it is dropped. A stage cut off at a high rate keeps the noise of its last steps for
            good; FreezeOut owes its accuracy to rates that have gone to zero, but pays with rates scaled for every stage.
        average: horizon, as a share of the run, of a moving average of the weights; a stage is left with its average, and
            its BatchNorm statistics are re-estimated for it. Averages of weights lie nearer the minimum than the last ones
            (Izmailov et al. 2018, arXiv:1803.05407), which is what an annealed rate would have reached, without the steps.
        spend: share of the time and FLOPs that a drop saves, whichever is less, spent on more steps of the live stages, the
            rest of the schedule stretched over them, to twice its length at most; 1 trains about as long as full training. A drop pays if the stages
            that stay learn more from those steps than the dropped ones would have.

    Attributes:
        leaving: progress at which each leading stage began to leave; final.
    """

    relative_rates = True
    refreshes = True
    waits = True

    def __init__(self, rule: str, anneal: float, average: float, spend: float) -> None:
        for name, value in (("anneal", anneal), ("average", average), ("spend", spend)):
            if not is_number(value) or not 0 <= value <= 1:
                raise UserError(f"{rule}: {name} is a number in [0, 1], not {shown(value)}")
        self.anneal, self.average, self.spend = anneal, average, spend
        self.leaving: list[float] = []

    def leave(self, cut: int, seen: Observation) -> int:
        """Stages that may be dropped now, when the rule says that ``cut`` have stopped: those whose rate has gone to zero."""
        if not self.anneal:
            return cut
        self.leaving += [seen.progress] * (cut - len(self.leaving))
        gone = sum(seen.progress >= began + self.anneal for began in self.leaving)
        return max(seen.dropped, gone)

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        if not self.anneal:
            return None
        return [half_cosine(progress, began, self.anneal) for began in self.leaving] + [1.0] * (
            stages - len(self.leaving)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"leaving": list(self.leaving)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.leaving = list(state["leaving"])


def half_cosine(progress: float, began: float, length: float) -> float:
    """1 until ``began``, 0 from ``began + length`` on."""
    return 0.5 * (1 + math.cos(math.pi * min(max((progress - began) / length, 0.0), 1.0)))


def useful_changes(seen: Observation) -> list[float | None]:
    """u_s = c_s x k_s per stage, its layer-change score times its continuation score; None where either is missing."""
    pairs = zip(seen.change, seen.continuation, strict=True)
    return [None if change is None or ahead is None else change * ahead for change, ahead in pairs]


class LearnAndDrop(Dropping):
    """Stops a stage when little of its movement still leads anywhere.

    The useful change of stage s is u_s = c_s x k_s, its layer-change score times its continuation score: movement per unit
    of learning rate, counted as far as it is directed. Both factors are needed. Under BatchNorm and weight decay c alone
    settles at a level that follows the learning rate, not learning; k alone rises again at the end of an annealed run,
    when hardly anything moves any more.

    A stage is calm at a check when u_s is at most ``remaining`` times the highest u_s it has had; it has stopped after
    ``patience`` calm checks in a row. Only a prefix of stopped stages may leave, none before ``earliest`` of the run, and
    after a share p of the run at most ``pace`` x p of all stages: scores of neighbouring stages fall together, and what
    leaves all at once leaves too early. ``anneal``, ``average`` and ``spend``: see ``Dropping``.
    """

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({"scores": {}})

    def __init__(
        self, remaining: float = 0.6, patience: int = 2, earliest: float = 0.2, pace: float = 1.5,
        anneal: float = 0.0, average: float = 0.0, spend: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__("learn-and-drop", anneal, average, spend)
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
        if not is_number(pace) or not 0 <= pace <= 1e6:
            raise UserError(f"learn-and-drop: pace is a number from 0 up, not {shown(pace)}")
        self.remaining, self.patience, self.earliest, self.pace = remaining, patience, earliest, pace
        self.peak: list[float] = []
        self.calm: list[int] = []

    def stopped(self, seen: Observation) -> int:
        self.peak += [0.0] * (seen.stages - len(self.peak))
        self.calm += [0] * (seen.stages - len(self.calm))
        useful = useful_changes(seen)
        for stage in range(seen.dropped, seen.stages):
            now = useful[stage]
            if now is None:
                continue
            self.peak[stage] = max(self.peak[stage], now)
            self.calm[stage] = self.calm[stage] + 1 if now <= self.remaining * self.peak[stage] else 0
        cut = max(seen.dropped, len(self.leaving))
        most = min(seen.stages - 1, math.floor(self.pace * seen.progress * seen.stages))
        if seen.progress >= self.earliest:
            while cut < most and self.calm[cut] >= self.patience:
                cut += 1
        return self.leave(cut, seen)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "peak": list(self.peak), "calm": list(self.calm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.peak, self.calm = list(state["peak"]), list(state["calm"])


class CostBenefit(Dropping):
    """Drops the prefix that costs more than it still learns.

    Share of the learning that a cut gives up: the useful change (u_s, see ``LearnAndDrop``) of the stages before it over
    that of all live stages. Share of the cost that it saves: what the cost table says that a step there takes less. The
    cut with the largest ``price`` x saved share - share given up is taken once it or a deeper one has been worth it at
    ``patience`` checks in a row. The other rules compare a stage with its own past, which says nothing about how
    much of the network's learning it does; the first stages of a CNN are expensive and soon do little of it.
    """

    needs: Mapping[str, Mapping[str, float]] = MappingProxyType({"scores": {}, "saving": {}})

    def __init__(
        self, price: float = 0.5, patience: int = 2, earliest: float = 0.2, anneal: float = 0.0, average: float = 0.0,
        spend: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__("cost-benefit", anneal, average, spend)
        if not is_number(price) or not 0 <= price <= 1e6 or not is_number(earliest) or not 0 <= earliest <= 1:
            raise UserError("cost-benefit: price is a number from 0 up, earliest lies in [0, 1]")
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise UserError(f"cost-benefit: patience is a whole number from 1 up, not {shown(patience)}")
        self.price, self.patience, self.earliest = price, patience, earliest
        self.recent: list[int] = []

    def stopped(self, seen: Observation) -> int:
        first = max(seen.dropped, len(self.leaving))
        self.recent = [*self.recent, self._best(seen, first)][-self.patience :]
        lasting = min(self.recent) if len(self.recent) >= self.patience and seen.progress >= self.earliest else first
        return self.leave(max(first, lasting), seen)

    def _best(self, seen: Observation, first: int) -> int:
        useful = [value for value in useful_changes(seen)[first:] if value is not None and math.isfinite(value)]
        if len(useful) < seen.stages - first or sum(useful) <= 0:
            return first
        whole, best, gain = sum(useful), first, 0.0
        for cut in range(first + 1, seen.stages):
            balance = self.price * (seen.saving[cut] - seen.saving[first]) - sum(useful[: cut - first]) / whole
            if balance > gain:
                best, gain = cut, balance
        return best

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent = list(state["recent"])


class FixedSchedule(Dropping):
    """Drops at fixed shares of the run: ``drops`` is a list of (progress, stages or share of the stages).

    The default lets a quarter of the stages go at 30 %, half at 50 % and three quarters at 70 % of the run. With ``cheapest``
    the engine takes the cut that pays best up to the scheduled one, by the cost table, instead of that very one: a wide
    activation may cost more to read than the stages behind it cost to run. ``anneal``, ``average`` and ``spend``: see
    ``Dropping``; rates go to zero at the scheduled times, so that a large ``anneal`` makes FreezeOut of it with times
    chosen freely.
    """

    def __init__(
        self, drops: Sequence[Sequence[float]] = ((0.3, 0.25), (0.5, 0.5), (0.7, 0.75)), cheapest: bool = False,
        anneal: float = 0.0, average: float = 0.0, spend: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__("schedule", anneal, average, spend)
        try:
            self.drops = sorted((float(at), cut) for at, cut in drops)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"schedule: drops is a list of [progress, stages] pairs, not {shown(drops)}") from None
        if not all(0 <= at < 1 and is_number(cut) and 0 <= cut < math.inf for at, cut in self.drops):
            raise UserError(f"schedule: progress lies in [0, 1) and stages from 0 up, not {shown(drops)}")
        if not isinstance(cheapest, bool):
            raise UserError(f"schedule: cheapest is true or false, not {shown(cheapest)}")
        self.exact = not cheapest

    def _planned(self, progress: float, stages: int) -> int:
        counts = [cut if isinstance(cut, int) else math.floor(cut * stages) for at, cut in self.drops if progress >= at]
        return min(max(counts, default=0), stages - 1)

    def stopped(self, seen: Observation) -> int:
        return max(seen.dropped, self._planned(seen.progress, seen.stages))

    def lr_scales(self, progress: float, stages: int) -> list[float] | None:
        if not self.anneal:
            return None
        ends = [
            next((at for at, _ in self.drops if self._planned(at, stages) > stage), math.inf) for stage in range(stages)
        ]
        return [1.0 if end == math.inf else half_cosine(progress, end - self.anneal, self.anneal) for end in ends]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


class Replay(NeverDrop):
    """Repeats the drops of a recorded run: ``events`` is a list of (step, stages dropped[, made at a chunk's end])."""

    exact = True
    refreshes = True

    def __init__(self, events: Sequence[Sequence[int]] = ()) -> None:
        self.events = [(int(event[0]), int(event[1]), any(event[2:])) for event in events]

    def stopped(self, seen: Observation) -> int:
        due = (cut for at, cut, later in self.events if seen.step > at or (seen.step == at and not later))
        return max([seen.dropped, *due])

    def at_chunk_end(self, step: int, waiting: int) -> int:
        return max([waiting, *(cut for at, cut, _ in self.events if step >= at)])
