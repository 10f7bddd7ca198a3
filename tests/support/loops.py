"""One small training run in a loop of its own, as a user writes it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ldbench import LayerDropper
from ldbench.costs.table import CostTable, TierCost
from ldbench.policies.base import Policy
from ldbench.policies.registry import Execution
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.split import split_stages

SAMPLES, BATCH = 96, 16


class Net(nn.Module):
    """Four stages, two with BatchNorm, small enough to train in milliseconds."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(8 * 9, 32)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.hidden(torch.flatten(self.second(self.first(x)), 1))))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(SAMPLES) % 4
    x = torch.randn(SAMPLES, 1, 8, 8, generator=generator) + y.view(-1, 1, 1, 1)
    return x, y


def cheap_store(model: nn.Module, samples: int = SAMPLES) -> CostTable:
    """A table in which every drop pays: forward passes cost, stores are free."""
    flops = count_stage_flops(split_stages(copy.deepcopy(model)), (1, 8, 8))
    ones, n = [1.0] * len(flops), len(flops)
    tiers = {"device": TierCost(0, 0, 0), "disk": TierCost(0, 0, 0)}
    return CostTable(
        [str(i) for i in range(n)],
        BATCH,
        [4.0 * (n - cut) for cut in range(n)],
        ones,
        ones,
        ones,
        0.0,
        tiers,
        flops,
        [True, True, False, False],
    )


class Training:
    """One small training run, epoch by epoch."""

    def __init__(
        self,
        policy: Policy,
        execution: Execution = "store",
        dropout: float = 0.0,
        epochs: int = 4,
        optimizer: str = "sgd",
        **options: Any,
    ) -> None:
        torch.manual_seed(3)
        self.model = Net(dropout)
        kinds = {
            "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
            "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-1),
        }
        self.optimizer = kinds[optimizer](self.model.parameters())
        self.epochs = epochs
        options = {"costs": cheap_store(self.model), "check_every": 2, "epochs": epochs} | options
        self.dropper = LayerDropper(
            self.model, self.optimizer, data(), batch_size=BATCH, policy=policy, execution=execution, **options
        )

    def epoch(self) -> None:
        self.model.train()
        for x, y, _ in self.dropper:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.dropper(x), y).backward()
            self.optimizer.step()
            self.dropper.step()

    def run(self) -> Training:
        for _ in range(self.epochs):
            self.epoch()
        return self


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


class SmallNet(nn.Module):
    """Four stages on images of 3 x 24 x 24, five classes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(8 * 25, 16)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.hidden(torch.flatten(self.second(self.first(x)), 1))))


def small_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(SAMPLES) % 5
    return torch.randn(SAMPLES, 3, 24, 24, generator=generator) + y.view(-1, 1, 1, 1), y


def free_store(model: nn.Module, shape: tuple[int, ...] = (3, 24, 24)) -> CostTable:
    """A table for any network in which every drop pays: forward passes cost, stores are free."""
    stages = split_stages(model)
    flops = count_stage_flops(stages, shape)
    ones, n = [1.0] * len(flops), len(flops)
    tiers = {"device": TierCost(0, 0, 0), "pinned": TierCost(0, 0, 0), "disk": TierCost(0, 0, 0)}
    steps = [4.0 * (n - cut) for cut in range(n)]
    return CostTable([str(i) for i in range(n)], BATCH, steps, ones, ones, [0.0] * n, 0.0, tiers, flops, [False] * n)
