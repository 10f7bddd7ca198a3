"""Parameter-delta norms and the gather of cached activations in plain PyTorch: the oracle of the tests and the CPU path."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: the widest load of a GPU thread
PINNED_ALIGNMENT = 128  # bytes: rows read over PCIe start at a cache line


class DeltaNormPlan:
    """What ``delta_norms`` works on, checked once.

    Args:
        params: parameters of any shape and floating dtype, all on one device.
        snapshots: one tensor per parameter with its shape and dtype.
        layers: layer of each parameter, from 0 to ``n_layers - 1``; several parameters may share one.
        n_layers: number of layers; one without parameters has norm 0.

    Raises:
        ValueError: lengths, shapes, dtypes or devices that do not match, or a layer out of range.
    """

    def __init__(
        self, params: Sequence[Tensor], snapshots: Sequence[Tensor], layers: Sequence[int], n_layers: int
    ) -> None:
        if not len(params) == len(snapshots) == len(layers):
            lengths = f"{len(params)}, {len(snapshots)} and {len(layers)}"
            raise ValueError(f"params, snapshots and layers differ in length: {lengths}")
        for i, (param, snapshot) in enumerate(zip(params, snapshots, strict=True)):
            if (param.shape, param.dtype, param.device) != (snapshot.shape, snapshot.dtype, snapshot.device):
                raise ValueError(f"snapshots[{i}] differs from params[{i}] in shape, dtype or device")
            if not param.is_floating_point():
                raise ValueError(f"params[{i}] is {param.dtype}; norms are for floating dtypes")
        if any(not 0 <= layer < n_layers for layer in layers):
            raise ValueError(f"layers must lie between 0 and {n_layers - 1}")
        self.params, self.snapshots, self.n_layers = list(params), list(snapshots), n_layers
        self.device = self.params[0].device if self.params else torch.device("cpu")
        if any(param.device != self.device for param in self.params):
            raise ValueError("params lie on different devices")
        self.layers = torch.tensor(list(layers), dtype=torch.int64, device=self.device)


@torch.no_grad()
def delta_norms(plan: DeltaNormPlan, out: Tensor | None = None, update: bool = True) -> Tensor:
    """Per layer ||theta - prev|| and ||prev||, and snapshot := theta where ``update``.

    Returns:
        float32 [n_layers, 2] on the parameters' device, ``out`` if given.
    """
    if out is None:
        out = torch.empty(plan.n_layers, 2, dtype=torch.float32, device=plan.device)
    if not plan.params:
        return out.zero_()
    moved = torch._foreach_sub(plan.params, plan.snapshots)
    columns = []
    for tensors in (moved, plan.snapshots):
        norms = torch.stack([norm.double() for norm in torch._foreach_norm(tensors, 2, torch.float32)])
        total = torch.zeros(plan.n_layers, dtype=torch.float64, device=plan.device)
        columns.append(total.index_add_(0, plan.layers, norms.square()).sqrt())
    if update:
        torch._foreach_copy_(plan.snapshots, plan.params)
    return out.copy_(torch.stack(columns, dim=1))


def row_stride(numel: int, dtype: torch.dtype, pinned: bool = False) -> int:
    """Elements from one row of a store to the next: ``numel`` padded to 16 bytes, to 128 in pinned host memory."""
    unit = (PINNED_ALIGNMENT if pinned else ALIGNMENT) // dtype.itemsize
    return -(-numel // unit) * unit


def gather_rows(
    rows: Tensor,
    indices: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    scales: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Rows of a store by sample index as a minibatch; always a copy.

    Args:
        rows: [N, stride], a sample one flat row in its memory format, padded at the end.
        indices: int64 [B].
        shape: of one sample, (C, H, W), (D,) or (T, D).
        dtype: of the result; that of the rows by default, float32 for int8 rows.
        scales: float32 [N, shape[0]], the factor of each sample and channel of int8 rows.
        channels_last: a row holds H, W, C; the result has channels_last strides. For (C, H, W) alone.

    Returns:
        [B, *shape] on the rows' device.

    Raises:
        ValueError: rows too short for ``shape``, or indices that are no int64 vector.
        IndexError: an index out of range.
    """
    numel = math.prod(shape)
    if rows.dim() != 2 or rows.shape[1] < numel:
        raise ValueError(f"rows must be [N, stride] with stride at least {numel}, not {tuple(rows.shape)}")
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ValueError(f"indices must be an int64 vector, not {indices.dtype} {tuple(indices.shape)}")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(rows):
        raise IndexError(f"indices must lie between 0 and {len(rows) - 1}")
    batch = rows[:, :numel][indices.to(rows.device)]
    wanted = dtype if dtype is not None else torch.float32 if rows.dtype == torch.int8 else rows.dtype
    if channels_last:
        channels, height, width = shape
        batch = batch.view(-1, height, width, channels).permute(0, 3, 1, 2)
    else:
        batch = batch.view(-1, *shape)
    if scales is None:
        return batch.to(wanted)
    factors = scales[indices.to(scales.device)].to(rows.device)
    return (batch * factors.view(*factors.shape, *[1] * (len(shape) - 1))).to(wanted)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 rows with one scale per sample and channel; the error is at most half a scale step.

    Args:
        x: [B, C, ...]; a channels_last x gives rows in that order.

    Returns:
        rows int8 [B, numel], and scales float32 [B, C] (largest magnitude / 127; 0 for a channel of zeros).
    """
    values = x.float()
    dims = tuple(range(2, x.dim()))
    scales = (values.abs().amax(dims) if dims else values.abs()) / 127
    steps = torch.where(scales > 0, scales, torch.ones_like(scales)).view(*scales.shape, *[1] * len(dims))
    quantized = (values / steps).round_().clamp_(-127, 127).to(torch.int8)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        quantized = quantized.permute(0, 2, 3, 1)
    return quantized.reshape(len(x), -1), scales
