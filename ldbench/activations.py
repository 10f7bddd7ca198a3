"""What training reads once stages are dropped: their stored output, made in a chain of drops and made again after a loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.cache import ActivationStore, StoreLost, Tier
from ldbench.feeds import Feed
from ldbench.prefix import fill_store
from ldbench.storefile import find_store, keep_store, prefix_fingerprint


class Activations:
    """The current store and how it came about.

    Args:
        stages: the whole network's.
        feed: gives the images.
        batch_size: samples per minibatch when a store is filled; part of what fixes its bits.
        dtype: of the store.
        folder: where a memory-mapped store lies.
        identity: names the data's content; None: a store file is never taken up again.

    Attributes:
        store: None while images are read.
        cut: leading stages whose output is read (with a store), or that minibatches are sent through (without one).
        chain: (cut, tier asked for) of every store made so far.
        on_batch: called before every minibatch of a store being built.
        tell: told about trouble that was overcome.
    """

    def __init__(
        self, stages: nn.Sequential, feed: Feed, *, batch_size: int, dtype: str, device: torch.device, folder: Path,
        channels_last: bool, autocast: Callable[[], AbstractContextManager[Any]], identity: str | None,
    ) -> None:  # fmt: skip
        self.stages, self.feed, self.dtype, self.device, self.folder = stages, feed, dtype, device, folder
        self.channels_last, self.autocast, self.identity = channels_last, autocast, identity
        self.samples = len(feed)
        self.batches = torch.split(torch.arange(self.samples), batch_size)
        self.store: ActivationStore | None = None
        self.cut = 0
        self.chain: list[tuple[int, Tier]] = []
        self.on_batch: Callable[[], None] = lambda: None
        self.tell: Callable[[str], None] = lambda what: None
        self._targets: Tensor | None = None

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Stored activations [B, ...] and targets [B] of the samples ``indices`` (int64 [B], CPU)."""
        assert self._targets is not None, "a store was filled"
        return self.read(indices), self._targets[indices.to(self._targets.device)]

    def read(self, indices: Tensor) -> Tensor:
        """Stored activations [B, ...]; a store whose file was truncated under us is rebuilt first."""
        assert self.store is not None
        try:
            return self.store.read(indices)
        except StoreLost as lost:
            self.tell(f"{lost}: the store is rebuilt")
            self.rebuild()
            return self.store.read(indices)

    def source(self, indices: Tensor) -> Tensor:
        """What the stages from ``cut`` on read, unaugmented. Targets that pass are kept for reading from the store."""
        self.on_batch()
        return self.peek(indices)

    def peek(self, indices: Tensor) -> Tensor:
        """``source``, without being a place to stop."""
        if self.store is not None:
            return self.read(indices)
        x = self._images(indices)
        with self.autocast():
            for stage in self.stages[: self.cut]:
                x = stage(x)
        return x

    def _images(self, indices: Tensor) -> Tensor:
        x, targets = self.feed.batch(indices)
        if self._targets is None:
            self._targets = targets.new_empty(self.samples, *targets.shape[1:])
        self._targets[indices.to(targets.device)] = targets
        return x

    def fill(self, cut: int, tier: Tier) -> tuple[ActivationStore, float]:
        """A store of the output of stage ``cut - 1`` made from what is read now, and its relative error. Raises ``NoRoom``."""
        return fill_store(self.stages[self.cut : cut], self.batches, self.source, self.autocast, self._allocate, tier)

    def _allocate(self, shape: torch.Size, tier: Tier) -> ActivationStore:
        return ActivationStore(
            self.samples, shape, self.dtype, tier, self.device, channels_last=self.channels_last, folder=self.folder
        )

    def take(self, store: ActivationStore, cut: int, wanted: Tier) -> None:
        """Read from ``store`` from now on; the one before is freed."""
        self.close()
        self.store, self.cut = store, cut
        self.chain.append((cut, wanted))
        if store.tier != wanted:
            self.tell(f"no room for a store of {store.nbytes} bytes in tier {wanted}: it went to tier {store.tier}")

    def close(self, *, keep_file: bool = False) -> None:
        """Free the store, its file included unless ``keep_file``."""
        if self.store is not None:
            self.store.close(keep_file=keep_file)
            self.store = None

    # --- after a loss ------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What the current store must hold, see `ldbench.storefile`."""
        facts = {
            "data": self.identity, "samples": self.samples, "batch_size": len(self.batches[0]), "dtype": self.dtype,
            "cuts": [cut for cut, _ in self.chain], "device": str(self.device), "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        with self.autocast():
            facts["autocast"] = torch.is_autocast_enabled(self.device.type)
            facts["autocast_dtype"] = str(torch.get_autocast_dtype(self.device.type))
        return prefix_fingerprint(self.stages[: self.cut], facts)

    def keep(self) -> None:
        """Make a memory-mapped store fit to be taken up by another process. Raises ``OSError``."""
        if self.store is not None and self.identity is not None:
            keep_store(self.store, self.fingerprint())

    def recover(self) -> bool:
        """The store of ``chain``: from a file that fits in every byte (True), else by replaying the drops (False)."""
        self.cut = self.chain[-1][0]
        store = find_store(self.folder, self.fingerprint(), self.device) if self.identity is not None else None
        if store is None:
            self.rebuild()
            return False
        for indices in self.batches:  # targets aren't in the file
            self._images(indices)
        self.store = store
        return True

    def rebuild(self) -> None:
        """Replay the chain of drops: the same cuts, dtypes and batch boundaries give the same bits."""
        self.close()
        chain, self.chain, self.cut = self.chain, [], 0
        for cut, tier in chain:
            store, _ = self.fill(cut, tier)
            self.take(store, cut, tier)
