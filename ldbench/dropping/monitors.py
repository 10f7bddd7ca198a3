"""What rules other than ours look at: summed gradients, activations against a snapshot's, scalars that get nowhere.

Each watcher is made only for a policy that asks for it (``Policy.needs``), what it costs counts as training, and its
state is part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ldbench.seeds import sample_order
from ldbench.stages.split import stage_groups

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper
from ldbench.dropping.parameter_state import Levels, OfParameters


class Watcher(Protocol):
    """One kind of measurement."""

    flops: list[int]  # that the last check took itself, per stage
    probed: int  # samples that the last check sent through the network

    def after_step(self) -> None:
        """Called after every optimizer step, gradients still there."""
        ...

    def check(self, progress: float) -> Levels:
        """The figure of each stage; None for dropped ones and where there is none at this check."""
        ...

    def drop(self, cut: int) -> None:
        """The first ``cut`` stages are gone."""
        ...

    def begin_chunk(self) -> None:
        """Other samples can be drawn from now on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer, on a fresh watcher of which ``drop`` was told already."""
        ...


class GradientWatcher(OfParameters):
    """L1 norm per stage of the gradient summed over an interval, the run being divided into ``intervals`` of them.

    Memory: one copy of the live parameters; one addition to each of its elements per step.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], intervals: int) -> None:
        super().__init__(parameters)
        self.intervals, self.done = intervals, 0
        self.tensors = {"sum": self.zeros()}

    @torch.no_grad()
    def after_step(self) -> None:
        pairs = zip(self.live("sum"), self.live_parameters(), strict=True)
        seen = [(total, p.grad) for total, p in pairs if p.grad is not None]
        if seen:
            torch._foreach_add_([total for total, _ in seen], [gradient for _, gradient in seen])

    @torch.no_grad()
    def check(self, progress: float) -> Levels:
        interval = math.floor(progress * self.intervals + 1e-9)
        if interval <= self.done:
            return [None] * len(self.parameters)
        self.done = interval
        totals = self.live("sum")
        norms = self._by_stage(torch._foreach_norm(totals, 1))
        torch._foreach_zero_(totals)
        return norms

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.done = int(state["done"])


class PerturbationWatcher(OfParameters):
    """Share of each stage's scalars whose effective perturbation |E| / A is below ``threshold``.

    E and A are the exponential moving averages, with weight ``memory`` on the past, of a scalar's movement between two
    checks and of its magnitude (Chen et al. 2021, ICDCS). Scalars that never moved count as settled. Memory: three
    copies of the live parameters.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], threshold: float, memory: float) -> None:
        super().__init__(parameters)
        self.threshold, self.memory = threshold, memory
        self.tensors = {"last": self.zeros(), "mean": self.zeros(), "magnitude": self.zeros()}
        for last, p in zip(self.live("last"), self.live_parameters(), strict=True):
            last.copy_(p.detach())

    def after_step(self) -> None:
        """Only the movement between checks counts."""

    @torch.no_grad()
    def check(self, progress: float) -> Levels:
        del progress
        last, mean, magnitude = (self.live(name) for name in ("last", "mean", "magnitude"))
        settled = []
        for p, before, average, size in zip(self.live_parameters(), last, mean, magnitude, strict=True):
            moved = p - before
            average.lerp_(moved, 1 - self.memory)
            size.lerp_(moved.abs_(), 1 - self.memory)
            before.copy_(p)
            settled.append((average.abs() <= self.threshold * size).sum())
        counts = self._by_stage(settled)
        sizes = [max(1, sum(p.numel() for p in stage)) for stage in self.parameters]
        return [None if count is None else count / size for count, size in zip(counts, sizes, strict=True)]


class PlasticityWatcher:
    """Distance of each stage's output from a snapshot's, on a fixed probe batch in evaluation mode.

    The similarity-preserving loss of Tung and Mori 2019 (arXiv:1907.09682): ||G - G'||_F^2 / b^2 with G the b x b matrix of
    inner products of the flattened outputs of b samples, each row divided by its norm. Of the snapshot, which is renewed
    every ``renewal`` checks, only the G of every stage are kept, so that it costs no pass and b^2 numbers per stage.

    Args:
        stages: the network's.
        samples: b.
        renewal: checks between two snapshots.
        source: gives what the first live stage reads, for the probe batch of b samples.
        autocast: gives the context the forward pass runs in.
    """

    def __init__(
        self, stages: nn.Sequential, samples: int, renewal: int, source: Callable[[int], Tensor],
        autocast: Callable[[], Any],
    ) -> None:  # fmt: skip
        self.stages, self.samples, self.renewal = stages, samples, renewal
        self.source, self.autocast = source, autocast
        self.dropped = self.age = 0
        self.reference: list[Tensor | None] = []
        self.flops = [0] * len(stages)
        self.probed = 0

    def after_step(self) -> None:
        """Only activations count."""

    @torch.no_grad()
    def check(self, progress: float) -> Levels:
        del progress
        now = self._similarities()
        distances = [
            None if a is None or b is None else (a - b).square().sum() / len(a) ** 2
            for a, b in zip(now, self.reference or [None] * len(now), strict=True)
        ]
        if not self.reference or self.age + 1 >= self.renewal:
            self.reference, self.age = now, 0
        else:
            self.age += 1
        return [None if distance is None else float(distance) for distance in distances]

    def _similarities(self) -> list[Tensor | None]:
        modes = [(module, module.training) for module in self.stages.modules()]
        found: list[Tensor | None] = [None] * self.dropped
        try:
            for stage in self.stages[self.dropped :]:
                stage.eval()
            x = self.source(self.samples)
            self.probed = len(x)
            for place in range(self.dropped, len(self.stages)):
                with self.autocast():
                    x = self.stages[place](x)
                rows = x.detach().float().flatten(1)
                self.flops[place] = 2 * len(rows) ** 2 * rows.shape[1]
                found.append(nn.functional.normalize(rows @ rows.t()))
        finally:
            for module, training in modes:
                module.training = training
        return found

    def drop(self, cut: int) -> None:
        self.dropped = cut
        self.reference = [None if s < cut else g for s, g in enumerate(self.reference)]
        self.flops[:cut] = [0] * cut

    def begin_chunk(self) -> None:
        """The probe batch is another one: a snapshot of the one before says nothing about it."""
        self.reference, self.age = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"age": self.age, "reference": list(self.reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.age = int(state["age"])
        device = next(self.stages.parameters()).device
        self.reference = [None if g is None else g.to(device) for g in state["reference"]]


def make_watchers(dropper: LayerDropper) -> dict[str, Watcher]:
    """What the dropper's policy needs, by the name of its field in ``Observation``."""
    made: dict[str, Watcher] = {}
    parameters = stage_groups(dropper.stage_parameters)

    def probe(samples: int) -> Tensor:
        active = dropper.active
        return dropper.activations.peek(active[sample_order(len(active), 0, 0)[:samples]])

    for name, settings in dropper.policy.needs.items():
        if name == "gradient":
            made[name] = GradientWatcher(parameters, int(settings["intervals"]))
        elif name == "settled":
            made[name] = PerturbationWatcher(parameters, settings["threshold"], settings["memory"])
        elif name == "plasticity":
            samples, renewal = int(settings["samples"]), int(settings["renewal"])
            made[name] = PlasticityWatcher(dropper.stages, samples, renewal, probe, dropper.autocast)
        elif name not in ("scores", "saving"):
            raise ValueError(f"the policy needs {name!r}, which nothing here measures")
    return made
