"""Train or evaluation mode of a network's modules: each one's own flag is remembered and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserved_modes(module: nn.Module) -> Iterator[None]:
    """Whatever the block sets and however it ends, every module's own train/eval flag is the old one afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` is in evaluation mode within the block; afterwards every module in it has its own flag again."""
    with preserved_modes(module):
        module.eval()
        yield
