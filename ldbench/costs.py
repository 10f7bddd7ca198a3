"""The cost table (seconds and FLOPs per stage, store costs per tier) and the break-even rule that reads it."""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.cache import ActivationStore, StoreBudget, Tier, store_bytes
from ldbench.flops import StageFlops, count_stage_flops

STATISTICS_SAMPLES = 8192  # BatchNorm statistics settle long before; bounds the cost on large sets
_PROBE_BYTES = 2**26  # well past the caches, still quick to write
_PROBE_ROWS = (256, 65_536)  # bytes per row: overhead and rate are told apart by two sizes


@dataclass(frozen=True)
class TierCost:
    """Seconds to read and to write one minibatch of rows: overhead + bytes x rate."""

    read_overhead: float
    read_per_byte: float
    write_per_byte: float


@dataclass(frozen=True)
class CostTable:
    """What one step costs, measured once per model, data set and machine. Seconds are per minibatch of ``batch_size``.

    Attributes:
        forward, backward: train mode, per stage; ``backward`` includes the gradient of the stage's input.
        backward_first: the same for a first live stage, whose input needs no gradient.
        inference: forward in eval mode without gradients, per stage.
        optimizer: optimizer step, shared out by parameter count.
        input_seconds: fetching and normalising a minibatch of images.
        fixed_seconds: what a whole step takes beyond the sum of its parts (loss, bookkeeping).
        tiers: cost of the activation store by tier.
        flops: FLOPs per sample and stage, with the output shapes.
        normalised: per stage, whether it holds BatchNorm statistics.
        machine: what the seconds are true for.
    """

    stages: list[str]
    batch_size: int
    forward: list[float]
    backward: list[float]
    backward_first: list[float]
    inference: list[float]
    optimizer: list[float]
    input_seconds: float
    fixed_seconds: float
    tiers: dict[str, TierCost]
    flops: list[StageFlops]
    normalised: list[bool]
    machine: dict[str, Any] = field(default_factory=dict)
    seconds_to_measure: float = 0.0

    def read_seconds(self, tier: str, row_bytes: float) -> float:
        """One minibatch from a store of ``row_bytes`` bytes per sample."""
        cost = self.tiers[tier]
        return cost.read_overhead + cost.read_per_byte * row_bytes * self.batch_size

    def step_seconds(self, cut: int, source_seconds: float | None = None) -> float:
        """One training step with the first ``cut`` stages gone; ``source_seconds`` replaces reading images."""
        live = range(cut, len(self.stages))
        total = self.fixed_seconds + (self.input_seconds if source_seconds is None else source_seconds)
        for s in live:
            total += self.forward[s] + (self.backward_first[s] if s == cut else self.backward[s]) + self.optimizer[s]
        return total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CostTable:
        """The table that ``to_dict`` described."""
        flops = [StageFlops(**{**f, "output_shape": tuple(f["output_shape"])}) for f in values["flops"]]
        tiers = {name: TierCost(**cost) for name, cost in values["tiers"].items()}
        return cls(**{**values, "flops": flops, "tiers": tiers})


@dataclass(frozen=True)
class CutChoice:
    """The cut the break-even rule takes, or why it takes none (``cut`` is then the present one)."""

    cut: int
    reason: str
    saving_seconds: float = 0.0
    build_seconds: float = 0.0
    tier: Tier = "device"


@dataclass(frozen=True)
class StorePlan:
    """What the store of this run may be: samples, dtype, bytes per tier, and where the present one lies."""

    samples: int
    dtype: str
    budget: StoreBudget
    current_tier: Tier = "device"

    def row_bytes(self, table: CostTable, cut: int) -> float:
        """Bytes per sample of the store behind ``cut`` stages."""
        return store_bytes(self.samples, table.flops[cut - 1].output_shape, self.dtype) / self.samples

    def source_seconds(self, table: CostTable, cut: int, tier: str) -> float:
        """One minibatch of what training reads at ``cut``: images at 0, else the store."""
        return table.input_seconds if cut == 0 else table.read_seconds(tier, self.row_bytes(table, cut))


def build_seconds(table: CostTable, plan: StorePlan, current: int, cut: int, tier: str) -> float:
    """Time to make the store at ``cut`` from what training reads at ``current``, statistics pass included."""
    batches = plan.samples / table.batch_size
    source = plan.source_seconds(table, current, plan.current_tier)
    per_batch = source + sum(table.inference[current:cut])
    per_batch += table.tiers[tier].write_per_byte * plan.row_bytes(table, cut) * table.batch_size
    total = batches * per_batch
    if any(table.normalised[current:cut]):
        passes = min(plan.samples, STATISTICS_SAMPLES) / table.batch_size
        total += passes * (source + sum(table.forward[current:cut]))
    return total


def best_cut(
    table: CostTable, plan: StorePlan, current: int, stopped: int, remaining_steps: int, legal: Sequence[bool],
    exact: bool = False,
) -> CutChoice:  # fmt: skip
    """Among the stopped prefixes the cut with the largest remaining_steps x (step now - step there) - building cost.

    Only a positive balance is taken; ``exact`` considers ``stopped`` alone.
    """
    now = table.step_seconds(current, plan.source_seconds(table, current, plan.current_tier))
    best = CutChoice(current, "no stage has stopped")
    reasons = []
    for cut in range(stopped if exact else current + 1, stopped + 1):
        if cut <= current:
            continue
        if not legal[cut]:
            reasons.append(f"cut {cut} would split stages that share a parameter")
            continue
        size = store_bytes(plan.samples, table.flops[cut - 1].output_shape, plan.dtype)
        tier = plan.budget.tier_for(size)
        if tier is None:
            reasons.append(f"the store of cut {cut} takes {size} bytes and fits no tier")
            continue
        build = build_seconds(table, plan, current, cut, tier)
        there = table.step_seconds(cut, plan.source_seconds(table, cut, tier))
        saving = remaining_steps * (now - there) - build
        if saving <= 0:
            reasons.append(
                f"cut {cut} does not pay: {remaining_steps} steps x {(now - there) * 1e3:.3g} ms saved "
                f"- {build:.3g} s to build = {saving:.3g} s"
            )
        elif saving > best.saving_seconds:
            best = CutChoice(cut, f"saves about {saving:.3g} s over {remaining_steps} steps", saving, build, tier)
    if best.cut == current and reasons:
        return CutChoice(current, reasons[-1])
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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

    def best(self, key: str, index: int = 0) -> float:
        """The shortest lap: what the part takes when nothing else gets in its way."""
        return min(self.laps[key, index])


def measure_costs(
    stages: nn.Sequential, names: Sequence[str], fetch: Callable[[], tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor], *, device: torch.device, folder: Path, cache_dtype: str = "fp32",
    autocast: Callable[[], AbstractContextManager[Any]], rounds: int = 7, budget_seconds: float = 20.0,
    machine: dict[str, Any] | None = None,
) -> CostTable:  # fmt: skip
    """Measure a cost table on copies of the stages; nothing of the caller's is changed, random states included.

    Every round times each part once; the shortest of the rounds is kept, so that a slow spell of a shared machine does not
    decide what is dropped. At least 3 rounds are made after one to warm up, then as many as fit ``budget_seconds``, at most ``rounds``.

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
        stepper = _like(optimizer, [p for p in copied.parameters() if p.requires_grad])
        watch = _Stopwatch(device)
        done = 0
        while done < 3 + 1 or (done < rounds + 1 and time.perf_counter() - began < budget_seconds):
            if done == 1:
                watch.laps.clear()  # the first round warmed up
            _time_round(watch, copied, stepper, fetch, criterion, autocast)
            done += 1
        del copied, stepper
        x, _ = fetch()
        tiers = _tier_costs(device, folder, cache_dtype, len(x))
    flops = count_stage_flops(stages, tuple(x.shape[1:]))
    return _assemble(watch, stages, names, len(x), flops, tiers, machine or {}, began)


def _like(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer of the same class and settings; ``defaults`` may hold more than the constructor takes."""
    kind: Any = type(optimizer)
    known = inspect.signature(kind).parameters
    made: torch.optim.Optimizer = kind(parameters, **{k: v for k, v in optimizer.defaults.items() if k in known})
    return made


def _time_round(
    watch: _Stopwatch, stages: nn.Sequential, stepper: torch.optim.Optimizer,
    fetch: Callable[[], tuple[Tensor, Tensor]], criterion: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:  # fmt: skip
    x, _ = watch.time("input", 0, fetch)

    def whole() -> None:
        images, labels = fetch()
        stepper.zero_grad(set_to_none=True)
        with autocast():
            loss = criterion(stages(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()

    watch.time("whole", 0, whole)
    watch.time("optimizer", 0, stepper.step)
    for s, stage in enumerate(stages):
        for key, wants_gradient in (("backward", True), ("backward_first", False)):
            stepper.zero_grad(set_to_none=True)
            inputs = x.detach().requires_grad_(wants_gradient)
            with autocast():
                y = watch.time("forward", s, functools.partial(stage, inputs))
            upstream = torch.ones_like(y)
            watch.time(key, s, functools.partial(y.backward, upstream))
        stage.eval()
        with torch.no_grad(), autocast():
            watch.time("inference", s, functools.partial(stage, x))
        stage.train()
        x = y.detach()


def _assemble(
    watch: _Stopwatch, stages: nn.Sequential, names: Sequence[str], batch_size: int, flops: list[StageFlops],
    tiers: dict[str, TierCost], machine: dict[str, Any], began: float,
) -> CostTable:  # fmt: skip
    count = len(flops)
    columns = {
        k: [watch.best(k, s) for s in range(count)] for k in ("forward", "backward", "backward_first", "inference")
    }
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    optimizer = [watch.best("optimizer") * size / max(sum(sizes), 1) for size in sizes]
    fixed = watch.best("whole") - watch.best("input")
    fixed -= sum(columns["forward"]) + columns["backward_first"][0] + sum(columns["backward"][1:]) + sum(optimizer)
    return CostTable(
        stages=list(names), batch_size=batch_size, **columns, optimizer=optimizer,
        input_seconds=watch.best("input"), fixed_seconds=fixed, tiers=tiers, flops=flops,
        normalised=[any(getattr(m, "running_mean", None) is not None for m in stage.modules()) for stage in stages],
        machine=machine, seconds_to_measure=time.perf_counter() - began,
    )  # fmt: skip


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
        points.append((bytes_moved, watch.best("read"), watch.best("write")))
        store.close()
    (small, read_small, _), (large, read_large, write_large) = points
    rate = max(0.0, (read_large - read_small) / (large - small))
    return TierCost(max(0.0, read_small - rate * small), rate, write_large / large)
