"""A network that trains in milliseconds, with all that makes resuming hard: BatchNorm, dropout, several stages."""

from __future__ import annotations

from torch import Tensor, nn


def net(channels: int, image_size: int, classes: int) -> nn.Module:
    """Five stages; the random masks and running statistics of each have to survive an interruption."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * side * side, 24),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, classes),
    )


def pooled_net(channels: int, image_size: int, classes: int) -> nn.Module:
    """Four stages that take images of any size: features are pooled to one pixel."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, classes),
    )


class Block(nn.Module):
    """A residual block whose ReLU works in place, as torchvision's do; a projection where the shape changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1, stride=1 if before == after else 2)
        self.norm = nn.BatchNorm2d(after)
        self.project = None if before == after else nn.Conv2d(before, after, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x if self.project is None else self.project(x)
        return self.relu(out)


def residual_net(channels: int, image_size: int, classes: int) -> nn.Module:
    """Six stages, the middle four residual blocks, one of which changes the shape."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        Block(6, 6),
        Block(6, 8),
        Block(8, 8),
        Block(8, 8),
        nn.Flatten(),
        nn.Linear(8 * side * side, classes),
    )
