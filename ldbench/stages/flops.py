"""FLOPs per stage, counted by running the stages on the ``meta`` device: 2 per multiply-add, nothing estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ldbench.stages.undisturbed import undisturbed

BATCH = 2  # BatchNorm in train mode refuses one value per channel


@dataclass(frozen=True)
class StageFlops:
    """FLOPs of one stage per sample, in train mode.

    Attributes:
        forward: forward pass.
        backward: backward pass, gradient of the input included.
        backward_first: backward pass of a first live stage, whose input needs no gradient.
        output_shape: shape of the stage's output for one sample.
    """

    forward: int
    backward: int
    backward_first: int
    output_shape: tuple[int, ...]


def _convolution_backward(grad_shape: Any, x_shape: Any, w_shape: Any, *rest: Any, **_: Any) -> int:
    """Each wanted gradient of a convolution takes the forward pass's multiply-adds, whatever the groups.

    torch 2.13's own formula over-counts grouped convolutions. ``rest`` are the other arguments of
    ``aten::convolution_backward``: bias sizes, stride, padding, dilation, transposed, output padding, groups, and
    which gradients are wanted.
    """
    transposed, output_mask = rest[4], rest[7]
    forward = conv_flop_count(list(x_shape), list(w_shape), list(grad_shape), transposed=transposed)
    return int(forward) * (int(output_mask[0]) + int(output_mask[1]))


def _counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def count_stage_flops(stages: nn.Sequential, sample_shape: Sequence[int]) -> list[StageFlops]:
    """FLOPs of every stage for one sample of shape ``sample_shape`` (C, H, W). The stages are not changed.

    What cannot run on the ``meta`` device, such as a module that keeps a tensor outside its buffers, is run where it
    is, on zeros.
    """
    try:
        return _count_all(stages, sample_shape, torch.device("meta"))
    except (RuntimeError, NotImplementedError):
        return _count_all(stages, sample_shape, _device(stages))


def _count_all(stages: nn.Sequential, sample_shape: Sequence[int], device: torch.device) -> list[StageFlops]:
    shape, counts = tuple(sample_shape), []
    with undisturbed(stages, _device(stages)):
        for module in stages.modules():
            module.train()
        for stage in stages:
            counts.append(_count(stage, shape, device))
            shape = counts[-1].output_shape
    return counts


def _device(stages: nn.Module) -> torch.device:
    first = next(stages.parameters(), None)  # a bare shortcut has none
    return torch.device("cpu") if first is None else first.device


def _count(stage: nn.Module, shape: Sequence[int], device: torch.device) -> StageFlops:
    # Called with parameters of its own: nothing of the user's, a hook on a gradient say, hears of the backward pass.
    held = dict(stage.named_parameters()) | dict(stage.named_buffers())
    state = {name: value.detach().to(device) for name, value in held.items()}
    floating = [value.dtype for value in state.values() if value.is_floating_point()]
    parameters = [state[name].requires_grad_(True) for name, _ in stage.named_parameters()]
    x = torch.zeros(BATCH, *shape, device=device, dtype=floating[0] if floating else None)
    backward = {}
    for needs_gradient in (True, False):
        inputs = x.detach().requires_grad_(needs_gradient)
        with _counter() as counter:
            y = functional_call(stage, state, (inputs,))
        forward = counter.get_total_flops()
        wanted = [*parameters, inputs] if needs_gradient else parameters
        with _counter() as counter:
            if y.requires_grad:  # a bare shortcut has nothing to learn
                torch.autograd.grad(y.sum(), wanted, allow_unused=True)
        backward[needs_gradient] = counter.get_total_flops()
    return StageFlops(forward // BATCH, backward[True] // BATCH, backward[False] // BATCH, tuple(y.shape[1:]))
