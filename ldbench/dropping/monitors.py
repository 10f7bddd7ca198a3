"""What policies go by: gradients, outputs against a snapshot's, scalars that get nowhere, and whatever else is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.dropping.monitor import Levels, Monitor, ParameterMonitor
from ldbench.dropping.scores import ScoreTracker
from ldbench.dropping.similarity import CkaMonitor
from ldbench.stages.split import stage_groups, stage_parameters
from ldbench.stages.train_mode import evaluating
from ldbench.store.fill import Autocast

Probe = Callable[[int, int], Tensor]  # samples and cut -> what the stages from the cut on read


class GradientMonitor(ParameterMonitor):
    """L1 norm per stage of the gradient summed over an interval, the run being divided into ``intervals`` of them.

    Memory: one copy of the live parameters; one addition to each of its elements per step.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], intervals: int) -> None:
        super().__init__(parameters)
        self.intervals, self.done = intervals, 0
        self.tensors = {"sum": self.zeros()}

    @torch.no_grad()
    def see_gradients(self, scale: Any) -> None:
        pairs = zip(self.live("sum"), self.live_parameters(), strict=True)
        seen = [(total, p.grad) for total, p in pairs if p.grad is not None]
        if not seen:
            return
        gradients = [gradient.coalesce().to_dense() if gradient.is_sparse else gradient for _, gradient in seen]
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        torch._foreach_add_([total for total, _ in seen], gradients)

    @torch.no_grad()
    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
        interval = math.floor(progress * self.intervals + 1e-9)
        if interval <= self.done:
            return {"gradient": [None] * len(self.parameters)}
        self.done = interval
        totals = self.live("sum")
        norms = self._by_stage(torch._foreach_norm(totals, 1))
        torch._foreach_zero_(totals)
        return {"gradient": norms}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.done = int(state["done"])


class PerturbationMonitor(ParameterMonitor):
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

    @torch.no_grad()
    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
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
        shares = [None if count is None else count / size for count, size in zip(counts, sizes, strict=True)]
        return {"settled": shares}


class PlasticityMonitor(Monitor):
    """Distance of each stage's output from a snapshot's, on a fixed probe batch in evaluation mode.

    The similarity-preserving loss of Tung and Mori 2019 (arXiv:1907.09682): ||G - G'||_F^2 / b^2 with G the b x b
    matrix of inner products of the flattened outputs of b samples, each row divided by its norm. Of the snapshot,
    which is renewed every ``renewal`` checks, only the G of every stage are kept, so that it costs no pass and b^2
    numbers per stage.

    Args:
        stages: the network's.
        samples: b.
        renewal: checks between two snapshots.
        source: gives what the stages from a cut on read, for the probe batch of b samples.
        autocast: gives the context the forward pass runs in.
    """

    def __init__(self, stages: nn.Sequential, samples: int, renewal: int, source: Probe, autocast: Autocast) -> None:
        super().__init__(len(stages))
        self.stages, self.samples, self.renewal = stages, samples, renewal
        self.source, self.autocast = source, autocast
        self.age = 0
        self.reference: list[Tensor | None] = []

    @torch.no_grad()
    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
        now = self._similarities()
        distances = [
            None if a is None or b is None else (a - b).square().sum() / len(a) ** 2
            for a, b in zip(now, self.reference or [None] * len(now), strict=True)
        ]
        if not self.reference or self.age + 1 >= self.renewal:
            self.reference, self.age = now, 0
        else:
            self.age += 1
        return {"plasticity": [None if distance is None else float(distance) for distance in distances]}

    def _similarities(self) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * self.dropped
        with evaluating(self.stages):
            x = self.source(self.samples, self.dropped)
            self.probed = len(x)
            for place in range(self.dropped, len(self.stages)):
                with self.autocast():
                    x = self.stages[place](x)
                rows = x.detach().float().flatten(1)
                self.flops[place] = 2 * len(rows) ** 2 * rows.shape[1]
                found.append(nn.functional.normalize(rows @ rows.t()))
        return found

    def drop(self, cut: int) -> None:
        super().drop(cut)
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


class Monitors:
    """Everything that a policy needs measured.

    Args:
        stages: the network's.
        needs: name of a measurement -> its settings, see ``Policy.needs``.
        probe: gives what the stages from a cut on read, for a probe batch of so many samples.
        autocast: gives the context the forward pass runs in.

    Attributes:
        log: one entry per check, in order: step, stages dropped, and the figures by name.

    Raises:
        ValueError: something is needed that nothing here measures.
    """

    def __init__(
        self, stages: nn.Sequential, needs: Mapping[str, Mapping[str, float]], probe: Probe, autocast: Autocast
    ) -> None:
        parameters = stage_parameters(stages)
        self._monitors: dict[str, Monitor] = {}
        for name, settings in needs.items():
            if name == "scores":
                self._monitors[name] = ScoreTracker(parameters)
            elif name == "gradient":
                self._monitors[name] = GradientMonitor(stage_groups(parameters), int(settings["intervals"]))
            elif name == "settled":
                threshold, memory = settings["threshold"], settings["memory"]
                self._monitors[name] = PerturbationMonitor(stage_groups(parameters), threshold, memory)
            elif name == "plasticity":
                samples, renewal = int(settings["samples"]), int(settings["renewal"])
                self._monitors[name] = PlasticityMonitor(stages, samples, renewal, probe, autocast)
            elif name == "cka":
                self._monitors[name] = CkaMonitor(stages, int(settings["samples"]), probe, autocast)
            else:
                raise ValueError(f"the policy needs {name!r}, which nothing here measures")
        self._summed_rate = 0.0
        self.log: list[dict[str, Any]] = []

    def see_gradients(self, scale: Any = None) -> None:
        """The optimizer steps now, or has just stepped: its gradients are there, multiplied by ``scale``."""
        for monitor in self._monitors.values():
            monitor.see_gradients(scale)

    def after_step(self, rate: float) -> None:
        """An optimizer step was made at this learning rate."""
        self._summed_rate += rate

    def check(self, progress: float) -> dict[str, Levels]:
        """The figures of each stage, by their names in ``Observation``."""
        levels: dict[str, Levels] = {}
        for monitor in self._monitors.values():
            levels |= monitor.check(progress, self._summed_rate)
        self._summed_rate = 0.0
        return levels

    def passes(self) -> list[tuple[int, list[int]]]:
        """Of the last check: samples sent through the network, and further FLOPs per stage, of each measurement."""
        return [(monitor.probed, monitor.flops) for monitor in self._monitors.values()]

    def drop(self, cut: int) -> None:
        """The first ``cut`` stages are gone."""
        for monitor in self._monitors.values():
            monitor.drop(cut)

    def begin_chunk(self) -> None:
        """Other samples can be drawn from now on."""
        for monitor in self._monitors.values():
            monitor.begin_chunk()

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors."""
        monitors = {name: monitor.state_dict() for name, monitor in self._monitors.items()}
        return {"summed_rate": self._summed_rate, "log": list(self.log), "monitors": monitors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer, on fresh monitors of which ``drop`` was told already."""
        self._summed_rate, self.log[:] = state["summed_rate"], state["log"]
        for name, monitor in self._monitors.items():
            monitor.load_state_dict(state["monitors"][name])
