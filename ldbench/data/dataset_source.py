"""Reads a user's map-style data set, in worker processes where that is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, default_collate

from ldbench.errors import UserError, one_line, shown
from ldbench.seeds import derive_seed

_SHUFFLES = "ldbench shuffles by itself: give the data set, or a DataLoader with shuffle=True and a batch_size"


@dataclass(frozen=True)
class Reading:
    """How a data set is read; what isn't named here is as in ``torch.utils.data.DataLoader``.

    Attributes:
        to_xy: makes (image, target) of an item; of a collated minibatch where ``collate_fn`` is given.
        collate_fn: makes a minibatch of a list of items; None: images and targets are stacked.
        num_workers: processes that read ahead; 0: the calling one reads when it is asked.
        pin_memory: minibatches pass through pinned memory on their way to a GPU.
    """

    to_xy: Callable[[Any], Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    pin_memory: bool = False
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    prefetch_factor: int | None = None
    timeout: float = 0.0


@dataclass(frozen=True)
class Failed:
    """Why a minibatch could not be read: told across processes, and raised where it was asked for."""

    reason: str
    cause: BaseException | None = None

    def __reduce__(self) -> Any:  # a cause may not survive the way from a worker
        return Failed, (self.reason,)


class Items(Dataset[Any]):
    """A data set whose minibatches are read by lists of indices, whole: (images, targets) or ``Failed``."""

    def __init__(self, dataset: Any, reading: Reading) -> None:
        self.dataset, self.reading = dataset, reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | Failed:
        try:
            items = self._read(indices)
            if self.reading.collate_fn is None:
                pairs = [self._pair(item, i) for item, i in zip(items, indices, strict=True)]
                return self._stacked(pairs, indices)
            return self._collated(items, self.reading.collate_fn)
        except UserError as error:
            return Failed(str(error), error.__cause__)

    def _read(self, indices: list[int]) -> list[Any]:
        at = f"samples {indices[0]} and following"
        try:
            if hasattr(self.dataset, "__getitems__"):
                return list(self.dataset.__getitems__(indices))
            items = []
            for i in indices:
                at = f"sample {i}"
                items.append(self.dataset[i])
            return items
        except Exception as error:
            raise UserError(f"{at} of the data set cannot be read: {one_line(error, kind=True)}") from error

    def _pair(self, item: Any, i: int) -> tuple[Any, Any]:
        if self.reading.to_xy is not None:
            try:
                item = self.reading.to_xy(item)
            except Exception as error:
                raise UserError(f"to_xy fails on sample {i}: {one_line(error, kind=True)}") from error
        if isinstance(item, Mapping):
            first, second = ([repr(key) for key in item] + ["'image'", "'label'"])[:2]
            raise UserError(
                f"sample {i} is a dict with {', '.join(map(repr, item))}: say which of them are image and target, as in "
                f"to_xy=lambda item: (item[{first}], item[{second}])"
            )
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            kind = type(item).__name__
            raise UserError(f"sample {i} is a {kind}: items are (image, target); to_xy= makes such a pair of an item")
        image, target = item[0], item[1]
        if not isinstance(image, (Tensor, np.ndarray)):
            kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
            hint = "; a transform such as torchvision's ToTensor makes tensors of pictures" if "PIL" in kind else ""
            raise UserError(f"the image of sample {i} is a {kind}: images are tensors [C, H, W]{hint}")
        if not isinstance(target, (Tensor, np.ndarray, np.generic, int, float)):
            what = shown(target) if target is None or isinstance(target, str) else f"a {type(target).__name__}"
            raise UserError(f"the target of sample {i} is {what}: targets are numbers, or tensors of one shape")
        return image, target

    def _stacked(self, pairs: list[tuple[Any, Any]], indices: list[int]) -> tuple[Tensor, Tensor]:
        for part, what in enumerate(("image", "target")):
            shapes = [tuple(np.shape(pair[part])) for pair in pairs]
            odd = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
            if odd is not None:
                raise UserError(
                    f"sample {indices[0]} has {what} {list(shapes[0])} and sample {indices[odd]} {list(shapes[odd])}: all "
                    f"{what}s are of one shape; resize or crop them in the data set"
                )
        try:
            images, targets = default_collate(pairs)
        except Exception as error:
            raise UserError(f"samples {indices[:3]}, ... cannot be stacked: {one_line(error, kind=True)}") from error
        return images, targets

    def _collated(self, items: list[Any], collate: Callable[[list[Any]], Any]) -> tuple[Tensor, Tensor]:
        try:
            batch = collate(items)
            if self.reading.to_xy is not None:
                batch = self.reading.to_xy(batch)
        except Exception as error:
            raise UserError(f"collate_fn or to_xy fails on a minibatch: {one_line(error, kind=True)}") from error
        if isinstance(batch, Mapping):
            keys = ", ".join(map(repr, batch))
            raise UserError(f"collate_fn gives a dict with {keys}: to_xy= says which of them are images and targets")
        if not (isinstance(batch, (tuple, list)) and len(batch) >= 2 and all(isinstance(p, Tensor) for p in batch[:2])):
            raise UserError("collate_fn gives no (images, targets) tensors: to_xy= makes them of what it gives")
        if not len(batch[0]) == len(batch[1]) == len(items):
            told = f"{len(batch[0])} images and {len(batch[1])} targets of {len(items)} samples"
            raise UserError(f"collate_fn gives {told}: as many as there are samples, in their order")
        return batch[0], batch[1]


def _as_read(batch: Any) -> Any:
    return batch


class DatasetSource:
    """A map-style ``torch.utils.data.Dataset`` of (image, target) items.

    ``expect`` has minibatches read ahead by worker processes; what is asked for out of turn is read in this one. Python
    floats as targets become float64, as PyTorch's own collation makes them.

    Args:
        dataset: with a length and items by index.
        device: where minibatches are wanted.
        reading: how items are read.
        seed: of the random transforms in worker processes; those in this one draw from the global streams.
    """

    def __init__(self, dataset: Any, device: torch.device, reading: Reading, seed: int = 0) -> None:
        self.dataset, self.device, self.reading, self.seed = dataset, device, reading, seed
        self.items = Items(dataset, reading)
        self._pins = reading.pin_memory and device.type == "cuda"
        self._expected: deque[list[int]] = deque()
        self._ahead: Iterator[Any] | None = None
        self._times = 0  # that minibatches were expected

    def __len__(self) -> int:
        return len(self.dataset)

    def expect(self, batches: Iterable[Tensor]) -> None:
        """These minibatches (indices int64 [B]) are asked for next, in this order; what was expected before is not."""
        self._ahead = None  # its workers end with it
        self._expected = deque(indices.tolist() for indices in batches) if self.reading.num_workers else deque()
        self._times += 1

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        """Images and targets of the samples ``indices``. Raises ``UserError`` that names the sample that is at fault."""
        del augment
        wanted = indices.tolist()
        if self._expected and self._expected[0] == wanted:
            read = next(self._workers())
            self._expected.popleft()
            if not self._expected:
                self._ahead = None  # nothing more to read: its workers end now, and not when somebody looks
        else:
            read = self.items.__getitems__(wanted)
        if isinstance(read, Failed):
            self.expect(())
            raise UserError(read.reason) from read.cause
        images, targets = read
        targets = torch.as_tensor(targets)
        if self._pins:
            images, targets = images.pin_memory(), targets.pin_memory()  # nothing happens to what is pinned already
        return images.to(self.device, non_blocking=self._pins), targets.to(self.device, non_blocking=self._pins)

    def _workers(self) -> Iterator[Any]:
        if self._ahead is None:
            reading, generator = self.reading, torch.Generator()
            generator.manual_seed(derive_seed(self.seed, "workers", self._times) % 2**63)
            self._ahead = iter(
                DataLoader(
                    self.items,
                    batch_sampler=list(self._expected),
                    num_workers=reading.num_workers,
                    collate_fn=_as_read,
                    pin_memory=self._pins,
                    worker_init_fn=reading.worker_init_fn,
                    multiprocessing_context=reading.multiprocessing_context,
                    prefetch_factor=reading.prefetch_factor,
                    timeout=reading.timeout,
                    generator=generator,
                )
            )
        return self._ahead


def from_data_loader(loader: DataLoader[Any]) -> tuple[Any, int, Reading, list[str]]:
    """What a ``DataLoader`` reads and how, where reading it in another order is as good: data set, batch size, and
    notes for people.

    Raises:
        UserError: its order or its minibatches are more than shuffling; one line says which, and what to give.
    """
    dataset, sampler = loader.dataset, loader.sampler
    if isinstance(dataset, IterableDataset):
        raise UserError(
            f"{type(dataset).__name__} is read from front to back: stored activations need samples by index, so give a "
            "data set with __len__ and __getitem__"
        )
    size = loader.batch_size
    if size is None or type(loader.batch_sampler) is not BatchSampler:
        raise UserError(f"the DataLoader makes minibatches of its own (batch_sampler, or no batch_size): {_SHUFFLES}")
    if type(sampler) is not RandomSampler:
        raise UserError(f"the DataLoader draws by {type(sampler).__name__}: {_SHUFFLES}")
    if sampler.replacement or sampler.num_samples != len(dataset):  # type: ignore[arg-type]
        raise UserError(f"the DataLoader draws with replacement, or not every sample: {_SHUFFLES}")
    left, notes = len(dataset) % size, []  # type: ignore[arg-type]
    if left and not loader.drop_last:
        notes.append(f"the last {left} samples of an epoch, fewer than a minibatch, are left out (as drop_last=True)")
    collate = loader.collate_fn
    reading = Reading(
        collate_fn=None if collate is default_collate else collate,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        timeout=loader.timeout,
    )
    return dataset, size, reading, notes
