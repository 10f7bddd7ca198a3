"""Looks at some samples of a user's data before a run: are they what training reads, and are they always the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ldbench.data.batch_source import BatchSource
from ldbench.data.dataset_source import DatasetSource
from ldbench.data.items import Failed
from ldbench.errors import UserError
from ldbench.seeds import preserved_streams

_SAMPLES, _VIEWED, _VIEWS = 8, 8, 4


def check_samples(source: BatchSource) -> None:
    """Read a few samples, the first and the last among them. Raises ``UserError`` that names what is wrong with one."""
    if isinstance(source, DatasetSource):
        with preserved_streams():
            read = source.items.__getitems__(_spread(len(source), _SAMPLES))
        if isinstance(read, Failed):
            raise UserError(read.reason) from read.cause


def gives_random_views(source: BatchSource) -> bool:
    """Whether a source that draws its views itself gives another one each time: random transforms. Some samples tell."""
    return _differ(source, range(_VIEWS))


def repeats_views(source: BatchSource) -> bool:
    """Whether a view is the same whenever it is read: not where transforms draw from generators of their own."""
    return not _differ(source, [0] * _VIEWS)


def _differ(source: BatchSource, views: Iterable[int]) -> bool:
    of_view = getattr(source, "of_view", None)
    if of_view is None:
        return False
    chosen, read = torch.tensor(_spread(len(source), _VIEWED)), []
    for view in views:
        try:
            with preserved_streams():
                read.append(source.batch(chosen, of_view(chosen, view)))
        except UserError:  # told where it is asked for
            continue
    return any(not _same(a, b) for other in read[1:] for a, b in zip(other, read[0], strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly spread, both ends among them."""
    some = min(most, count)
    return sorted({round(i * (count - 1) / max(some - 1, 1)) for i in range(some)})
