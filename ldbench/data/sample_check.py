"""Looks at some samples of a user's data before a run: are they what training reads, and are they always the same."""

from __future__ import annotations

import torch
from torch import Tensor

from ldbench.data.batch_source import BatchSource
from ldbench.data.dataset_source import DatasetSource
from ldbench.data.items import Failed
from ldbench.errors import UserError
from ldbench.seeds import preserved_streams

_SAMPLES, _VIEWED, _VIEWS = 8, 3, 4


def check_samples(source: BatchSource) -> None:
    """Read a few samples, the first and the last among them. Raises ``UserError`` that names what is wrong with one."""
    if isinstance(source, DatasetSource):
        with preserved_streams():
            read = source.items.__getitems__(_spread(len(source), _SAMPLES))
        if isinstance(read, Failed):
            raise UserError(read.reason) from read.cause


def gives_random_views(source: BatchSource) -> bool:
    """Whether a data set gives another view of a sample each time it is read: random transforms."""
    if not isinstance(source, DatasetSource):
        return False
    chosen = _spread(len(source), _VIEWED)
    with preserved_streams():
        views = [source.items.__getitems__(chosen) for _ in range(_VIEWS)]
    whole = [view for view in views if not isinstance(view, Failed)]
    return any(
        not _same(torch.as_tensor(a), torch.as_tensor(b))
        for view in whole[1:]
        for a, b in zip(view, whole[0], strict=True)
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly spread, both ends among them."""
    some = min(most, count)
    return sorted({round(i * (count - 1) / max(some - 1, 1)) for i in range(some)})
