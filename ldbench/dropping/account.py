"""Executed FLOPs, per stage, in exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ldbench.stages.flops import StageFlops


@dataclass
class FlopLedger:
    """Adds up what training really executed, per stage, in exact integers."""

    table: Sequence[StageFlops]
    forward: list[int]
    backward: list[int]
    building: int = 0
    scoring: int = 0
    shortcuts: Sequence[StageFlops] = ()  # of stages whose branch is left out

    @classmethod
    def empty(cls, table: Sequence[StageFlops]) -> FlopLedger:
        """A ledger at zero for these stages."""
        return cls(table, [0] * len(table), [0] * len(table))

    def add_step(self, samples: int, dropped: int, forward_from: int, left_out: AbstractSet[int] = frozenset()) -> None:
        """A training step of ``samples`` that runs forward from stage ``forward_from`` and backward from ``dropped``.

        Of the stages in ``left_out`` only the shortcut runs.
        """
        for s in range(forward_from, len(self.table)):
            entry = self.shortcuts[s] if s in left_out else self.table[s]
            self.forward[s] += samples * entry.forward
            if s >= dropped:
                self.backward[s] += samples * (entry.backward_first if s == dropped else entry.backward)

    def add_forward(self, samples: int, first: int, last: int) -> None:
        """A forward pass of ``samples`` through stages first..last-1 that is no training step (store, statistics)."""
        for s in range(first, last):
            self.forward[s] += samples * self.table[s].forward
            self.building += samples * self.table[s].forward

    def add_scoring(self, samples: int, first: int, own: Sequence[int]) -> None:
        """A forward pass of ``samples`` from stage ``first`` to the end for a score, which itself took ``own`` per stage."""
        for s, flops in enumerate(own):
            passed = samples * self.table[s].forward if s >= first else 0
            self.forward[s] += passed + flops
            self.scoring += passed + flops
