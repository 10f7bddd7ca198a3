"""What a recipe makes of a cell: precision, optimizer, and the learning rate of every step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ldbench.experiment.config import Cell

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of the forward pass: automatic mixed precision for bf16 and fp16, nothing for fp32."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def learning_rate_factor(schedule: str, step: float, total_steps: int, warmup_fraction: float) -> float:
    """Factor on the base rate at ``step`` of ``total_steps``: linear warm-up, then cosine to 0, constant, or 0.1x at
    1/2 and 3/4.
    """
    warmup = int(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total_steps - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.01 if progress >= 0.75 else 0.1 if progress >= 0.5 else 1.0
    return 1.0


def build_optimizer(cell: Cell, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer of a cell's recipe, one parameter group per entry of ``groups``."""
    parameters = [{"params": list(group)} for group in groups]
    if cell.optimizer == "sgd":
        nesterov = cell.momentum > 0
        return torch.optim.SGD(parameters, cell.lr, cell.momentum, weight_decay=cell.weight_decay, nesterov=nesterov)
    kind = torch.optim.AdamW if cell.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, cell.lr, weight_decay=cell.weight_decay)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, cell: Cell, scales: Sequence[float] | None, position: tuple[float, int]
) -> None:
    """The rates of a step: the recipe's schedule, or a policy's own factor per stage in place of it.

    Args:
        scales: the policy's factor for each parameter group; None: the recipe's schedule for all.
        position: step, and length of what the schedule spans.
    """
    schedule = cell.schedule if scales is None else "constant"
    rate = cell.lr * learning_rate_factor(schedule, *position, cell.warmup_fraction)
    for group, scale in zip(optimizer.param_groups, scales or [1.0], strict=True):
        group["lr"] = rate * scale
