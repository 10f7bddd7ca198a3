"""Random streams: every draw of a run is a pure function of its seed, a stream's name and a position.

Nothing here keeps state, so a run can be resumed at any step (``seed_streams`` is for what draws from the global streams). The bits come from SHA-256 and from NumPy's Philox bit
generator, whose output NumPy keeps from version to version (the sampling methods on top carry no such promise), and
they are always drawn on the CPU: the device has no say in them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_WORD_MASK = (1 << 64) - 1


def derive_seed(seed: int, stream: str, *parts: int) -> int:
    """Returns a seed in [0, 2**63) for one named stream of a run.

    Args:
        seed: the run's seed, any integer.
        stream: what the stream is for, such as "weights", "order", "augment" or "dropout".
        parts: positions within the stream (an epoch, a step); different parts give unrelated seeds.
    """
    text = "\0".join((stream, str(seed), *map(str, parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def random_words(count: int, seed: int) -> npt.NDArray[np.uint64]:
    """Returns ``count`` random 64-bit words, uint64 [count]; the first k are the same for every count >= k."""
    key = np.array([seed & _WORD_MASK, 0], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)


def sample_order(n: int, seed: int, epoch: int) -> Tensor:
    """Returns the order in which an epoch visits its samples: a permutation, int64 [n] on the CPU.

    Args:
        n: samples in the split.
        seed: the run's seed, or the seed of its "order" stream.
        epoch: which epoch; every epoch has an order of its own.
    """
    return torch.from_numpy(np.argsort(random_words(n, derive_seed(seed, "order", epoch)), kind="stable"))


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Returns a permutation, int64 [N] on the CPU, whose every prefix has the classes in about their proportions.

    Classes of one size take turns, so their counts in a prefix differ by one at most. Subsets taken as prefixes are
    stratified and nested.

    Args:
        labels: int64 [N] on the CPU, classes from 0.
        seed: fixes the order within each class and between classes.
    """
    classes, words = labels.numpy(), random_words(len(labels), derive_seed(seed, "samples"))
    shuffled = np.argsort(words, kind="stable")
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    counts = np.bincount(classes)
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    # The k-th sample of a class of n stands at (k + u) / n of the whole. A random u of each class's own keeps classes
    # of one or two samples from all standing at the same place.
    offset = random_words(len(counts), derive_seed(seed, "classes")) / 2.0**64
    place = (rank + np.repeat(offset, counts)) / np.repeat(counts, counts)
    return torch.from_numpy(by_class[np.argsort(place, kind="stable")])


@contextmanager
def preserved_streams() -> Iterator[None]:
    """Whatever the block draws, the global random states of torch (CPU), NumPy and Python are the old ones after it."""
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - transforms do
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(host)


def seed_streams(seed: int) -> None:
    """Seed the global random states of torch (CPU), NumPy and Python, for code that draws from these."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(seed)
