"""What a step costs at every cut of this network, as its drops are weighed by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any, Literal

from ldbench.costs.break_even import CutChoice, StorePlan, best_cut, in_seconds, price
from ldbench.costs.by_flops import in_flops
from ldbench.costs.table import CostTable
from ldbench.errors import one_line
from ldbench.store.budget import StoreBudget

DecideBy = Literal["flops", "time"]


class Unmeasurable(Exception):
    """The cost table could not be measured."""


class CostModel:
    """The cost table, measured when it is first needed, and the bytes a store may take, settled when they are first
    asked for.

    Args:
        table: measured before; None: ``measure`` makes it.
        measure: measures the table.
        budget: allowed per tier, or a function that finds out.
        count: makes the table in FLOPs that cuts are chosen by; None: they are chosen by time.
    """

    def __init__(
        self,
        table: CostTable | None,
        measure: Callable[[], CostTable],
        budget: StoreBudget | Callable[[], StoreBudget],
        count: Callable[[], CostTable] | None = None,
    ) -> None:
        self._table, self.measure, self._budget, self.count = table, measure, budget, count
        self._counted: CostTable | None = None
        self._failure: Unmeasurable | None = None

    @property
    def known(self) -> CostTable | None:
        """The table, if there is one yet."""
        return self._table

    @property
    def table(self) -> CostTable:
        """The table, measured now where there is none yet. Raises ``Unmeasurable``, and tries it once."""
        if self._failure is not None:
            raise self._failure
        if self._table is None:
            try:
                self._table = self.measure()
            except Exception as error:  # the network's, the loss's, the data's, the device's
                self._failure = Unmeasurable(one_line(error, kind=True))
                raise self._failure from error
        return self._table

    @property
    def counted(self) -> CostTable:
        """The table in FLOPs. Raises ``Unmeasurable`` where they cannot be counted."""
        assert self.count is not None, "cuts are chosen by FLOPs"
        if self._counted is None:
            try:
                self._counted = self.count()
            except Exception as error:  # the network's
                raise Unmeasurable(one_line(error, kind=True)) from error
        return self._counted

    @property
    def budget(self) -> StoreBudget:
        """Bytes a store may take in each tier."""
        if not isinstance(self._budget, StoreBudget):
            self._budget = self._budget()
        return self._budget

    def choose_store(
        self, current: int, stopped: int, remaining: int, obstacles: Sequence[str], exact: bool, plan: StorePlan
    ) -> CutChoice:
        """The cut that the break-even rule takes, up to ``stopped``, see ``best_cut``.

        Args:
            obstacles: per cut why it cannot be made, "" where it can.
        """
        legal = [not obstacle for obstacle in obstacles]
        table, show = (self.table, in_seconds) if self.count is None else (self.counted, in_flops)
        choice = best_cut(table, plan, current, stopped, remaining, legal, exact, dict(enumerate(obstacles)), show)
        if self.count is None or choice.cut == current or choice.tier is None:
            return choice
        timed = self._table
        if timed is None or choice.tier not in timed.tiers:
            return replace(choice, saving_seconds=None, build_seconds=0.0)
        per_step, build = price(timed, plan, current, choice.cut, choice.tier)
        return replace(choice, saving_seconds=remaining * per_step - build, build_seconds=build)

    def choose_freeze(self, current: int, stopped: int, remaining: int, obstacles: Sequence[str]) -> CutChoice:
        """The last legal cut up to ``stopped``: skipping backward passes costs nothing that would have to be weighed.

        What it saves is told where the table is known; nothing is measured for that.
        """
        cut = max((c for c in range(current, stopped + 1) if not obstacles[c]), default=current)
        saving = 0.0
        if self._table is not None:
            saving = remaining * (frozen_step_seconds(self._table, current) - frozen_step_seconds(self._table, cut))
        return CutChoice(cut, "frozen", saving, tier=None)

    def no_room_for(self, size: int) -> None:
        """A store of ``size`` bytes fitted nowhere: none of that size is planned again."""
        self._budget = StoreBudget(*(min(free, size - 1) for free in astuple(self.budget)))

    def state_dict(self) -> dict[str, Any]:
        """Table and budget as far as they are known, JSON-ready: what was decided by goes on deciding.

        What is free on a machine differs from day to day, and with it the cuts that fit.
        """
        return {
            "table": None if self._table is None else self._table.to_dict(),
            "budget": asdict(self._budget) if isinstance(self._budget, StoreBudget) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        if state["table"] is not None:
            self._table = CostTable.from_dict(state["table"])
        if state["budget"] is not None:
            self._budget = StoreBudget(**state["budget"])


def frozen_step_seconds(table: CostTable, cut: int) -> float:
    """Seconds of a step with the first ``cut`` stages frozen: they still run forward, in evaluation mode."""
    return table.step_seconds(cut) + sum(table.inference[:cut])
