"""A network that trains in milliseconds, with all that makes resuming hard: BatchNorm, dropout, several stages."""

from __future__ import annotations

from torch import nn


def net(channels: int, image_size: int, classes: int) -> nn.Module:
    """Five stages; the random masks and running statistics of each have to survive an interruption."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * side * side, 24), nn.ReLU(),
        nn.Dropout(0.2), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, classes),
    )  # fmt: skip
