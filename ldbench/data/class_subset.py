"""Some classes of a data set: ``fashion-mnist[5-9]``, ``digits[0,2,7-9]``, labels renumbered from 0 in their order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ldbench.data.raw import Pool, Source
from ldbench.errors import UserError, shown


@dataclass(frozen=True)
class _ChosenPool:
    """Those images of ``pool`` that stand at ``places``, with labels of their own."""

    pool: Pool
    places: Tensor
    labels: Tensor

    def read(self, indices: Tensor, side: int) -> Tensor:
        """See Pool.read."""
        return self.pool.read(self.places[indices], side)


def select(name: str, source: Source, ranges: list[tuple[int, int]]) -> Source:
    """``source`` with the chosen classes alone. Raises ``UserError`` for classes it lacks, or without images."""
    have = len(source.class_names)
    if ranges[-1][1] >= have:
        raise UserError(f"data set {shown(name)}: there is no class {ranges[-1][1]}: its classes are 0 to {have - 1}")
    chosen = [number for first, last in ranges for number in range(first, last + 1)]
    renumbered = torch.full((have,), -1, dtype=torch.int64)
    renumbered[chosen] = torch.arange(len(chosen))

    def pool(whole: Pool, part: str) -> Pool:
        labels = renumbered[whole.labels]
        places = torch.nonzero(labels >= 0).flatten()
        counts = torch.bincount(labels[places], minlength=len(chosen))
        if part == "train" and not bool(counts.all()):
            raise UserError(f"data set {shown(name)}: class {chosen[int(counts.argmin())]} has no training image")
        if not len(places):
            raise UserError(f"data set {shown(name)}: these classes have no {part} image")
        return _ChosenPool(whole, places, labels[places])

    names = tuple(source.class_names[number] for number in chosen)
    return dataclasses.replace(
        source, class_names=names, train=pool(source.train, "train"), test=pool(source.test, "test")
    )
