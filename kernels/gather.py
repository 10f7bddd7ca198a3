# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
"""``gather_rows`` as a Triton kernel: a minibatch out of the activation store, dequantised or converted on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .reference import as_batch, check_range

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
    """For a program (int32): the row it reads, where that row begins in the store and its copy in the result (elements),
    and its first element within the row (int32: a row has fewer than 2**31 elements; the store and the result may not)."""
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
    numel,
    CHANNELS: tl.constexpr,
    SPATIAL: tl.constexpr,
    LAST: tl.constexpr,
    GROUP: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[b, i] = rows[indices[b], i] * scales[indices[b], channel(i)], without the scale where CHANNELS is 0.

    channel(i) = i % CHANNELS where LAST, else i // SPATIAL; both constants, since a division by a variable costs more than
    the memory traffic. ``numel`` and ``stride`` divisible by 16 (Triton looks) give 16-byte loads and stores.
    """
    row, source, target, start = locate(tl.program_id(0), indices, tiles, stride, numel, BLOCK)
    if GROUP > 1:  # so many neighbours share a channel: one scale per thread instead of one per element
        group = start + tl.arange(0, BLOCK // GROUP) * GROUP
        i = group[:, None] + tl.arange(0, GROUP)[None, :]
        value = tl.load(rows + source + i, i < numel, 0).to(tl.float32)
        scale = tl.load(scales + row * CHANNELS + group // SPATIAL, group < numel, 0.0)
        tl.store(out + target + i, (value * scale[:, None]).to(OUT), i < numel)
    else:
        i = start + tl.arange(0, BLOCK)
        value = tl.load(rows + source + i, i < numel, 0)
        if CHANNELS > 0:
            channel = i % CHANNELS if LAST else i // SPATIAL
            scale = tl.load(scales + row * CHANNELS + channel, i < numel, 0.0)
            value = value.to(tl.float32) * scale
        tl.store(out + target + i, value.to(OUT), i < numel)


def launch(
    rows: Tensor, indices: Tensor, scales: Tensor | None, out: Tensor, channels_last: bool, channels: int, block: int = BLOCK
) -> None:  # fmt: skip
    """Fill ``out`` [B, numel], contiguous, from arguments already checked. ``channels`` counts where there are scales."""
    samples, numel = out.shape
    if not samples * numel:
        return
    channels = 0 if scales is None else channels
    spatial = numel // max(channels, 1)
    group = VECTOR if channels and not channels_last and spatial % VECTOR == 0 else 1
    block = max(16, min(block, triton.next_power_of_2(numel)))
    tiles = triton.cdiv(numel, block)
    with torch.cuda.device_of(out):  # Triton launches on the current device
        gather[(samples * tiles,)](
            rows, indices, rows if scales is None else scales, out, tiles, rows.stride(0), numel,
            channels, spatial, channels_last, group, _TRITON_DTYPES[out.dtype], block,
            num_warps=max(1, min(8, block // 512)), enable_fp_fusion=True,
        )  # fmt: skip


def serves(rows: Tensor, wanted: torch.dtype, numel: int) -> bool:
    """Whether the kernel knows the dtypes and the layout."""
    known = rows.dtype in _TRITON_DTYPES and wanted in _TRITON_DTYPES and wanted != torch.int8
    return known and rows.stride(1) == 1 and numel < 2**31 - BLOCK


@torch.library.custom_op("ldbench::gather_rows", mutates_args=())
def gather_rows_op(
    rows: Tensor, indices: Tensor, scales: Tensor | None, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """``ldbench.kernels.gather_rows`` by the kernel. The result lies with the indices if the rows are on the host."""
    device = rows.device if rows.is_cuda else indices.device
    if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        check_range(indices, len(rows))
    out = torch.empty(len(indices), math.prod(shape), dtype=dtype, device=device)
    launch(rows, indices.to(device, non_blocking=True), scales, out, channels_last, shape[0] if shape else 1)
    return as_batch(out, shape, channels_last)


@gather_rows_op.register_fake
def _(
    rows: Tensor, indices: Tensor, scales: Tensor | None, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    device = rows.device if rows.is_cuda else indices.device
    out = torch.empty(indices.shape[0], math.prod(shape), dtype=dtype, device=device)
    return as_batch(out, shape, channels_last)


@register_flop_formula(torch.ops.ldbench.gather_rows)
def gather_flops(
    rows: Sequence[int], indices: Sequence[int], scales: Sequence[int] | None, shape: Sequence[int], *_: object, **__: object
) -> int:  # fmt: skip
    """One multiplication per element where there are scales; conversions are free, as in PyTorch's counter."""
    return 0 if scales is None else indices[0] * math.prod(shape)
