"""Hands a loop its minibatches, epoch by epoch: images, or the stored output of what was dropped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ldbench.data.batch_source import read_ahead
from ldbench.dropping.account import Account
from ldbench.dropping.hand_out import HandOut
from ldbench.dropping.pruning import Pruning
from ldbench.dropping.schedule import Schedule
from ldbench.seeds import sample_order
from ldbench.store.activations import Activations
from ldbench.store.changes import Changes

_REMEMBERED = 32
Minibatch = tuple[Tensor, Tensor, Tensor]  # images or activations [B, ...], targets [B, ...], sample indices int64 [B]


class Minibatches:
    """What a loop iterates over.

    Args:
        activations: gives images or stored activations of samples.
        schedule: counts epochs, and the minibatches that steps were made of.
        account: of the time that reading takes.
        augment: draws augmentation for images; None: none.
        seed: of the sample order.
        accumulate: minibatches for a step; None: they are counted.
        pruning: says which samples sit an epoch out; None: none does.
        before_epoch: called before the first minibatch of an epoch is read, with its number.
        changes: made to what is read from the store.

    Attributes:
        handed: the minibatches in the loop's hands.
        waits: seconds that the loop has waited for each of the last minibatches of images.
        lock: held while a minibatch is read, since a loop may fetch in a thread of its own.
    """

    def __init__(
        self,
        activations: Activations,
        schedule: Schedule,
        account: Account,
        *,
        augment: Any = None,
        seed: int = 0,
        accumulate: int | None = None,
        pruning: Pruning | None = None,
        before_epoch: Callable[[int], None] = lambda epoch: None,
        changes: Changes | None = None,
    ) -> None:
        self.pruning, self.before_epoch, self.changes = pruning, before_epoch, changes or Changes()
        self.activations, self.schedule, self.account = activations, schedule, account
        self.augment, self.seed, self.batch_size = augment, seed, activations.batch_size
        self.handed, self.lock = HandOut(schedule, accumulate), threading.RLock()
        self.waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._began: int | None = None  # minibatches consumed when the epoch that runs began; None: none runs
        self._length = 0  # minibatches of that epoch, once the first was asked for
        self._handed_out = False  # all of that epoch's
        self._resume_at: int | None = None  # minibatches of an interrupted epoch that were trained on
        self._running: object = None  # the epoch that is iterated over
        self._reading: object = None  # the epoch that reads ahead

    def __len__(self) -> int:
        """Minibatches of a whole epoch; the last, smaller one is left out."""
        return len(self.activations.active) // self.batch_size

    def __iter__(self) -> Iterator[Minibatch]:
        """The next epoch's; after an interruption those that the epoch has left."""
        first, self._resume_at = self._resume_at, None
        if first is None:
            self.schedule.epoch += 1
        self._running = running = object()
        self._began, self._handed_out = self.handed.next_number - (first or 0), False
        self._length = len(self)
        return self._next_epoch(self.schedule.epoch - 1, first or 0, running)

    def _next_epoch(self, epoch: int, first: int, running: object) -> Iterator[Minibatch]:
        try:
            yield from self.epoch(epoch, first)
            self._handed_out = self._handed_out or self._running is running
        except GeneratorExit:
            if self._running is running:
                self._began = None
            raise

    def epoch(self, epoch: int, first: int = 0, trial: bool = False) -> Iterator[Minibatch]:
        """The minibatches of an epoch, see ``LayerDropper.loader``."""
        active = self.activations.active
        order = active[sample_order(len(active), self.seed, epoch)]
        if self.pruning is not None:
            order = self.pruning.select(order, epoch, self.activations.chunk, self.batch_size)
            self._length = len(order) // self.batch_size
        if not first and not trial:
            with self.lock:
                self.before_epoch(epoch)
        batches = torch.split(order, self.batch_size)[first : len(order) // self.batch_size]
        given, reading = 0, object()
        try:
            for place, indices in enumerate(batches):
                with self.lock:
                    if not self.activations.chain and reading is not self._reading:
                        read_ahead(self.activations.images, batches[place:])
                        self._reading = reading
                    x, y = self._read(indices)
                    self.handed.give(x, len(indices), self.activations.stored_cut)
                given += 1
                yield x, y, indices
        except GeneratorExit:
            self.handed.take_back(given)
            raise
        finally:
            if self._reading is reading:
                self.cut_off()

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if self.activations.chain:
            with self.account.reading():
                x, y = self.activations.batch(indices, number=self.handed.next_number)
                return self.changes(x, self.handed.next_number), y
        draw = None if self.augment is None else self.augment.draw(self.handed.next_number, len(indices))
        began = time.perf_counter()
        batch = self.activations.batch(indices, draw)
        self.waits.append(time.perf_counter() - began)
        return batch

    def cut_off(self) -> None:
        """Nobody reads ahead any more, as for a store that takes over; a loop that goes on with images begins anew."""
        read_ahead(self.activations.images, ())
        self._reading = None

    def forget(self) -> None:
        """What an interrupted epoch had left does not come any more."""
        self._resume_at = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state: minibatches of the epoch that runs that were trained on, else those nobody trains on."""
        if self._began is None or (self._handed_out and not self.handed.untouched):
            return {"position": None, "unused": len(self.handed)}
        position = self.schedule.consumed - self._began
        return {"position": position if position < self._length else None, "unused": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer, the schedule's state and the samples being there already."""
        self.schedule.consumed += state["unused"]
        position = state["position"]
        self._resume_at = position if position is not None and position < len(self) else None
