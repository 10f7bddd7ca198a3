"""What a reader of data sets hands over, and the one line it fails with."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from ldbench.errors import UserError, one_line


class Pool(Protocol):
    """The images of one original split, read on demand."""

    @property
    def labels(self) -> Tensor:
        """int64 [N] on the CPU."""
        ...

    def read(self, indices: Tensor, side: int) -> Tensor:
        """The images at ``indices`` (int64 [n]) at ``side`` pixels: uint8 [n, C, side, side], contiguous."""
        ...


@dataclass(frozen=True)
class ArrayPool:
    """Images in memory, uint8 [N, C, S, S], and their labels."""

    images: Tensor
    labels: Tensor

    def read(self, indices: Tensor, side: int) -> Tensor:
        """See Pool.read."""
        if self.images.shape[2] == side:
            return self.images[indices]
        out = self.images.new_empty(len(indices), self.images.shape[1], side, side)
        for start in range(0, len(indices), 1024):
            images = self.images[indices[start : start + 1024]]
            # On bytes this rounds as PIL does.
            out[start : start + 1024] = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return out


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        class_names: in label order.
        channels: 1 grey, 3 RGB.
        train, test: the original splits.
        side: of the images as they are, in pixels (the median shorter side where sizes vary).
        uniform: every image is square and has that side.
        default_side: what to bring the images to when nobody says.
        synthetic: the images are random.
        notes: for people: what was left out.
    """

    class_names: tuple[str, ...]
    channels: int
    train: Pool
    test: Pool
    side: int
    uniform: bool
    default_side: int
    synthetic: bool = False
    notes: tuple[str, ...] = ()


def missing(name: str, places: list[Path], fetched: str = "", absent: Sequence[str] = ()) -> UserError:
    """The error for a data set that is in none of ``places``.

    ``fetched`` names another way to get it; ``absent`` the files that the first place lacks where it has others.
    """
    where = " or ".join(str(place) for place in places)
    lacking = f" ({', '.join(absent)} missing in {places[0]})" if absent else ""
    return UserError(
        f"{name} not found in {where}{lacking}: add --download to fetch it{fetched}, or point --data-root at it"
    )


def corrupt(path: Path, reason: str) -> UserError:
    """The error for a file that is there and cannot be used."""
    return UserError(f"{path} is damaged ({reason}): delete it and run again with --download")


@contextmanager
def download_errors(name: str, root: Path) -> Iterator[None]:
    """Turns whatever a failed download raises into one line."""
    try:
        yield
    except (OSError, RuntimeError, RecursionError, HTTPException, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{name} could not be downloaded to {root}: {one_line(error)}") from error
