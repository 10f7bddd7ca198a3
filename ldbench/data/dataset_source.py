"""Reads a user's map-style data set, in worker processes where that is asked for."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    default_collate,
    get_worker_info,
)

from ldbench.data.items import Failed, Items, Reading, Seeded
from ldbench.errors import UserError, one_line
from ldbench.seeds import derive_seed

_SHUFFLES = "ldbench shuffles by itself: give the data set, or a DataLoader with shuffle=True and a batch_size"


def _as_read(batch: Any) -> Any:
    return batch


def _wanted(indices: Tensor, augment: int | None) -> list[int]:
    return indices.tolist() if augment is None else Seeded(indices.tolist(), augment)


@dataclass(frozen=True)
class _Start:
    """Shows a worker process the user's own data set, as ``get_worker_info`` does elsewhere, before it reads."""

    worker_init_fn: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it refuses an ordinary assignment
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)


class DatasetSource:
    """A map-style ``torch.utils.data.Dataset`` of (image, target) items.

    ``expect`` has minibatches read ahead by worker processes; what is asked for out of turn is read in this one. Python
    floats as targets become float64, as PyTorch's own collation makes them. What random transforms make of a sample for
    training comes from the global streams, or those of worker processes; a view that is stored has a stream of its own, so
    that it can be made again (``of_view``).

    Args:
        dataset: with a length and items by index.
        device: where minibatches are wanted.
        reading: how items are read.
        seed: of the random transforms in worker processes, and of views; those of this one draw from the global streams.
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

    def of_view(self, samples: Tensor, view: int) -> int:
        """The draw for a view (from 0): the seed of random transforms."""
        del samples  # each has a stream of its own
        return derive_seed(self.seed, "view", view)

    def expect(self, batches: Iterable[Tensor], augments: Iterable[int | None] | None = None) -> None:
        """These minibatches (indices int64 [B], and their draws) are asked for next, in this order; what was expected
        before is not.
        """
        self._ahead = None  # its workers end with it
        self._expected.clear()
        if self.reading.num_workers:
            draws = itertools.repeat(None) if augments is None else augments
            self._expected.extend(map(_wanted, batches, draws))
        self._times += 1

    def batch(self, indices: Tensor, augment: int | None = None) -> tuple[Tensor, Tensor]:
        """Images and targets of the samples ``indices``. Raises ``UserError`` that names the sample that is at fault.

        Args:
            augment: a draw of ``of_view``; None: random transforms draw from the streams there are.
        """
        wanted = _wanted(indices, augment)
        in_turn = bool(self._expected) and self._expected[0] == wanted
        read = self._next() if in_turn else self.items.__getitems__(wanted)
        if isinstance(read, Failed):
            self.expect(())
            raise UserError(read.reason) from read.cause
        images, targets = read
        targets = torch.as_tensor(targets)
        if self._pins:
            images, targets = images.pin_memory(), targets.pin_memory()  # nothing happens to what is pinned already
        return images.to(self.device, non_blocking=self._pins), targets.to(self.device, non_blocking=self._pins)

    def _next(self) -> Any:
        """What the workers have read of the first minibatch expected; they end with the last one, and with any trouble."""
        try:
            read = next(self._workers())
        except Exception as error:
            told = _without_frames(error)
            self.expect(())
            raise UserError(
                f"worker processes cannot read the data set: {one_line(told, kind=True)}; num_workers=0 reads without them"
            ) from told
        except BaseException:  # an interruption: what they give next may not be what is asked for next
            self.expect(())
            raise
        self._expected.popleft()
        if not self._expected:
            self._ahead = None
        return read

    def _workers(self) -> Iterator[Any]:
        if self._ahead is None:
            reading, generator = self.reading, torch.Generator()
            generator.manual_seed(derive_seed(self.seed, "workers", self._times) % 2**63)
            loader = DataLoader(
                self.items,
                batch_sampler=list(self._expected),
                num_workers=reading.num_workers,
                collate_fn=_as_read,
                pin_memory=self._pins,
                worker_init_fn=_Start(reading.worker_init_fn),
                multiprocessing_context=reading.multiprocessing_context,
                prefetch_factor=reading.prefetch_factor,
                timeout=reading.timeout,
                generator=generator,
            )
            with warnings.catch_warnings():  # what it says is raised, too
                warnings.filterwarnings("ignore", "Got pickle error")
                self._ahead = iter(loader)
        return self._ahead


def _without_frames(error: BaseException) -> BaseException:
    """The error without the frames it passed through: they hold the workers, which are to end now."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    return error


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
    if not hasattr(dataset, "__len__"):
        raise UserError(
            f"{type(dataset).__name__} has no __len__: stored activations need to know how many samples it has"
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise UserError(f"{type(loader).__name__} gives out minibatches in a way of its own: {_SHUFFLES}")
    size = loader.batch_size
    if size is None or type(loader.batch_sampler) is not BatchSampler:
        raise UserError(f"the DataLoader makes minibatches of its own (batch_sampler, or no batch_size): {_SHUFFLES}")
    if type(sampler) is not RandomSampler:
        raise UserError(f"the DataLoader draws by {type(sampler).__name__}: {_SHUFFLES}")
    if sampler.replacement or sampler.num_samples != len(dataset):
        raise UserError(f"the DataLoader draws with replacement, or not every sample: {_SHUFFLES}")
    left, notes = len(dataset) % min(size, len(dataset)), []  # of fewer samples than a minibatch all are read
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
