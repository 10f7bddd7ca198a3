"""Items of a user's data set, read and made into minibatches, with one line about what is wrong with one of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ldbench.data.arrays import tensor_of
from ldbench.errors import UserError, one_line, shown
from ldbench.seeds import derive_seed, preserved_streams, seed_streams


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

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UserError(f"num_workers is {self.num_workers}: give a number of processes, 0 for none")


class Seeded(list[int]):
    """Samples whose random transforms draw from streams of their own, the same in any process.

    Args:
        samples: their indices.
        seed: of these streams; each sample's is its own.
    """

    def __init__(self, samples: Iterable[int], seed: int) -> None:
        super().__init__(samples)
        self.seed = seed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seeded) and list(self) == list(other) and self.seed == other.seed

    __hash__ = None

    def __reduce__(self) -> Any:
        return Seeded, (list(self), self.seed)


@dataclass(frozen=True)
class Failed:
    """Why a minibatch could not be read: told across processes, and raised where it was asked for."""

    reason: str
    cause: BaseException | None = None

    def __reduce__(self) -> Any:  # a cause may not survive the way from a worker, where it came about always does
        told = "".join(traceback.format_exception(self.cause)) if self.cause is not None else ""
        return Failed, (self.reason, RuntimeError(f"in a worker process:\n{told}") if told else None)


class Items(Dataset[Any]):
    """A data set whose minibatches are read by lists of indices, whole: (images, targets) or ``Failed``.

    Of a list that is ``Seeded`` the random transforms are repeated, and the global random streams left as they were.
    """

    def __init__(self, dataset: Any, reading: Reading) -> None:
        self.dataset, self.reading = dataset, reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | Failed:
        if isinstance(indices, Seeded):
            with preserved_streams():
                return self._minibatch(list(indices), indices.seed)
        return self._minibatch(indices, None)

    def _minibatch(self, indices: list[int], seed: int | None) -> tuple[Tensor, Tensor] | Failed:
        try:
            items = self._read(indices, seed)
            if self.reading.collate_fn is None:
                pairs = [self._pair(item, i) for item, i in zip(items, indices, strict=True)]
                return self._stacked(pairs, indices)
            return self._collated(items, self.reading.collate_fn)
        except UserError as error:
            return Failed(str(error), error.__cause__)

    def _read(self, indices: list[int], seed: int | None) -> list[Any]:
        if seed is not None:  # one by one, so that what a sample draws has nothing to do with its neighbours
            items = []
            for i in indices:
                seed_streams(derive_seed(seed, "sample", i))
                items += self._read([i], None)
            return items
        if getattr(self.dataset, "__getitems__", None) is None:
            return [self._one(lambda i: self.dataset[i], i) for i in indices]
        try:
            items = list(self.dataset.__getitems__(indices))
        except Exception as error:
            for i in indices:  # a Subset has this method too: which of them is at fault is found one by one
                self._one(lambda i: self.dataset.__getitems__([i]), i)
            raise UserError(f"one of the samples {indices} cannot be read: {one_line(error, kind=True)}") from error
        if len(items) != len(indices):
            raise UserError(f"__getitems__ of the data set gives {len(items)} items for {len(indices)} samples")
        return items

    def _one(self, read: Callable[[int], Any], i: int) -> Any:
        try:
            return read(i)
        except Exception as error:
            raise UserError(f"sample {i} of the data set cannot be read: {one_line(error, kind=True)}") from error

    def _pair(self, item: Any, i: int) -> tuple[Any, Any]:
        if self.reading.to_xy is not None:
            try:
                item = self.reading.to_xy(item)
            except Exception as error:
                raise UserError(f"to_xy fails on sample {i}: {one_line(error, kind=True)}") from error
        if isinstance(item, Mapping):
            first, second = _likely_keys(item)
            raise UserError(
                f"sample {i} is a dict with {', '.join(map(repr, item))}: say which of them are image and target, as in "
                f"to_xy=lambda item: (item[{first!r}], item[{second!r}])"
            )
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            kind = type(item).__name__
            raise UserError(f"sample {i} is a {kind}: items are (image, target); to_xy= makes such a pair of an item")
        image, target = _tensor(item[0]), _tensor(item[1])
        if not isinstance(image, Tensor):
            kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
            hint = "; a transform such as torchvision's ToTensor makes tensors of pictures" if "PIL" in kind else ""
            raise UserError(f"the image of sample {i} is a {kind}: images are tensors [C, H, W]{hint}")
        if image.dim() == 0:
            raise UserError(f"the image of sample {i} is one number: items are (image, target), in this order")
        if not isinstance(target, (Tensor, np.number, np.bool_, int, float)):
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


def _tensor(value: Any) -> Any:
    """An array of numbers as a tensor: PyTorch's own collation warns where it is read-only, as pictures' pixels are."""
    return tensor_of(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" else value


def _likely_keys(item: Mapping[Any, Any]) -> tuple[Any, Any]:
    """The key of what looks like an image, and of what is called a label or a target; else the first ones."""
    keys = [*item, *(name for name in ("image", "label") if name not in item)]
    shaped = (key for key in item if getattr(item[key], "ndim", 0) > 1 or "PIL" in type(item[key]).__module__)
    image = next(shaped, keys[0])
    others = [key for key in keys if key != image]
    return image, next((key for key in others if any(word in str(key) for word in ("label", "target"))), others[0])
