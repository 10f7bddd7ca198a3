"""What training reads once stages are dropped: their stored output, made in a chain of drops and made again after a
loss.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.data.batch_source import BatchSource, read_ahead
from ldbench.data.stream import Stream
from ldbench.errors import UserError
from ldbench.seeds import sample_order
from ldbench.stages.train_mode import evaluating
from ldbench.store.activation_store import ActivationStore, StoreLost
from ldbench.store.budget import Tier
from ldbench.store.fill import Autocast, fill_store
from ldbench.store.store_file import find_store, keep_store, prefix_fingerprint, unkeep_store
from ldbench.store.views import Views


class Activations:
    """The current store and how it came about.

    Args:
        stages: the whole network's.
        images: gives minibatches of them.
        stored_images: gives minibatches of what is stored, where that is not what training reads.
        views: how many views of each sample are stored, and how they are drawn.
        probed: samples of ``probe``: the views that it reads are not made anew.
        stream: which samples can be drawn when. A store holds the rows of those that can be drawn now, and no others.
        batch_size: samples per minibatch when a store is filled; part of what fixes its bits.
        device: where minibatches are wanted.
        dtype: of the store.
        folder: where a memory-mapped store lies.
        channels_last: the memory format minibatches are wanted in.
        autocast: gives the context the forward pass runs in.
        identity: names the data's content; None: a store file is never taken up again.
        on_batch: called before every minibatch of a store being built.
        note: told about trouble that was overcome.

    Attributes:
        store: None while images are read.
        chunk: the set of the stream that is drawn from now.
        chain: (cut, tier asked for, chunk then) of every store made so far; the last one's cut is the store's.
        renewals: (stores made until then, chunk, place to begin at, epoch) of every time that views were made anew.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        images: BatchSource,
        stream: Stream,
        *,
        batch_size: int,
        device: torch.device,
        dtype: str,
        folder: Path,
        stored_images: BatchSource | None = None,
        views: Views | None = None,
        probed: int = 0,
        channels_last: bool,
        autocast: Autocast,
        identity: str | None,
        on_batch: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.stages, self.images, self.samples = stages, images, len(images)
        self.stored_images = images if stored_images is None else stored_images
        self.views, self.probed = views or Views(), probed
        if self.views.renewed and self.views.count == 1 and probed >= min(map(len, stream.sets)):
            raise UserError(
                f"the rule compares networks on {probed} samples, whose views stay as they are: with {min(map(len, stream.sets))} "
                "samples and one view of each none is left to be made anew"
            )
        self.stream, self.batch_size = stream, batch_size
        self.device, self.dtype, self.folder, self.channels_last = device, dtype, folder, channels_last
        self.autocast, self.identity, self.on_batch, self.note = autocast, identity, on_batch, note
        self.store: ActivationStore | None = None
        self.chunk = 0
        self.chain: list[tuple[int, Tier, int]] = []
        self.renewals: list[tuple[int, int, int, int]] = []
        self._rows = torch.empty(0, dtype=torch.int64)  # per view of a sample its row in the store; -1: it has none
        self._targets: Tensor | None = None  # per view of a sample

    @property
    def active(self) -> Tensor:
        """The samples that can be drawn now, int64 ascending on the CPU."""
        return self.stream.sets[self.chunk]

    @property
    def capacity(self) -> int:
        """Rows that a store has to hold."""
        return self.stream.capacity * self.views.count

    @property
    def stored_cut(self) -> int:
        """Leading stages whose output the store holds; 0 while images are read."""
        return self.chain[-1][0] if self.chain else 0

    def batch(self, indices: Tensor, augment: Any = None, number: int = 0) -> tuple[Tensor, Tensor]:
        """What training reads of the samples ``indices`` (int64 [B], CPU): images or stored activations [B, ...], and
        targets [B].

        Args:
            augment: a draw for images.
            number: of the minibatch in the run, by which a stored view of each sample is chosen.
        """
        if self.store is None and not self.chain:
            return self.images.batch(indices, augment)
        keys = self.views.chosen(indices, number)
        read = self.read(keys)
        assert self._targets is not None, "a store was filled"
        return read, self._targets[keys.to(self._targets.device)]

    def read(self, keys: Tensor) -> Tensor:
        """Stored activations [B, ...] of views; a store whose file was truncated under us is rebuilt first."""
        if self.store is None:  # making it again was cut short
            self.rebuild()
        assert self.store is not None
        try:
            return self.store.read(self._rows[keys])
        except StoreLost as lost:
            self.note(f"{lost}: the store is rebuilt")
            self.rebuild()
            return self.store.read(self._rows[keys])

    def probe(self, samples: int, cut: int) -> Tensor:
        """What the stages from ``cut`` on read of so many samples, the same ones and the same view every time."""
        return self.peek(self._probe_keys(self.chunk, samples), cut)

    def _probe_keys(self, chunk: int, samples: int) -> Tensor:
        active = self.stream.sets[chunk]
        return self.views.keys(active[sample_order(len(active), 0, 0)[:samples]])

    def source(self, keys: Tensor, cut: int) -> Tensor:
        """``peek``, with a word to ``on_batch`` before."""
        self.on_batch()
        return self.peek(keys, cut)

    def peek(self, keys: Tensor, cut: int) -> Tensor:
        """What the stages from ``cut`` on read of views, all of one number: stored activations, or images through the
        stages before.

        Targets that pass are kept for reading from the store.
        """
        if self.chain:
            return self.read(keys)
        return self._through(self._images(keys), cut)

    def _images(self, keys: Tensor, renewal: int = 0) -> Tensor:
        indices = self.views.samples(keys)
        x, targets = self.stored_images.batch(indices, self.views.augmentation(keys, renewal))
        if self._targets is None:
            self._targets = targets.new_empty(self.samples * self.views.count, *targets.shape[1:])
        self._targets[keys.to(targets.device)] = targets
        return x

    def _through(self, x: Tensor, cut: int) -> Tensor:
        """``x`` sent through the first ``cut`` stages in evaluation mode, whatever a ``model.train()`` has made of
        them.
        """
        segment = self.stages[:cut]
        with evaluating(segment), self.autocast():
            for stage in segment:
                x = stage(x)
        return x

    def fill(self, cut: int, tier: Tier) -> tuple[ActivationStore, float]:
        """A store of the output of stage ``cut - 1`` made from what is read now, and its relative error. Raises
        ``NoRoom``.
        """
        current = self.stored_cut
        batches = self.views.passes(self.active, self.batch_size)
        if current == 0:
            self._expect(batches)
        source = functools.partial(self.source, cut=current)
        return fill_store(self.stages[current:cut], batches, source, self.autocast, self._allocate, tier)

    def _expect(self, batches: Sequence[Tensor], renewal: int = 0) -> None:
        # Of a source that draws by itself: one that applies the draws of an augmentation is given them with the batch.
        own = self.views.drawn and hasattr(self.stored_images, "of_view")
        draws = [self.views.augmentation(keys, renewal) for keys in batches] if own else None
        read_ahead(self.stored_images, [self.views.samples(keys) for keys in batches], draws)

    def _allocate(self, shape: torch.Size, tier: Tier) -> ActivationStore:
        rows, layout = self.capacity, self.channels_last
        return ActivationStore(rows, shape, self.dtype, tier, self.device, channels_last=layout, folder=self.folder)

    def take(self, store: ActivationStore, cut: int, wanted: Tier) -> None:
        """Read from ``store`` from now on; the one before is freed."""
        self.close()
        self.store = store
        self.chain.append((cut, wanted, self.chunk))
        self._rows = self._first_rows(self.active)
        if store.tier != wanted:
            self.note(f"no room for a store of {store.nbytes} bytes in tier {wanted}: it went to tier {store.tier}")

    def advance(self, chunk: int) -> int:
        """Draw from set ``chunk`` of the stream, the next one, from now on.

        With a store, what arrives passes once through the dropped stages and takes the rows of what left. An exception
        on the way leaves everything as it was, but for those rows.

        Returns:
            views that passed; 0 without a store.
        """
        if self.store is None:
            self.chunk = chunk
            return 0
        rows = self._next_rows(self._rows, chunk)
        new = self.stream.arrivals(chunk)
        try:
            self._admit(new, rows)
        except StoreLost as lost:
            self.note(f"{lost}: the store is rebuilt")
            self.rebuild()
            self._admit(new, rows)
        self._rows, self.chunk = rows, chunk
        return len(new) * self.views.count

    def _first_rows(self, active: Tensor) -> Tensor:
        return first_rows(self.views.all_keys(active), self.samples * self.views.count)

    def _next_rows(self, rows: Tensor, chunk: int) -> Tensor:
        return next_rows(rows, self.views.all_keys(self.stream.sets[chunk]), self.capacity)

    def renew(self, epoch: int) -> int:
        """Make the views anew whose turn it is in this epoch; nothing without a store, or when that was done.

        Returns:
            views that passed through all dropped stages.
        """
        last = self.renewals[-1] if self.renewals else None
        done = last is not None and (last[1], last[3]) >= (self.chunk, epoch)
        if not self.chain or not self.views.renewed or done:
            return 0
        if self.store is None:  # making it again was cut short
            self.rebuild()
        start = self._next_turn()
        batches = self._turn(self.chunk, start)
        self.renewals.append((len(self.chain), self.chunk, start, epoch))
        try:
            try:
                self._pass(batches, self._rows, len(self.renewals))
            except StoreLost as lost:
                self.note(f"{lost}: the store is rebuilt")
                self.rebuild()
        except BaseException:  # some rows are new ones: the old ones can be made again
            self.renewals.pop()
            self.close()
            raise
        return sum(map(len, batches))

    def _renewable(self, chunk: int) -> Tensor:
        """The keys that take turns: every view of what can be drawn, but for those that are looked at to compare networks."""
        keys = self.views.all_keys(self.stream.sets[chunk])
        return keys[~torch.isin(keys, self._probe_keys(chunk, self.probed))]

    def _turn(self, chunk: int, start: int) -> list[Tensor]:
        return self.views.due(self._renewable(chunk), start, self.batch_size)

    def _next_turn(self) -> int:
        """Where the next one begins: behind the last, in another chunk as far along."""
        if not self.renewals:
            return 0
        _, chunk, start, _ = self.renewals[-1]
        before, now = len(self._renewable(chunk)), len(self._renewable(self.chunk))
        return (start + self.views.share(before)) % before * now // before if before else 0

    def _admit(self, new: Tensor, rows: Tensor) -> None:
        self._pass(self.views.passes(new, self.batch_size), rows)

    @torch.no_grad()
    def _pass(self, batches: Sequence[Tensor], rows: Tensor, renewal: int = 0) -> None:
        """Send views through all dropped stages into their rows."""
        assert self.store is not None
        unkeep_store(self.store)
        limit = self.store.largest
        self._expect(batches, renewal)
        for keys in batches:
            self.on_batch()
            x = self._through(self._images(keys, renewal), self.stored_cut)
            reached = float(torch.linalg.vector_norm(x, math.inf))
            if reached > limit:
                self.note(
                    f"activations of new samples reach {reached:.3g}, and a store in {self.dtype} ends at {limit:.3g}"
                )
                x = x.clamp(-limit, limit)
            self.store.write(rows[keys], x)

    def close(self, *, keep_file: bool = False) -> None:
        """Free the store, its file included unless ``keep_file``."""
        if self.store is not None:
            self.store.close(keep_file=keep_file)
            self.store = None

    # --- after a loss ------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What the current store must hold, see `ldbench.store.store_file`."""
        with self.autocast():
            mixed = torch.is_autocast_enabled(self.device.type), str(torch.get_autocast_dtype(self.device.type))
        facts = {
            "data": self.identity,
            "samples": self.samples,
            "views": [self.views.count, self.views.drawn_by, self.views.renewed, self.renewals],
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "cuts": [(cut, chunk) for cut, _, chunk in self.chain],
            "chunk": self.chunk,
            "sets": [hashlib.sha256(chosen.numpy().data).hexdigest() for chosen in self.stream.sets],
            "device": str(self.device),
            "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
            "autocast": mixed,
        }
        return prefix_fingerprint(self.stages[: self.stored_cut], facts)

    def keep(self) -> None:
        """Make a memory-mapped store fit to be taken up by another process. Raises ``OSError``."""
        if self.store is not None and self.identity is not None:
            keep_store(self.store, self.fingerprint())

    def state_dict(self) -> dict[str, Any]:
        """How the store came about, JSON-ready; its rows can be made again."""
        chain, renewals = ([list(entry) for entry in some] for some in (self.chain, self.renewals))
        return {"chain": chain, "chunk": self.chunk, "renewals": renewals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer: the store is taken from its file or made again."""
        self.chain = [(cut, tier, chunk) for cut, tier, chunk in state["chain"]]
        self.chunk = state["chunk"]
        self.renewals = [(links, chunk, start, epoch) for links, chunk, start, epoch in state.get("renewals", ())]
        if self.chain:
            self.recover()

    def recover(self) -> bool:
        """The store of ``chain``: from a file that fits in every byte (True), else by replaying the drops (False)."""
        store = find_store(self.folder, self.fingerprint(), self.device) if self.identity is not None else None
        if store is None:
            self.rebuild()
            return False
        numbers = self._numbers()
        for number in sorted(set(numbers[self.views.all_keys(self.active)].tolist())):  # targets aren't in the file
            parts = [keys[numbers[keys] == number] for keys in self.views.passes(self.active, self.batch_size)]
            batches = [keys for keys in parts if len(keys)]
            self._expect(batches, number)
            for keys in batches:
                self._images(keys, number)
        filled = self.chain[-1][2]
        self.store, self._rows = store, self._first_rows(self.stream.sets[filled])
        for chunk in range(filled + 1, self.chunk + 1):
            self._rows = self._next_rows(self._rows, chunk)
        return True

    def rebuild(self) -> None:
        """Replay the drops, arrivals and renewals: the same cuts, dtypes and batch boundaries give the same bits."""
        self.close()
        chain, chunk = self.chain, self.chunk
        self.chain, self.chunk = [], 0
        try:
            for cut, tier, filled in chain:
                self._advance_to(filled)
                store, _ = self.fill(cut, tier)
                self.take(store, cut, tier)
                self._repeat_renewals()
            self._advance_to(chunk)
        except BaseException:  # it can be made again later, by the same chain
            self.close()
            self.chain, self.chunk = chain, chunk
            raise

    def _advance_to(self, chunk: int) -> None:
        for later in range(self.chunk + 1, chunk + 1):
            self.advance(later)
            self._repeat_renewals()

    def _repeat_renewals(self) -> None:
        """Those of this store in this chunk; of each what was not made anew again."""
        here = [
            (number, self._turn(chunk, start))
            for number, (links, chunk, start, _) in enumerate(self.renewals, 1)
            if (links, chunk) == (len(self.chain), self.chunk)
        ]
        lasting = torch.zeros(self.samples * self.views.count, dtype=torch.int64)
        for number, batches in here:
            for keys in batches:
                lasting[keys] = number
        for number, batches in here:
            self._pass([keys for keys in batches if bool((lasting[keys] == number).any())], self._rows, number)

    def _numbers(self) -> Tensor:
        """Per view of a sample the number of the renewal that made it, 0 where none has."""
        numbers = torch.zeros(self.samples * self.views.count, dtype=torch.int64)
        for chunk in range(self.chunk + 1):
            numbers[self.views.all_keys(self.stream.arrivals(chunk))] = 0
            for number, (_, where, start, _) in enumerate(self.renewals, 1):
                if where == chunk:
                    for keys in self._turn(chunk, start):
                        numbers[keys] = number
        return numbers


def first_rows(active: Tensor, keys: int) -> Tensor:
    """Per key its row in a store that was filled with ``active`` in order, int64 [keys]; -1: it has none."""
    rows = torch.full((keys,), -1, dtype=torch.int64)
    rows[active] = torch.arange(len(active))
    return rows


def next_rows(rows: Tensor, active: Tensor, capacity: int) -> Tensor:
    """The rows when the keys ``active`` are to be held: who stays keeps its row, who comes takes the lowest free
    one.
    """
    following = torch.full_like(rows, -1)
    following[active] = rows[active]
    taken = torch.zeros(capacity, dtype=torch.bool)
    taken[following[following >= 0]] = True
    new = active[following[active] < 0]
    following[new] = torch.nonzero(~taken).flatten()[: len(new)]
    return following
