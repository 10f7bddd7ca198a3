"""What a training loop reads from: anything with a length and ``batch(indices)``, made of what people have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ldbench.data.arrays import tensor_of
from ldbench.data.dataset_source import DatasetSource
from ldbench.data.items import Reading
from ldbench.errors import UserError, one_line, shown

EXPECTED = (
    "data is (images [N, C, H, W], targets [N, ...]) as tensors or arrays, a data set with a length whose items are "
    "(image, target), or a DataLoader that shuffles such a one"
)


class BatchSource(Protocol):
    """Training samples by index. One that can read ahead also has ``expect``, see ``read_ahead``; one that gives several views of
    a sample by itself has ``of_view(samples, view)``, whose answer for a view (from 0) ``batch`` takes as ``augment``.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] (on the device) and targets [B, ...] of the samples ``indices`` (int64 [B], CPU)."""
        ...


class TensorSource:
    """Images and targets held as tensors, one row per sample, already normalised.

    Raises:
        UserError: they are no images and targets of as many samples.
    """

    def __init__(self, images: Tensor, targets: Tensor, device: torch.device) -> None:
        if images.dim() < 2 <= targets.dim():
            raise UserError(f"images are {list(images.shape)} and targets {list(targets.shape)}: are they swapped?")
        if images.dim() < 2:
            raise UserError(f"images are {list(images.shape)}: give one row per sample, [N, C, H, W]")
        if targets.dim() == 0 or len(images) != len(targets):
            told = f"{list(images.shape)} and {list(targets.shape)}"
            raise UserError(f"images and targets differ in length: {told}; both have one row per sample")
        if len(images) == 0:
            raise UserError("the data have no sample")
        self.images, self.targets, self.device = images.to(device), targets.to(device), device

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        del augment
        where = indices.to(self.device)
        return self.images[where], self.targets[where]


def as_batch_source(data: Any, device: torch.device, reading: Reading | None = None, *, seed: int = 0) -> BatchSource:
    """A source of minibatches from images and targets, a map-style data set, or what is one already.

    Args:
        data: see ``EXPECTED``; a ``DataLoader`` is taken apart before (``from_data_loader``).
        device: where minibatches are wanted.
        reading: how the items of a data set are read.
        seed: of the random transforms in worker processes.

    Raises:
        UserError: it is something else; one line says what is expected.
    """
    reading = reading or Reading()
    # A data set may have a method of that name, too: Hugging Face's do.
    if hasattr(data, "batch") and hasattr(data, "__len__") and not hasattr(data, "__getitem__"):
        return data  # type: ignore[no-any-return]
    if _is_a_pair(data):
        if reading.to_xy is not None or reading.collate_fn is not None:
            raise UserError("to_xy and collate_fn are for the items of a data set: make the images and targets before")
        return TensorSource(_tensor(data[0], "images"), _tensor(data[1], "targets"), device)
    if isinstance(data, dict):
        keys = ", ".join(map(repr, list(data)[:4]))
        raise UserError(f"data is a dict with {keys}: give the pair, as in (data['images'], data['labels'])")
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise UserError(f"{EXPECTED}; not {shown(data) if data is None else type(data).__name__}")
    try:
        count = len(data)
    except Exception as error:
        raise UserError(f"the data set's __len__ fails: {one_line(error, kind=True)}; {EXPECTED}") from error
    if count == 0:
        raise UserError("the data set has no sample")
    return DatasetSource(data, device, reading, seed)


def _is_a_pair(data: Any) -> bool:
    """Images and targets, rather than a list of two items."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    return isinstance(data[0], (Tensor, np.ndarray)) or (isinstance(data, tuple) and isinstance(data[0], list))


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray) and values.dtype != object and values.dtype.kind in "biufc":
        return tensor_of(values)
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values):
        if all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values):
            return torch.stack(list(values))
        if all(isinstance(value, Number) for value in values):
            return torch.tensor(values)
    kind = type(values[0]).__name__ if isinstance(values, Sequence) and len(values) else ""
    told = f"{type(values).__name__}{' of ' + kind if kind else ''}"
    raise UserError(f"{what} are a {told}: give a tensor with a number or a row of numbers per sample")


def describe_batch(x: Tensor, y: Tensor) -> str:
    """Dtypes and shapes of a minibatch, in words."""
    parts = [
        f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in (("images", x), ("targets", y))
    ]
    return ", ".join(parts)


def read_ahead(source: BatchSource, batches: Iterable[Tensor], augments: Iterable[Any] | None = None) -> None:
    """Tell a source that can read ahead which minibatches it will be asked for, in this order, and with which draws."""
    expect = getattr(source, "expect", None)
    if expect is not None:
        expect(batches) if augments is None else expect(batches, augments)
