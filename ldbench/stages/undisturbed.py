"""Run a user's modules without leaving a trace in them: buffers, flags, and random states come back as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldbench.stages.train_mode import preserved_modes


def remember_buffers(module: nn.Module) -> Callable[[], None]:
    """Returns what puts the module's buffers back as they are now: the same tensors, holding the same values.

    Tensors that are neither parameter nor buffer, such as the weight that pruning computes in every forward pass, are
    put back, too.
    """
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    plain = [(part, name, value) for part in module.modules() for name, value in vars(part).items() if _is_plain(value)]

    @torch.no_grad()
    def undo() -> None:
        for part, name, buffer, before in buffers:
            part._buffers[name] = buffer
            buffer.copy_(before)
        for part, name, value in plain:
            vars(part)[name] = value

    return undo


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


@contextmanager
def preserved_random(device: torch.device) -> Iterator[None]:
    """The random states of the CPU and of ``device`` are the old ones afterwards."""
    host = torch.get_rng_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if there is not None:
            torch.cuda.set_rng_state(there, device)


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever the block runs ``module`` for and however it ends: buffers, train/eval flags and random states are the
    old ones afterwards. Parameters and their gradients are the block's own business.
    """
    undo = remember_buffers(module)
    with preserved_random(device), preserved_modes(module):
        try:
            yield
        finally:
            undo()
