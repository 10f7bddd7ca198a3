# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
"""``gather_rows`` as a Triton kernel: a minibatch out of the activation store, dequantised or converted on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from .plan import capturing
from .reference import check_range

_TRITON_DTYPES = {
    torch.int8: tl.int8,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
BLOCK = 4096  # elements per program: 16 per thread at 8 warps, one 16-byte load of int8
VECTOR = 16  # int8 elements in a 16-byte load


@triton.jit
def locate(program, indices, tiles, stride, numel, BLOCK: tl.constexpr):
    """For a program (int32): the row it reads, where that row begins in the store and its copy in the result
    (elements), and its first element within the row (int32: only a row has surely fewer than 2**31 elements)."""
    sample = (program // tiles).to(tl.int64)
    start = (program % tiles) * BLOCK
    row = tl.load(indices + sample).to(tl.int64)
    return row, row * stride, sample * numel, start


@triton.jit
def gather(
    rows,
    indices,
    scales,
    out,
    tiles,
    stride,
    width,
    numel,
    CHANNELS: tl.constexpr,
    SPATIAL: tl.constexpr,
    LAST: tl.constexpr,
    GROUP: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[b, i] = rows[indices[b], i] * scales[indices[b], channel(i)], without the scale where CHANNELS is 0.

    channel(i) = i % CHANNELS where LAST, else i // SPATIAL; both constants, since a division by a variable costs more
    than the memory traffic. A row has ``width`` elements to read, padding included, and ``numel`` to write: ``width``
    and ``stride`` divisible by 16 (Triton looks) give 16-byte loads, ``numel`` divisible by 16 gives 16-byte stores.
    """
    row, source, target, start = locate(tl.program_id(0), indices, tiles, stride, numel, BLOCK)
    if GROUP > 1:  # so many neighbours share a channel: one scale per thread instead of one per element
        group = start + tl.arange(0, BLOCK // GROUP) * GROUP
        i = group[:, None] + tl.arange(0, GROUP)[None, :]
        value = tl.load(rows + source + i, i < width, 0).to(tl.float32)
        scale = tl.load(scales + row * CHANNELS + group // SPATIAL, group < numel, 0.0)
        tl.store(out + target + i, (value * scale[:, None]).to(OUT), i < numel)
    else:
        i = start + tl.arange(0, BLOCK)
        value = tl.load(rows + source + i, i < width, 0)
        if CHANNELS > 0:
            channel = i % CHANNELS if LAST else i // SPATIAL
            scale = tl.load(scales + row * CHANNELS + channel, i < numel, 0.0)
            value = value.to(tl.float32) * scale
        tl.store(out + target + i, value.to(OUT), i < numel)


def launch(
    rows: Tensor, indices: Tensor, scales: Tensor | None, out: Tensor, channels_last: bool, block: int = BLOCK
) -> None:
    """Fill ``out`` [B, ...], dense with a sample after the other and each in the order of its row, from arguments
    already checked; rows may be pinned while the rest is on a GPU."""
    samples, numel = out.shape[0], math.prod(out.shape[1:])
    if not samples * numel:
        return
    channels, factors = 0, rows
    if scales is not None:
        channels, factors = scales.shape[1], scales.contiguous()
    spatial = numel // max(channels, 1)
    last = channels_last and channels > 1
    group = VECTOR if channels and not last and spatial % VECTOR == 0 else 1
    block = max(16, min(block, 1 << (numel - 1).bit_length()))
    tiles = -(-numel // block)  # triton.cdiv and next_power_of_2 take 6 us each
    with torch.cuda.device_of(out):  # Triton launches on the current device
        warps = max(1, min(8, block // 512))
        arguments = (rows, indices.contiguous(), factors, out, tiles, rows.stride(0), rows.shape[1], numel)
        constants = (channels, spatial, last, group, _TRITON_DTYPES[out.dtype], block)
        gather[(samples * tiles,)](*arguments, *constants, num_warps=warps, enable_fp_fusion=True)


def serves(rows: Tensor, wanted: torch.dtype, numel: int) -> bool:
    """Whether the kernel knows the dtypes and the layout."""
    known = rows.dtype in _TRITON_DTYPES and wanted in _TRITON_DTYPES and wanted != torch.int8
    return known and rows.stride(1) == 1 and numel < 2**31 - BLOCK


def _minibatch(
    samples: int, shape: Sequence[int], dtype: torch.dtype, channels_last: bool, device: torch.device
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(samples, *shape, dtype=dtype, device=device, memory_format=layout)


def _gathered(
    rows: Tensor,
    indices: Tensor,
    scales: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
) -> Tensor:
    if not capturing(device):
        check_range(indices, len(rows))
    if indices.device != device:
        # Pinned memory is read by the device after this call, when the caller may have put the next indices there.
        indices = (indices.clone() if indices.is_pinned() else indices).to(device, non_blocking=True)
    out = _minibatch(indices.shape[0], shape, dtype, channels_last, device)
    launch(rows, indices, scales, out, channels_last)
    return out


# ``gather_rows`` as the compiler and the FLOP counter see it.
gather_rows_op = torch.library.custom_op("ldbench::gather_rows", _gathered, mutates_args=())


@gather_rows_op.register_fake
def _(rows: Tensor, indices: Tensor, scales: Tensor | None, *wanted: Any) -> Tensor:
    return _minibatch(indices.shape[0], *wanted)


def gather_rows(
    rows: Tensor,
    indices: Tensor,
    scales: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
) -> Tensor:
    """``ldbench.kernels.gather_rows`` by the kernel, from arguments already checked.

    The custom op is taken where somebody watches, the compiler or a dispatch mode such as the FLOP counter: it costs
    more host time than the rest of the call.
    """
    if not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None:
        return _gathered(rows, indices, scales, shape, dtype, channels_last, device)
    batch: Tensor = gather_rows_op(rows, indices, scales, list(shape), dtype, channels_last, device)
    return batch


@register_flop_formula(torch.ops.ldbench.gather_rows)
def gather_flops(
    rows: object, indices: Sequence[int], scales: Sequence[int] | None, shape: Sequence[int], *_: object, **__: object
) -> int:
    """One multiplication per element where there are scales; conversions are free, as in PyTorch's counter."""
    return 0 if scales is None else indices[0] * math.prod(shape)
