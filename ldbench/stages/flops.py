"""FLOPs per stage, counted by running the stages on the ``meta`` device: 2 per multiply-add, nothing estimated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

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
    """FLOPs of every stage for one sample of shape ``sample_shape`` (C, H, W). The stages are copied, not touched."""
    copied = copy.deepcopy(stages).to("meta").train()
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    x = torch.empty(BATCH, *sample_shape, device="meta")
    counts = []
    for stage in copied:
        counts.append(_count(stage, x))
        x = torch.empty(BATCH, *counts[-1].output_shape, device="meta")
    return counts


def _count(stage: nn.Module, x: Tensor) -> StageFlops:
    backward = {}
    for needs_gradient in (True, False):
        inputs = x.detach().requires_grad_(needs_gradient)
        with _counter() as counter:
            y = stage(inputs)
        forward = counter.get_total_flops()
        with _counter() as counter:
            if y.requires_grad:  # a bare shortcut has nothing to learn
                y.sum().backward()
        backward[needs_gradient] = counter.get_total_flops()
    return StageFlops(forward // BATCH, backward[True] // BATCH, backward[False] // BATCH, tuple(y.shape[1:]))


def activation_numel(flops: StageFlops) -> int:
    """Elements of a stage's output for one sample."""
    return math.prod(flops.output_shape)
