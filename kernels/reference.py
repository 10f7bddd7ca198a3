"""Parameter-delta norms and the gather of cached activations in plain PyTorch: oracle of the tests and path of CPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .plan import DeltaNormPlan, capturing
from .tables import counted

ALIGNMENT = 16  # bytes: the widest load of a GPU thread
PINNED_ALIGNMENT = 128  # bytes: rows read over PCIe start at a cache line
VALUES_PER_SCALE = 16  # fewer would make the float32 scales a quarter or more of what they scale


# Norms whose square single precision holds without loss to underflow or overflow.
SAFE_NORMS = (2.0**-40, 2.0**60)


def _norms(tensors: Sequence[Tensor], exact: Callable[[int], Tensor]) -> Tensor:
    """float64 [T]: the norm of each tensor, taken again from ``exact(i)`` where single precision loses it."""
    accumulate = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    norms = torch.stack(torch._foreach_norm(list(tensors), 2, accumulate)).double()
    low, high = SAFE_NORMS
    if accumulate == torch.float32:
        for i in (~((norms >= low) & (norms <= high))).nonzero()[:, 0].tolist():
            if tensors[i].any():  # a norm of 0 is exact where all is 0: unequal numbers never differ by 0
                norms[i] = torch.linalg.vector_norm(exact(i))
    return norms


@torch.no_grad()
def delta_norms(plan: DeltaNormPlan, out: Tensor, update: bool = True) -> Tensor:
    """``ldbench.kernels.delta_norms`` with ``out`` given."""
    if not torch.compiler.is_compiling():
        plan.follow()
        plan.check_out(out)
    device = out.device
    squares = torch.zeros(plan.n_layers, 2, dtype=torch.float64, device=device)
    groups: dict[torch.dtype, list[int]] = {}
    for i in counted(plan.params, plan.layer_list):
        groups.setdefault(plan.params[i].dtype, []).append(i)
    for dtype, group in groups.items():
        thetas, prevs = ([tensors[i] for i in group] for tensors in (plan.params, plan.snapshots))
        if dtype.itemsize < 4:  # a difference rounded to half precision is off by more than the norm may be
            thetas, prevs = ([tensor.float() for tensor in tensors] for tensors in (thetas, prevs))
        moved = _norms(
            torch._foreach_sub(thetas, prevs),
            lambda i, t=thetas, p=prevs: t[i].double() - p[i].double(),  # type: ignore[misc]
        )
        norms = _norms(prevs, lambda i, p=prevs: p[i].double())  # type: ignore[misc]
        layers = torch.tensor([plan.layer_list[i] for i in group], device=device)
        squares.index_add_(0, layers, torch.stack([moved, norms], dim=1).square())
    if update and plan.params:
        torch._foreach_copy_(plan.snapshots, plan.params)
    return out.copy_(squares.sqrt())


def row_stride(numel: int, dtype: torch.dtype, pinned: bool = False) -> int:
    """Elements from one row of a store to the next: ``numel`` padded to 16 bytes, to 128 in pinned host memory."""
    unit = (PINNED_ALIGNMENT if pinned else ALIGNMENT) // dtype.itemsize
    return -(-numel // unit) * unit


def check_range(indices: Tensor, rows: int) -> None:
    """Raise ``IndexError`` unless all ``indices`` lie in [0, rows). Waits for the device if they are on one."""
    if indices.numel():
        ends = torch.aminmax(indices)
        low, high = torch.stack(ends).tolist() if indices.is_cuda else (int(ends[0]), int(ends[1]))
        if not 0 <= low <= high < rows:
            raise IndexError(f"indices must lie between 0 and {rows - 1}; they reach from {low} to {high}")


def as_batch(flat: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """[B, numel] as [B, *shape], a view; a channels_last row holds H, W, C."""
    if not channels_last:
        return flat.view(flat.shape[0], *shape)
    channels, height, width = shape
    return flat.view(flat.shape[0], height, width, channels).permute(0, 3, 1, 2)


def gather_rows(
    rows: Tensor, indices: Tensor, scales: Tensor | None, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """``ldbench.kernels.gather_rows`` with arguments already checked, save for the range of the indices."""
    flat = rows[:, : math.prod(shape)]
    if rows.device.type == "cpu":
        where = indices
        try:
            batch = flat.index_select(0, where)  # checks the range as it goes, and is faster than indexing here
        except (IndexError, RuntimeError):  # which of the two depends on the shape
            check_range(indices, len(rows))
            raise
    else:
        if not capturing(rows.device):
            check_range(indices, len(rows))
        where = indices.to(rows.device)
        batch = flat[where]
    batch = as_batch(batch, shape, channels_last)
    if scales is None:
        return batch.to(dtype)
    factors = scales[where]
    return (batch * factors.view(*factors.shape, *[1] * (len(shape) - 1))).to(dtype)


def scale_count(shape: Sequence[int]) -> int:
    """How many scales an int8 row of one sample has: one per channel, and a single one where a channel holds fewer than
    16 values, since four bytes for so few would make the store larger than a float32 one."""
    return shape[0] if math.prod(shape[1:]) >= VALUES_PER_SCALE else 1


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 rows with one scale per sample and channel, or per sample for small maps (``scale_count``); the
    error is at most half a scale step.

    Plain PyTorch on every device: a store is written once and read every epoch.

    Args:
        x: [B, C, ...], floating; a channels_last x gives rows in that order.

    Returns:
        rows int8 [B, numel], and scales float32 [B, C] or [B, 1]: largest magnitude / 127; 0 where all is zero, never
        subnormal; NaN, so that all its values come back as NaN, where one of them is not finite.

    Raises:
        ValueError: x has fewer than two dimensions or no floating dtype.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating [B, C, ...], not {x.dtype} {tuple(x.shape)}")
    groups = scale_count(x.shape[1:])
    values = x.float()
    magnitudes = values.abs().flatten(2) if groups > 1 else values.abs().flatten(1)[:, None]
    largest = magnitudes.amax(2) if x.numel() else values.new_zeros(len(x), groups)
    scales = torch.where(largest > 0, (largest / 127).clamp_(min=torch.finfo(torch.float32).tiny), 0.0)
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    steps = torch.where(scales > 0, scales, 1.0).view(len(x), groups, *[1] * (x.dim() - 2))
    quantized = (values / steps).nan_to_num_(0.0).round_().clamp_(-127, 127).to(torch.int8)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        quantized = quantized.permute(0, 2, 3, 1)
    return quantized.reshape(len(x), math.prod(x.shape[1:])), scales
