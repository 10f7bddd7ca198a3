"""Measures a cost table on copies of the stages."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.table import CostTable, TierCost
from ldbench.devices import synchronize
from ldbench.stages.flops import count_stage_flops
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


def measure_costs(
    stages: nn.Sequential,
    names: Sequence[str],
    fetch: Callable[[], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    device: torch.device,
    folder: Path,
    cache_dtype: str = "fp32",
    autocast: Callable[[], AbstractContextManager[Any]],
    rounds: int = 9,
    budget_seconds: float = 20.0,
    machine: dict[str, Any] | None = None,
) -> CostTable:
    """Measure a cost table on copies of the stages; nothing of the caller's is changed, random states included.

    Every round times each part once and a whole step from each cut; medians over the rounds are kept, those of whole
    steps relative to the full one of the same round. After one round to warm up at least 3 are made, then as many as
    fit ``budget_seconds``, at most ``rounds``.

    Args:
        fetch: gives a minibatch of images and targets as training would read it.
        optimizer: training's optimizer; its class and defaults are used on the copy.
    """
    began = time.perf_counter()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        copied = copy.deepcopy(stages)
        for module in copied.modules():
            module.train()
        stepper = optimizer_like(optimizer, [p for p in copied.parameters() if p.requires_grad])
        watch = _Stopwatch(device)
        cuts = timed_cuts(len(copied))
        done = 0
        while done < 3 + 1 or (done < rounds + 1 and time.perf_counter() - began < budget_seconds):
            if done == 1:
                watch.laps.clear()  # the first round warmed up
            _time_round(watch, copied, cuts, stepper, fetch, criterion, autocast)
            done += 1
        del copied, stepper
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
        normalised=[any(getattr(m, "running_mean", None) is not None for m in stage.modules()) for stage in stages],
        machine=machine or {},
        seconds_to_measure=time.perf_counter() - began,
    )


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


def optimizer_like(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer of the same class and settings (``defaults`` may hold more than the constructor takes), at
    rate 0: many steps on one minibatch must not lead the copy to numbers that take longer.
    """
    kind: Any = type(optimizer)
    known = inspect.signature(kind).parameters
    made: torch.optim.Optimizer = kind(parameters, **{k: v for k, v in optimizer.defaults.items() if k in known})
    for group in made.param_groups:
        group["lr"] = 0.0
    return made


def _time_round(
    watch: _Stopwatch,
    stages: nn.Sequential,
    cuts: Sequence[int],
    stepper: torch.optim.Optimizer,
    fetch: Callable[[], tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    x, labels = watch.time("input", 0, fetch)
    inputs = {}
    for s, stage in enumerate(stages):
        if s in cuts:
            inputs[s] = x
        stepper.zero_grad(set_to_none=True)
        x = x.detach().requires_grad_(s > 0)
        with autocast():
            y = watch.time("forward", s, functools.partial(stage, x))
        upstream = torch.ones_like(y)
        watch.time("backward", s, functools.partial(y.backward, upstream))
        stage.eval()
        with torch.no_grad(), autocast():
            watch.time("inference", s, functools.partial(stage, x))
        stage.train()
        x = y.detach()

    def step(live: nn.Sequential, x: Tensor) -> None:
        stepper.zero_grad(set_to_none=True)
        with autocast():
            loss = criterion(live(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()  # leaves parameters without a gradient alone

    for cut in cuts:
        watch.time("step", cut, functools.partial(step, stages[cut:], inputs[cut]))


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
