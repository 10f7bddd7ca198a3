"""Which views of a sample a store holds, and which of them training reads.

A cached activation cannot be augmented any more. So that training goes on seeing a sample differently, each passes the
dropped stages several times, augmented anew each time, and a step reads one of the rows that were made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldbench.errors import UserError, shown
from ldbench.policies.base import is_number
from ldbench.seeds import derive_seed, random_words

Draw = Callable[[Tensor, int], Any]
_BLOCK = 64


@dataclass(frozen=True)
class Views:
    """``count`` views of every sample.

    A view of a sample has a key, ``sample x count + view``, int64: what a store's rows belong to.

    Attributes:
        count: views of each sample.
        draw: gives the augmentation of samples (int64 [B], CPU) for a view (from 0), as their ``BatchSource`` applies it;
            None: the source gives what it gives, the same every time or another view. Views that are made anew have
            numbers from ``count`` on.
        drawn_by: what draws them, in words that differ where the draws do.
        seed: of the choice among them, a stream of its own.
        renewed: share of all views that is made anew in every epoch.
        plain: a single view is the sample as the source gives it, without a draw.

    Raises:
        UserError: ``count`` is no whole number from 1 up.
    """

    count: int = 1
    draw: Draw | None = None
    drawn_by: str = ""
    seed: int = 0
    renewed: float = 0.0
    plain: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or not 1 <= self.count <= 1024:
            raise UserError(f"views of a sample are a whole number from 1 to 1024, not {shown(self.count)}")
        if not is_number(self.renewed) or not 0 <= self.renewed <= 1:
            raise UserError(f"the share of the views made anew lies between 0 and 1, not {shown(self.renewed)}")
        if self.renewed and self.count == 1 and self.plain:
            raise UserError(
                "one view, the sample as it is, is not made anew: ask for 2 views or more (--cache-views 2, views=2)"
            )

    @property
    def drawn(self) -> bool:
        """Whether views are drawn at all."""
        return self.draw is not None and not (self.plain and self.count == 1)

    def passes(self, samples: Tensor, batch_size: int) -> list[Tensor]:
        """Minibatches of keys, in the order in which the views of ``samples`` (int64 [N]) are made: all of one view,
        then all of the next, so that a minibatch holds a view of each of its samples.
        """
        views = range(self.count) if len(samples) else ()
        return [part for view in views for part in torch.split(self.keys(samples, view), batch_size)]

    def keys(self, samples: Tensor, view: int = 0) -> Tensor:
        """The keys of a view of ``samples``."""
        return samples * self.count + view

    def all_keys(self, samples: Tensor) -> Tensor:
        """The keys of every view of ``samples``, in the order of ``passes``."""
        return torch.cat([self.keys(samples, view) for view in range(self.count)])

    def samples(self, keys: Tensor) -> Tensor:
        """The samples that keys belong to."""
        return keys // self.count if self.count > 1 else keys

    def augmentation(self, keys: Tensor, renewal: int = 0) -> Any:
        """The draw for a minibatch of ``passes`` or ``due``; None: none. ``renewal``: how often views were made anew
        before and now.
        """
        if self.draw is None or not self.drawn or not len(keys):
            return None
        return self.draw(self.samples(keys), int(keys[0]) % self.count + renewal * self.count)

    def share(self, keys: int) -> int:
        """How many of so many keys are made anew at a time."""
        return math.ceil(self.renewed * keys)

    def due(self, keys: Tensor, start: int, batch_size: int) -> list[Tensor]:
        """Minibatches of what is to be made anew now: ``keys`` take turns in their order, round and round, from place
        ``start`` on; a minibatch is of one view.
        """
        if not len(keys):
            return []
        turn = keys[torch.arange(start, start + self.share(len(keys))) % len(keys)]
        return [part for run in _runs(turn % self.count) for part in torch.split(turn[run], batch_size)]

    def chosen(self, samples: Tensor, minibatch: int) -> Tensor:
        """The keys that the ``minibatch``-th one of the run (from 0) reads of ``samples``: a view of each, drawn anew,
        a pure function of seed and minibatch.
        """
        if self.count == 1:
            return samples
        block, place = divmod(minibatch, _BLOCK)
        return samples * self.count + _drawn(self.seed, block, len(samples), self.count)[place]


@functools.lru_cache(maxsize=4)
def _drawn(seed: int, block: int, samples: int, count: int) -> Tensor:
    """Views in [0, count) for some minibatches at once, int64 [_BLOCK, samples]: drawing takes longer than reading."""
    words = random_words(_BLOCK * samples, derive_seed(seed, "views", block))
    # The upper half of a word, scaled: its bias is below one in a million.
    drawn = ((words >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    return torch.from_numpy(drawn.astype(np.int64)).view(_BLOCK, samples)


def _runs(values: Tensor) -> list[slice]:
    """The stretches of equal neighbours."""
    _, lengths = torch.unique_consecutive(values, return_counts=True)
    ends = lengths.cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths.tolist(), strict=True)]
