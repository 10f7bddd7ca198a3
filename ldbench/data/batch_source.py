"""What a training loop reads images from: anything with a length and ``batch(indices)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class BatchSource(Protocol):
    """Training samples by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] (float, on the device) and targets [B] of the samples ``indices`` (int64 [B], CPU)."""
        ...


class TensorSource:
    """Images and targets held as tensors, one row per sample, already normalised."""

    def __init__(self, images: Tensor, targets: Tensor, device: torch.device) -> None:
        if len(images) != len(targets):
            raise ValueError(f"images and targets differ in length: {len(images)} and {len(targets)}")
        self.images, self.targets, self.device = images.to(device), targets.to(device), device

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        del augment
        where = indices.to(self.device)
        return self.images[where], self.targets[where]


class DatasetSource:
    """A map-style ``torch.utils.data.Dataset`` of (image, target) items, read item by item in the calling process."""

    def __init__(self, dataset: Dataset[Any], device: torch.device) -> None:
        self.dataset, self.device = dataset, device

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        del augment
        images, targets = default_collate([tuple(self.dataset[i])[:2] for i in indices.tolist()])
        return images.to(self.device, non_blocking=True), torch.as_tensor(targets).to(self.device)


def as_batch_source(data: Any, device: torch.device) -> BatchSource:
    """A source of minibatches from (images, targets) tensors, a map-style data set, or what is one already."""
    if hasattr(data, "batch") and hasattr(data, "__len__"):
        return data  # type: ignore[no-any-return]
    if isinstance(data, Sequence) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorSource(data[0], data[1], device)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSource(data, device)
    raise TypeError(f"data must be (images, targets) tensors or a map-style Dataset, not {type(data).__name__}")
