"""Which samples can be drawn when: all of them all the time, or chunks in turn beside a bounded memory.

Everything is a pure function of the seed, so every method of a seed meets the same stream and remembers the same
samples, and a run can be gone on with in any chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldbench.seeds import derive_seed, random_words


class Stream:
    """The sets of samples that can be drawn, one after another.

    Args:
        sets: sample indices, int64 on the CPU, ascending and without repetition, at least one each.

    Attributes:
        capacity: size of the largest set: what a store has to hold.
    """

    def __init__(self, sets: Sequence[Tensor]) -> None:
        if not sets or not all(len(chosen) and bool((chosen[1:] > chosen[:-1]).all()) for chosen in sets):
            raise ValueError("a stream is made of sets of samples, each ascending and not empty")
        self.sets = list(sets)
        self.capacity = max(map(len, self.sets))

    @classmethod
    def whole(cls, samples: int) -> Stream:
        """Every sample, all the time."""
        return cls([torch.arange(samples)])

    def __len__(self) -> int:
        """Number of sets."""
        return len(self.sets)

    def arrivals(self, chunk: int) -> Tensor:
        """The samples of set ``chunk`` that are not in the one before it, ascending; all of the first set."""
        now = self.sets[chunk]
        return now if chunk == 0 else now[~torch.isin(now, self.sets[chunk - 1], assume_unique=True)]

    def still_to_come(self, chunk: int) -> int:
        """How many samples arrive after set ``chunk``."""
        return sum(len(self.arrivals(later)) for later in range(chunk + 1, len(self.sets)))


def arrival_order(labels: Tensor, seed: int, stream: str) -> Tensor:
    """The order in which a run's samples arrive: a permutation, int64 [N] on the CPU.

    Args:
        labels: int64 [N] on the CPU.
        seed: the run's seed.
        stream: "shuffled", or "by-class": class after class, the classes in an order of the seed's own.
    """
    shuffled = np.argsort(random_words(len(labels), derive_seed(seed, "stream")), kind="stable")
    if stream == "by-class":
        place = np.argsort(random_words(int(labels.max()) + 1, derive_seed(seed, "stream classes")), kind="stable")
        rank = np.argsort(place, kind="stable")
        shuffled = shuffled[np.argsort(rank[labels.numpy()[shuffled]], kind="stable")]
    return torch.from_numpy(shuffled)


def chunked(labels: Tensor, seed: int, *, chunks: int, memory: int, stream: str = "shuffled") -> Stream:
    """A stream of ``chunks`` equal chunks, each together with a memory of at most ``memory`` samples seen before.

    The memory is a uniform sample without replacement of everything seen before the chunk, as a reservoir would hold
    it: the ``memory`` samples with the smallest keys, one random key a sample. Whatever leaves it never comes back. Up
    to ``chunks - 1`` samples at the end are left out, so that all chunks are of one size.
    """
    size = len(labels) // chunks
    order = arrival_order(labels, seed, stream)
    keys = random_words(len(labels), derive_seed(seed, "memory"))
    sets = []
    for chunk in range(chunks):
        seen, new = order[: chunk * size], order[chunk * size : (chunk + 1) * size]
        kept = seen[torch.from_numpy(np.argsort(keys[seen.numpy()], kind="stable")[:memory])]
        sets.append(torch.cat([kept, new]).sort().values)
    return Stream(sets)


def full_steps(stream: Stream, batch_size: int, epochs: int) -> int:
    """Steps of ``epochs`` whole epochs over every set of the stream; an epoch's last, smaller minibatch is left out."""
    return epochs * sum(len(chosen) // batch_size for chosen in stream.sets)


def mean_steps(stream: Stream, batch_size: int) -> int:
    """Steps of an epoch, on average over the sets of the stream, rounded down."""
    return full_steps(stream, batch_size, 1) // len(stream.sets)
