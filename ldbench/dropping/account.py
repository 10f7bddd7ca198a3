"""What a run's drops came to: executed FLOPs, seconds, drops, and what went wrong without ending the run."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ldbench.devices import synchronize
from ldbench.dropping.drop import Drop
from ldbench.stages.flops import StageFlops

_log = logging.getLogger(__name__)


@dataclass
class FlopLedger:
    """Adds up what training really executed, per stage, in exact integers.

    Attributes:
        table: FLOPs per sample of each stage; empty where nothing is counted.
        forward, backward: executed so far, per stage.
        building: the part of ``forward`` that made stores and statistics.
        scoring: the part of ``forward`` that checks took.
        shortcuts: FLOPs of stages whose branch is left out.
    """

    table: Sequence[StageFlops] = ()
    forward: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    building: int = 0
    scoring: int = 0
    shortcuts: Sequence[StageFlops] = ()

    @classmethod
    def empty(cls, table: Sequence[StageFlops]) -> FlopLedger:
        """A ledger at zero for these stages."""
        return cls(table, [0] * len(table), [0] * len(table))

    @property
    def total(self) -> int:
        """Forward and backward of all stages."""
        return sum(self.forward) + sum(self.backward)

    def add_step(
        self,
        samples: int,
        dropped: int,
        forward_from: int,
        left_out: AbstractSet[int] = frozenset(),
        frozen: AbstractSet[int] = frozenset(),
        table: Sequence[StageFlops] | None = None,
    ) -> None:
        """A training step of ``samples`` that runs forward from stage ``forward_from`` and backward from ``dropped``.

        Of the stages in ``left_out`` only the shortcut runs. Those in ``frozen`` have no parameter to train: in front
        of all others they run no backward pass at all, behind one that trains they pass the gradient on. ``table``: FLOPs
        per sample where they are others than usual, such as for images of another size.
        """
        first = next((s for s in range(dropped, len(self.table)) if s not in frozen), len(self.table))
        for s in range(forward_from, len(self.table)):
            entry = self.shortcuts[s] if s in left_out else (table or self.table)[s]
            self.forward[s] += samples * entry.forward
            if s >= first:
                own, passed_on = entry.backward_first, entry.backward - entry.backward_first
                self.backward[s] += samples * ((0 if s in frozen else own) + (0 if s == first else passed_on))

    def add_forward(self, samples: int, first: int, last: int) -> None:
        """A forward pass of ``samples`` through stages first..last-1 that is no training step (store, statistics)."""
        for s, entry in enumerate(self.table[:last]):
            if s >= first:
                self.forward[s] += samples * entry.forward
                self.building += samples * entry.forward

    def add_scoring(self, samples: int, first: int, own: Sequence[int]) -> None:
        """A forward pass of ``samples`` from stage ``first`` on for a score, which itself took ``own`` per stage."""
        for s, (entry, flops) in enumerate(zip(self.table, own, strict=False)):
            passed = samples * entry.forward if s >= first else 0
            self.forward[s] += passed + flops
            self.scoring += passed + flops

    def state_dict(self) -> dict[str, Any]:
        """The counts, JSON-ready."""
        return {name: getattr(self, name) for name in ("forward", "backward", "building", "scoring")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        if self.table and state["forward"]:  # else the run did not count until now
            self.forward, self.backward = list(state["forward"]), list(state["backward"])
            self.building, self.scoring = state["building"], state["scoring"]


class Account:
    """What a run's drops came to.

    Args:
        device: waited for where seconds of its work are taken.
        tell: told what went wrong without ending the run.

    Attributes:
        drops: made, in order.
        declined: cuts that were not made, and why: step, cut, reason.
        incidents: what went wrong without ending the run, for people: step, what.
        flops: executed FLOPs.
        building_seconds: making statistics and stores, drops included that found no room.
        scoring_seconds: measuring what the policy goes by.
        reading_seconds: of the host, reading minibatches from the store; on a GPU the time to launch the reads.
        abandoned_seconds: building a store that an exception cut short, and that has not been asked for.
        peak_store_bytes: of the largest store.
    """

    def __init__(self, device: torch.device, tell: Callable[[str], None] = lambda what: None) -> None:
        self.device, self._tell = device, tell
        self.drops: list[Drop] = []
        self.declined: list[dict[str, Any]] = []
        self.incidents: list[dict[str, Any]] = []
        self.flops = FlopLedger()
        self.building_seconds = self.scoring_seconds = self.reading_seconds = self.abandoned_seconds = 0.0
        self.peak_store_bytes = 0

    @contextmanager
    def scoring(self, wait: bool = False) -> Iterator[None]:
        """Count the seconds of this block as scoring; ``wait``: for what the device is still at, before it begins."""
        if wait:
            synchronize(self.device)
        began = time.perf_counter()
        yield
        self.scoring_seconds += time.perf_counter() - began

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the seconds of this block as reading the store."""
        began = time.perf_counter()
        yield
        self.reading_seconds += time.perf_counter() - began

    @contextmanager
    def building(self) -> Iterator[None]:
        """Count the seconds of this block as building, or as abandoned where an exception leaves it."""
        synchronize(self.device)
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            self.abandoned_seconds += time.perf_counter() - began
            raise
        synchronize(self.device)
        self.building_seconds += time.perf_counter() - began

    def take_abandoned_seconds(self) -> float:
        """Seconds lost in stores that were not finished, since this was last asked."""
        lost, self.abandoned_seconds = self.abandoned_seconds, 0.0
        return lost

    def add(self, drop: Drop) -> Drop:
        """A drop was made."""
        self.drops.append(drop)
        self.peak_store_bytes = max(self.peak_store_bytes, drop.store_bytes)
        return drop

    def note(self, step: int, what: str) -> None:
        """Something went wrong that does not end the run, or is not as the user may believe."""
        self.incidents.append({"step": step, "what": what})
        _log.warning("%s", what)
        self._tell(what)

    def note_once(self, step: int, what: str) -> None:
        """``note``, the first time."""
        if all(incident["what"] != what for incident in self.incidents):
            self.note(step, what)

    def decline(self, step: int, cut: int, reason: str) -> None:
        """The cut is not made."""
        self.declined.append({"step": step, "cut": cut, "reason": reason})

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        names = ("building_seconds", "scoring_seconds", "reading_seconds", "peak_store_bytes")
        return {
            "drops": [dataclasses.asdict(drop) for drop in self.drops],
            "declined": list(self.declined),
            "incidents": list(self.incidents),
            "flops": self.flops.state_dict(),
            **{name: getattr(self, name) for name in names},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        self.drops[:] = [Drop(**drop) for drop in state["drops"]]
        self.declined[:], self.incidents[:] = state["declined"], state["incidents"]
        self.flops.load_state_dict(state["flops"])
        for name in ("building_seconds", "scoring_seconds", "reading_seconds", "peak_store_bytes"):
            setattr(self, name, state[name])
