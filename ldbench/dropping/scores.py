"""Layer-change and continuation scores per stage, from the parameters alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.dropping.monitor import Levels, Monitor
from ldbench.kernels import DeltaNormPlan, delta_norms

# Root mean square below which a stage counts as zero-initialised: no usual initialisation is that small.
RMS_FLOOR = 1e-3


@dataclass(frozen=True)
class Scores:
    """Scores at one check, one entry per stage; None for dropped stages and while there is too little history.

    Attributes:
        change: ||theta(t) - theta(t-1)|| / ||theta(t-1)|| per unit of learning rate summed since the last check.
        continuation: k = max(0, (r - 1/sqrt(m)) / (1 - 1/sqrt(m))) with the directness r = ||net movement|| / path
            length over the last m checks: 1 for a straight path, 0 for a random walk (which has r near 1/sqrt(m)).
    """

    change: list[float | None]
    continuation: list[float | None]


def continuation_score(net: float, path: float, window: int) -> float:
    """Directness of a path of ``window`` steps, in [0, 1]: a random walk gives 0, and so does a path of length 0."""
    if path <= 0:
        return 0.0
    walk = 1 / math.sqrt(window)
    return min(1.0, max(0.0, (net / path - walk) / (1 - walk)))


class ScoreTracker(Monitor):
    """Keeps the last ``window`` parameter snapshots of the live stages and scores them at every check.

    Memory: ``window`` copies of the live parameters. One check reads parameters and two snapshots and writes one; it
    synchronises with the device once, to bring 4 numbers per stage to the host.

    Args:
        parameters: the learnable parameters of each stage; a parameter shared by stages counts for each of them.
        window: m, checks over which directness is taken, at least 2.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], window: int = 4) -> None:
        if window < 2:
            raise ValueError(f"window must be at least 2, not {window}")
        super().__init__(len(parameters))
        self.window, self.stages = window, len(parameters)
        self._parameters = [list(stage) for stage in parameters]
        self._ring: list[list[Tensor]] = []  # oldest first, each a flat list over the live stages
        self._plans: dict[int, DeltaNormPlan] = {}  # by identity of the snapshot list
        self.steps: list[list[float]] = []  # step norms of the last checks, oldest first, one per stage
        self._remember()

    def _live(self) -> tuple[list[Tensor], list[int]]:
        flat = [(p, s) for s in range(self.dropped, self.stages) for p in self._parameters[s]]
        return [p for p, _ in flat], [s for _, s in flat]

    def _remember(self) -> None:
        tensors, layers = self._live()
        snapshot = [tensor.detach().clone() for tensor in tensors]
        self._ring.append(snapshot)
        self._plans[id(snapshot)] = DeltaNormPlan(tensors, snapshot, layers, self.stages)

    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
        return vars(self.score(summed_rate)).copy()

    @torch.no_grad()
    def score(self, summed_rate: float) -> Scores:
        """Scores against the previous check. ``summed_rate`` is the learning rate summed over the steps since then."""
        newest, oldest = self._ring[-1], self._ring[0]
        full = len(self._ring) == self.window
        last = delta_norms(self._plan(newest), update=False)
        if full:  # the oldest snapshot gives the net movement and takes the new parameters in the same pass
            both = torch.stack([last, delta_norms(self._plan(oldest), update=True)]).double().cpu().tolist()
            self._ring.append(self._ring.pop(0))
        else:
            both = [last.double().cpu().tolist()] * 2
            self._remember()
        self.steps = [*self.steps[-(self.window - 1) :], [row[0] for row in both[0]]]
        change: list[float | None] = [None] * self.stages
        ahead: list[float | None] = [None] * self.stages
        for s in range(self.dropped, self.stages):
            moved, norm = both[0][s]
            floor = RMS_FLOOR * math.sqrt(sum(p.numel() for p in self._parameters[s]))
            change[s] = moved / max(norm, floor) / max(summed_rate, 1e-12)
            if full:
                ahead[s] = continuation_score(both[1][s][0], sum(step[s] for step in self.steps), self.window)
        return Scores(change, ahead)

    def _plan(self, snapshot: list[Tensor]) -> DeltaNormPlan:
        return self._plans[id(snapshot)]

    def drop(self, cut: int) -> None:
        """Forget the first ``cut`` stages: their snapshots are freed, their scores are None from now on."""
        gone = sum(len(stage) for stage in self._parameters[self.dropped : cut])
        super().drop(cut)
        self._plans = {}
        self._ring = [snapshot[gone:] for snapshot in self._ring]
        tensors, layers = self._live()
        for snapshot in self._ring:
            self._plans[id(snapshot)] = DeltaNormPlan(tensors, snapshot, layers, self.stages)

    def state_dict(self) -> dict[str, Any]:
        """Snapshots (tensors) and step norms; enough to go on with the same bits."""
        return {"dropped": self.dropped, "steps": self.steps, "ring": [list(snapshot) for snapshot in self._ring]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.dropped, self.steps = int(state["dropped"]), [list(step) for step in state["steps"]]
        tensors, layers = self._live()
        self._ring = [
            # in the parameter's own memory format: sums are taken in the order of memory
            [torch.empty_like(now, requires_grad=False).copy_(saved) for saved, now in zip(s, tensors, strict=True)]
            for s in state["ring"]
        ]
        self._plans = {id(s): DeltaNormPlan(tensors, s, layers, self.stages) for s in self._ring}
