"""Measures a cost table: what a step costs at every cut, and what a store does."""

from __future__ import annotations

import functools
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.table import CostTable, TierCost
from ldbench.devices import synchronize
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.train_mode import evaluating
from ldbench.stages.undisturbed import undisturbed
from ldbench.store.activation_store import ActivationStore
from ldbench.store.budget import Tier

MOST_STEPS = 16  # cuts whose whole step is timed; between them the parts' own times interpolate
_PROBE_BYTES = 2**26  # well past the caches, still quick to write
_PROBE_ROWS = (256, 65_536)  # bytes per row: overhead and rate are told apart by two sizes


class _Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.device, self.laps = device, dict[tuple[str, int], list[float]]()

    def time(self, key: str, index: int, work: Callable[[], Any]) -> Any:
        synchronize(self.device)
        start = time.perf_counter()
        result = work()
        synchronize(self.device)
        self.laps.setdefault((key, index), []).append(time.perf_counter() - start)
        return result

    def typical(self, key: str, index: int = 0) -> float:
        """The median lap."""
        return statistics.median(self.laps[key, index])

    def relative(self, key: str, index: int, reference: int = 0) -> float:
        """Typical lap of ``reference`` times the median ratio to it within a round.

        A slow spell of a shared machine lengthens the laps of a round alike, so that their ratios outlast it.
        """
        pairs = zip(self.laps[key, index], self.laps[key, reference], strict=True)
        return self.typical(key, reference) * statistics.median(a / b for a, b in pairs)


Criterion = Callable[[Tensor, Any], Tensor]


def measure_costs(
    stages: nn.Sequential,
    names: Sequence[str],
    fetch: Callable[[], tuple[Tensor, Any]],
    optimizer: torch.optim.Optimizer,
    criterion: Criterion | None,
    *,
    device: torch.device,
    folder: Path,
    cache_dtype: str = "fp32",
    autocast: Callable[[], AbstractContextManager[Any]],
    rounds: int = 9,
    budget_seconds: float = 20.0,
    machine: dict[str, Any] | None = None,
) -> CostTable:
    """Measure a cost table on the stages themselves, which nothing is left of: no weight, gradient, statistic, flag or
    random state changes, and no copy of a module is made. Parameters that need no gradient are timed as that.

    Every round times each part once and a whole step from each cut; medians over the rounds are kept, those of whole
    steps relative to the full one of the same round. After one round to warm up at least 3 are made, then as many as
    fit ``budget_seconds``, at most ``rounds``.

    Args:
        fetch: gives a minibatch of images and targets as training would read it.
        optimizer: training's optimizer; a stand-in of its kind makes the steps, see ``StandIn``.
        criterion: of the output and the targets; None: the mean of the output's squares stands for the loss.
    """
    began = time.perf_counter()
    with undisturbed(stages, device):
        for stage in stages:
            if any(p.requires_grad for p in stage.parameters()):  # what is frozen keeps the modes it is held in
                stage.train()
        stepper = StandIn(optimizer, stages.parameters())
        watch = _Stopwatch(device)
        cuts = timed_cuts(len(stages))
        done = 0
        while done < 3 + 1 or (done < rounds + 1 and time.perf_counter() - began < budget_seconds):
            if done == 1:
                watch.laps.clear()  # the first round warmed up
            _time_round(watch, stages, cuts, stepper, fetch, criterion or mean_square, autocast)
            done += 1
        del stepper
        x, _ = fetch()
        tiers = _tier_costs(device, folder, cache_dtype, len(x))
    count = len(stages)
    columns = {key: [watch.typical(key, s) for s in range(count)] for key in ("forward", "backward", "inference")}
    alone = [a + b for a, b in zip(columns["forward"], columns["backward"], strict=True)]
    return CostTable(
        stages=list(names),
        batch_size=len(x),
        **columns,
        steps=between({cut: watch.relative("step", cut) for cut in cuts}, alone),
        input_seconds=watch.typical("input"),
        tiers=tiers,
        flops=count_stage_flops(stages, tuple(x.shape[1:])),
        normalised=normalised_stages(stages),
        machine=machine or {},
        seconds_to_measure=time.perf_counter() - began,
    )


def normalised_stages(stages: nn.Sequential) -> list[bool]:
    """Per stage, whether it holds BatchNorm statistics."""
    return [any(getattr(m, "running_mean", None) is not None for m in stage.modules()) for stage in stages]


def mean_square(output: Tensor, targets: Any) -> Tensor:
    """A loss for want of the user's: its backward pass through the network takes as long as any other's."""
    del targets
    return output.float().square().mean()


def timed_cuts(count: int) -> list[int]:
    """At most ``MOST_STEPS`` of the cuts 0 .. count - 1, evenly spread, both ends among them."""
    some = min(count, MOST_STEPS)
    return sorted({round(i * (count - 1) / max(some - 1, 1)) for i in range(some)})


def between(known: dict[int, float], alone: Sequence[float]) -> list[float]:
    """Step seconds of every cut: those ``known``, and between two of them in proportion to the stages' times
    ``alone``.
    """
    steps = [known.get(cut, 0.0) for cut in range(len(alone))]
    ends = sorted(known)
    for low, high in itertools.pairwise(ends):
        whole = sum(alone[low:high])
        for cut in range(low + 1, high):
            steps[cut] = known[low] + (known[high] - known[low]) * sum(alone[low:cut]) / whole
    return steps


class StandIn:
    """Makes optimizer steps that take as long as training's, on copies of the parameters.

    The optimizer itself may be wrapped, want a closure, or keep an account of its steps: it is never called. One of
    torch's own kinds is made anew with its settings; for any other one SGD or AdamW stands in, whichever keeps as much
    state for a parameter. Its rate is 0: many steps on one minibatch must not lead to numbers that take longer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        held = {p for group in optimizer.param_groups for p in group["params"]}
        trained = [p for p in parameters if p.requires_grad and p in held]
        self._copies = {p: p.detach().clone().requires_grad_() for p in trained}
        self._stepper = optimizer_like(optimizer, list(self._copies.values())) if trained else None

    def gradients(self, of: Tensor, upstream: Tensor | None, wanted: Sequence[Tensor]) -> None:
        """The backward pass of ``of``; gradients of parameters are kept for the step, and nobody else's."""
        if not of.requires_grad:
            return
        # ``backward`` would add to gradients of the user's and call the hooks that wait for them.
        for tensor, found in zip(wanted, torch.autograd.grad(of, wanted, upstream, allow_unused=True), strict=True):
            if tensor in self._copies:
                self._copies[tensor].grad = found  # type: ignore[index]

    def step(self) -> None:
        """Step those parameters that ``gradients`` found a gradient for, and forget it."""
        if self._stepper is not None:
            self._stepper.step()
        for copied in self._copies.values():
            copied.grad = None


def optimizer_like(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """A fresh optimizer that does as much for every parameter, at rate 0, see ``StandIn``."""
    kind: Any = type(optimizer)
    made: torch.optim.Optimizer
    if kind.__module__.startswith("torch.optim.") and not issubclass(kind, torch.optim.LBFGS):
        known = inspect.signature(kind).parameters  # ``defaults`` may hold more than the constructor takes
        made = kind(parameters, **{k: v for k, v in optimizer.defaults.items() if k in known})
    else:
        states = [sum(isinstance(v, Tensor) and v.dim() > 0 for v in s.values()) for s in optimizer.state.values()]
        if max(states, default=2) >= 2:
            made = torch.optim.AdamW(parameters)
        else:
            made = torch.optim.SGD(parameters, momentum=0.9 * max(states))
    for group in made.param_groups:
        group["lr"] = 0.0
    return made


def _time_round(
    watch: _Stopwatch,
    stages: nn.Sequential,
    cuts: Sequence[int],
    stepper: StandIn,
    fetch: Callable[[], tuple[Tensor, Any]],
    criterion: Criterion,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    x, labels = watch.time("input", 0, fetch)
    inputs, trained = {}, [[p for p in stage.parameters() if p.requires_grad] for stage in stages]
    for s, stage in enumerate(stages):
        if s in cuts:
            inputs[s] = x
        inner = s > 0 and any(trained[:s])  # stages before it need the gradient of its input
        x = x.detach()
        wanted = [*trained[s], x.requires_grad_()] if inner else trained[s]
        with autocast():
            y = watch.time("forward", s, functools.partial(stage, x))
        watch.time("backward", s, functools.partial(stepper.gradients, y, torch.ones_like(y), wanted))
        with evaluating(stage), torch.no_grad(), autocast():
            watch.time("inference", s, functools.partial(stage, x))
        x = y.detach()

    def step(live: nn.Sequential, x: Tensor, wanted: list[nn.Parameter]) -> None:
        with autocast():
            loss = criterion(live(x), labels)
        stepper.gradients(loss, None, wanted)
        stepper.step()

    for cut in cuts:
        wanted = list(dict.fromkeys(itertools.chain(*trained[cut:])))  # stages may share one
        watch.time("step", cut, functools.partial(step, stages[cut:], inputs[cut], wanted))


def _tier_costs(device: torch.device, folder: Path, dtype: str, batch_size: int) -> dict[str, TierCost]:
    tiers: tuple[Tier, ...] = ("device", "pinned", "disk") if device.type == "cuda" else ("device", "disk")
    return {tier: _tier_cost(tier, device, folder, dtype, batch_size) for tier in tiers}


def _tier_cost(tier: Tier, device: torch.device, folder: Path, dtype: str, batch_size: int) -> TierCost:
    """Read and write minibatches of two row sizes; the line through them is overhead and rate."""
    points = []
    for row in _PROBE_ROWS:
        numel = max(1, row // 4)
        samples = min(_PROBE_BYTES // row, 50_000)
        store = ActivationStore(samples, (numel, 1, 1), dtype, tier, device, folder=folder)
        size = min(batch_size, samples)
        activations = torch.rand(size, numel, 1, 1, device=device)
        for start in range(0, samples - size + 1, size):  # touch every page before timing
            store.write(torch.arange(start, start + size), activations)
        watch = _Stopwatch(device)
        for _ in range(7):
            index = torch.randint(samples, (size,))
            watch.time("read", 0, functools.partial(store.read, index))
            watch.time("write", 0, functools.partial(store.write, index, activations))
        bytes_moved = size * store.nbytes / samples
        points.append((bytes_moved, watch.typical("read"), watch.typical("write")))
        store.close()
    (small, read_small, _), (large, read_large, write_large) = points
    rate = max(0.0, (read_large - read_small) / (large - small))
    return TierCost(max(0.0, read_small - rate * small), rate, write_large / large)
