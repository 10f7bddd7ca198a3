"""Joules per minibatch: of every stage by itself, and of a whole training step from every cut on."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.timing import between, optimizer_like, timed_cuts
from ldbench.devices import synchronize
from ldbench.meters import Energy, EnergyMeter, NullEnergyMeter, energy_meter
from ldbench.meters.energy import MINIMUM_SECONDS

WINDOW_SECONDS = 1.2 * MINIMUM_SECONDS


@dataclass(frozen=True)
class StageEnergy:
    """Gross joules per minibatch, or None everywhere with the reason.

    Attributes:
        stages: forward and backward of each stage by itself.
        steps: a whole step of the stages from each cut on, its input at hand; neither images nor store are read.
        bounds: half-width of each entry of ``stages``, as far as the meter's resolution goes.
    """

    stages: list[float] | None
    steps: list[float] | None
    bounds: list[float] | None
    unavailable_reason: str | None
    method: str | None = None


def measure_stage_energy(
    stages: nn.Sequential,
    fetch: Callable[[], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    seconds: float = WINDOW_SECONDS,
    meter: Callable[[torch.device], EnergyMeter] = energy_meter,
) -> StageEnergy:
    """Repeat each part for ``seconds`` in a metered window of its own, on copies; nothing of the caller's is changed.

    Args:
        seconds: of every window; the meter gives no figure for windows that are too short for it.
        meter: makes the meter of a window.
    """
    first = meter(device)
    if isinstance(first, NullEnergyMeter):
        return StageEnergy(None, None, None, first.reason)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        copied = copy.deepcopy(stages).train()
        stepper = optimizer_like(optimizer, [p for p in copied.parameters() if p.requires_grad])
        x, labels = fetch()
        cuts, inputs, alone = timed_cuts(len(copied)), dict[int, Tensor](), list[tuple[Energy, int]]()
        for s, stage in enumerate(copied):
            inputs[s] = x.detach()
            work = functools.partial(_pass, stage, inputs[s].clone().requires_grad_(s > 0), autocast)
            alone.append(_window(work, device, meter, seconds))
            with torch.no_grad(), autocast():
                x = stage(inputs[s])

        def step(live: nn.Sequential, x: Tensor) -> None:
            stepper.zero_grad(set_to_none=True)
            with autocast():
                loss = criterion(live(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()

        whole = {c: _window(functools.partial(step, copied[c:], inputs[c]), device, meter, seconds) for c in cuts}
    for energy, _ in (*alone, *whole.values()):
        if energy.unavailable_reason is not None:
            return StageEnergy(None, None, None, energy.unavailable_reason, energy.method)
    each = [_share(energy.joules, count) for energy, count in alone]
    steps = between({cut: _share(energy.joules, count) for cut, (energy, count) in whole.items()}, each)
    bounds = [_share(energy.bound_joules, count) for energy, count in alone]
    return StageEnergy(each, steps, bounds, None, alone[0][0].method)


def _pass(stage: nn.Module, x: Tensor, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    with autocast():
        y = stage(x)
    y.backward(torch.ones_like(y))


def _share(joules: float | None, count: int) -> float:
    assert joules is not None
    return joules / count


def _window(
    work: Callable[[], None], device: torch.device, meter: Callable[[torch.device], EnergyMeter], seconds: float
) -> tuple[Energy, int]:
    """Energy of ``work`` repeated for about ``seconds``, and how often it ran."""
    work()
    synchronize(device)
    metered, count = meter(device), 0
    metered.start()
    began = time.perf_counter()
    while count == 0 or time.perf_counter() - began < seconds:
        work()
        count += 1
        if device.type == "cuda" and count % 8 == 0:
            synchronize(device)  # else the queue runs far ahead of the clock
    synchronize(device)
    metered.stop()
    return metered.total(), count
