"""Transforms of images as users write them, good and bad, to be named as package.module:factory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Transform = Callable[[Tensor], Any]


def dots(image_size: int) -> Transform:
    """Sets a pixel each by torch's, NumPy's and Python's global random numbers."""

    def transform(image: Tensor) -> Tensor:
        changed = image.clone()
        changed[:, int(torch.randint(image_size, ())), 0] = 255
        changed[:, np.random.randint(image_size), 1] = 254  # noqa: NPY002 - as users do
        changed[:, random.randrange(image_size), 2] = 253
        return changed

    return transform


MADE: list[int] = []


def counted(image_size: int) -> Transform:
    """Notes every call of this factory in ``MADE``."""
    MADE.append(image_size)
    return lambda image: image


def nothing_named(size: int) -> Transform:
    return lambda image: image


def no_transform(image_size: int) -> int:
    return image_size


def floats(image_size: int) -> Transform:
    return lambda image: image / 255


def smaller(image_size: int) -> Transform:
    return lambda image: image[:, 1:]


def an_array(image_size: int) -> Transform:
    return lambda image: image.numpy()


def fails(image_size: int) -> Transform:
    def transform(image: Tensor) -> Tensor:
        raise ValueError("no such image")

    return transform
