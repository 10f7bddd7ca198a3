"""Which implementation serves a call: the one place that checks arguments, knows about Triton and reads ``LDBENCH_KERNELS``."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .plan import DeltaNormPlan
from .reference import quantize_rows

__all__ = ["delta_norms", "gather_rows", "quantize_rows"]


def use_triton(device: torch.device) -> bool:
    """Whether Triton serves tensors on ``device``.

    Raises:
        ValueError: ``LDBENCH_KERNELS`` is neither "reference" nor "triton", or asks for what cannot run here.
    """
    forced = os.environ.get("LDBENCH_KERNELS", "")
    if forced not in ("", "reference", "triton"):
        raise ValueError(f"LDBENCH_KERNELS must be reference or triton, not {forced!r}")
    if forced == "triton":
        if not _has_triton():
            raise ValueError("LDBENCH_KERNELS=triton, but the package triton is not installed")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"LDBENCH_KERNELS=triton runs tensors on {device} only with TRITON_INTERPRET=1")
        return True
    return not forced and device.type == "cuda" and _has_triton()


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.no_grad()
def delta_norms(plan: DeltaNormPlan, out: Tensor | None = None, update: bool = True) -> Tensor:
    """Per layer ||theta - prev|| and ||prev||, and snapshot := theta where ``update``.

    Sums of squares are kept in float32 within a chunk (float64 for float64 parameters, and where float32 would under- or
    overflow) and in float64 above it, in an order only the plan decides: the same bits every time. With ``out`` given, a
    call on a GPU neither allocates nor waits, except for pairs of parameter and snapshot that are not dense or have
    different strides; those go through PyTorch. It can be captured in a CUDA graph after one call outside; a replay cannot
    notice that a tensor moved.

    Args:
        plan: the tensors; where they lie is looked up at every call.
        out: float32 [n_layers, 2], contiguous, on the parameters' device.
        update: whether to copy the parameters to the snapshots in the same pass.

    Returns:
        float32 [n_layers, 2] on the parameters' device, ``out`` if given. A norm beyond float32 is infinite or 0.

    Raises:
        ValueError: ``out`` of another shape, dtype, device or layout; a tensor that moved and no longer matches.
        RuntimeError: a CUDA graph is captured and the plan's tables do not exist yet or a tensor moved.
    """
    device = plan.params[0].device if plan.params else plan.device
    if out is None:
        out = torch.empty(plan.n_layers, 2, dtype=torch.float32, device=device)
    elif (out.shape, out.dtype, out.device) != ((plan.n_layers, 2), torch.float32, device) or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous float32 [{plan.n_layers}, 2] on {device}, not {out.dtype} {tuple(out.shape)} on {out.device}"
        )
    if use_triton(device):
        from . import delta_norm

        return delta_norm.delta_norms(plan, out, update)
    return reference.delta_norms(plan, out, update)


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

    On a GPU a kernel reads int8 rows and writes the wanted dtype in one pass (3 bytes per element to bfloat16, where PyTorch
    moves 9), and likewise float16 or bfloat16 to another dtype (6 bytes to float32, where PyTorch moves 10). Where the
    dtype stays, there is nothing to fuse: that is plain ``rows[indices]``, which is as fast.

    Args:
        rows: [N, stride], a sample one flat row in its memory format, padded at the end; on a GPU best to 16 bytes
            (``row_stride``). In pinned host memory with ``indices`` on a GPU the kernel reads it over the bus.
        indices: int64 [B], on the rows' device or the host. Their range is checked on the host: for indices that lie on a
            GPU this waits for it, and inside the capture of a CUDA graph it is left out.
        shape: of one sample, (C, H, W), (D,) or (T, D).
        dtype: floating, of the result; that of the rows by default, float32 for int8 rows.
        scales: float32 [N, shape[0]], the factor of each sample and channel of int8 rows; where the rows lie.
        channels_last: a row holds H, W, C; the result has channels_last strides. For (C, H, W) alone.

    Returns:
        [B, *shape] on the rows' device, or the indices' if the rows are pinned and the indices on a GPU.

    Raises:
        ValueError: rows too short for ``shape``, indices that are no int64 vector, scales of another shape or dtype or for
            rows that are not int8, a dtype that is not floating, channels_last without (C, H, W), mixed devices.
        IndexError: an index out of range.
    """
    wanted = dtype if dtype is not None else torch.float32 if rows.dtype == torch.int8 else rows.dtype
    _check_gather(rows, indices, shape, wanted, scales, channels_last)
    device = indices.device if indices.is_cuda else rows.device
    on_triton = use_triton(device)
    if on_triton and not (wanted == rows.dtype and rows.device == device):
        from . import gather

        if gather.serves(rows, wanted, math.prod(shape)):
            batch: Tensor = gather.gather_rows_op(
                rows, indices, None if scales is None else scales.contiguous(), list(shape), wanted, channels_last
            )
            return batch
    if rows.device != device:
        raise ValueError(f"rows are pinned and indices on {device}: only Triton's kernel reads these rows from there")
    return reference.gather_rows(rows, indices, scales, shape, wanted, channels_last)


def _check_gather(
    rows: Tensor, indices: Tensor, shape: Sequence[int], dtype: torch.dtype, scales: Tensor | None, channels_last: bool
) -> None:
    numel = math.prod(shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must not have negative sizes: {tuple(shape)}")
    if rows.dim() != 2 or rows.shape[1] < numel:
        raise ValueError(f"rows must be [N, stride] with stride at least {numel}, not {tuple(rows.shape)}")
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ValueError(f"indices must be an int64 vector, not {indices.dtype} {tuple(indices.shape)}")
    if indices.device not in (rows.device, torch.device("cpu")) and not (indices.is_cuda and rows.is_pinned()):
        raise ValueError(f"indices are on {indices.device}, rows on {rows.device} and not pinned")
    if channels_last and len(shape) != 3:
        raise ValueError(f"channels_last is for a shape (C, H, W), not {tuple(shape)}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, not {dtype}")
    if scales is None:
        return
    if rows.dtype != torch.int8:
        raise ValueError(f"scales are for int8 rows, not {rows.dtype}")
    if scales.dtype != torch.float32 or not shape or scales.shape != (len(rows), shape[0]):
        wanted = [len(rows), *shape[:1]]
        raise ValueError(f"scales must be float32 {wanted}, not {scales.dtype} {tuple(scales.shape)}")
    if scales.device != rows.device or (scales.device.type == "cpu" and indices.is_cuda and not scales.is_pinned()):
        raise ValueError(
            f"scales are on {scales.device}, rows on {rows.device}; beside pinned rows they must be pinned"
        )
