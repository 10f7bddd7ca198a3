"""Which implementation serves a call: the one place that checks arguments, and reads ``LDBENCH_KERNELS``."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .plan import DeltaNormPlan, capturing

__all__ = ["delta_norms", "gather_rows"]

# Looked up once: torch.compile cannot trace the look-up in torch 2.11.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(device: torch.device) -> bool:
    """Whether Triton serves tensors on ``device``.

    Raises:
        ValueError: ``LDBENCH_KERNELS`` is neither "reference" nor "triton", or asks for what cannot run here.
    """
    forced = os.environ.get("LDBENCH_KERNELS", "")
    if forced not in ("", "reference", "triton"):
        raise ValueError(f"LDBENCH_KERNELS must be reference or triton, not {forced!r}")
    if forced == "triton":
        if not HAS_TRITON:
            raise ValueError("LDBENCH_KERNELS=triton, but the package triton is not installed")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"LDBENCH_KERNELS=triton runs tensors on {device} only with TRITON_INTERPRET=1")
        return True
    return not forced and device.type == "cuda" and HAS_TRITON


def delta_norms(plan: DeltaNormPlan, out: Tensor | None = None, update: bool = True) -> Tensor:
    """Per layer ||theta - prev|| and ||prev||, and snapshot := theta where ``update``.

    Sums of squares are kept in float32 within a chunk of 4,096 elements (within a tensor by plain PyTorch; float64 for
    float64 parameters, and where float32 would under- or overflow) and in float64 above it, in an order only the plan
    decides: the same bits every time. With ``out`` given, a call on a GPU neither allocates nor waits, except for the
    first one on a stream and for pairs of parameter and snapshot that are not dense or have different strides; those go
    through PyTorch. It can be captured in a CUDA graph after one call outside with the same ``update``; a replay cannot
    notice that a tensor moved, and needs the plan kept.

    Args:
        plan: the tensors; where and how they lie is looked up at every call.
        out: float32 [n_layers, 2], contiguous, on the parameters' device, in memory of its own.
        update: whether to copy the parameters to the snapshots in the same pass.

    Returns:
        float32 [n_layers, 2] on the parameters' device, ``out`` if given. A norm beyond float32 is infinite or 0.

    Raises:
        ValueError: ``out`` of another shape, dtype, device or layout, or in a parameter's or snapshot's memory; a
            tensor that changed and no longer matches.
        RuntimeError: a CUDA graph is captured and there was no such call outside, or a tensor changed since.
    """
    device = plan.params[0].device if plan.params else plan.device
    if out is None:
        out = torch.empty(plan.n_layers, 2, dtype=torch.float32, device=device)
    elif (out.shape, out.dtype, out.device) != ((plan.n_layers, 2), torch.float32, device) or not out.is_contiguous():
        wanted, got = f"float32 [{plan.n_layers}, 2] on {device}", f"{out.dtype} {tuple(out.shape)} on {out.device}"
        raise ValueError(f"out must be contiguous {wanted}, not {got}")
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
    device: torch.device | None = None,
) -> Tensor:
    """Rows of a store by sample index as a minibatch; always a copy.

    On a GPU a kernel reads int8 rows and writes the wanted dtype in one pass (3 bytes per element to bfloat16, where
    PyTorch moves 9), and likewise float16 or bfloat16 to another dtype (6 bytes to float32, where PyTorch moves 10).
    Where the dtype stays, there is nothing to fuse: that is plain ``rows[indices]``, which is as fast.

    Args:
        rows: [N, stride], a sample one flat row in its memory format, padded at the end; on a GPU best to 16 bytes
            (``row_stride``). In pinned host memory a GPU's kernel reads it over the bus.
        indices: int64 [B], on the rows' device, the result's or the host. Their range is checked on the host: for
            indices that lie on a GPU this waits for it, and inside the capture of a CUDA graph it is left out.
        shape: of one sample, (C, H, W), (D,) or (T, D).
        dtype: floating, of the result; that of the rows by default, float32 for int8 rows.
        scales: float32, where the rows lie: the factors of int8 rows, [N, shape[0]] for one per sample and channel or
            [N, 1] for one per sample (``quantize_rows``).
        channels_last: a row holds H, W, C; the result has channels_last strides. For (C, H, W) alone.
        device: of the result; by default the indices' if they are on a GPU, else the rows'. Rows on the host are read
            by the GPU's kernel where they are pinned, else they are gathered on the host and copied.

    Returns:
        [B, *shape] on ``device``.

    Raises:
        ValueError: rows too short for ``shape``, indices that are no int64 vector, scales of another shape or dtype or
            for rows that are not int8, a dtype that is not floating, channels_last without (C, H, W), mixed devices,
            indices on the host while a CUDA graph is captured.
        IndexError: an index out of range.
    """
    wanted = dtype if dtype is not None else torch.float32 if rows.dtype == torch.int8 else rows.dtype
    where = device if device is not None else indices.device if indices.is_cuda else rows.device
    if not wanted.is_floating_point:
        raise ValueError(f"dtype must be floating, not {wanted}")
    _check_gather(rows, indices, shape, scales, channels_last, where)
    here = rows.device == where
    if not (here and wanted == rows.dtype) and use_triton(where) and (here or _pinned(rows, scales)):
        from . import gather

        if gather.serves(rows, wanted, math.prod(shape)):
            return gather.gather_rows(rows, indices, scales, shape, wanted, channels_last, where)
    if indices.is_cuda and not rows.is_cuda:
        raise ValueError(
            f"rows are on the host, indices on {indices.device}: only Triton's kernel reads pinned rows by them"
        )
    batch = reference.gather_rows(rows, indices, scales, shape, wanted, channels_last)
    return batch if here else batch.to(where, non_blocking=True)


def _pinned(rows: Tensor, scales: Tensor | None) -> bool:
    return rows.is_pinned() and (scales is None or scales.is_pinned())


def _check_gather(
    rows: Tensor, indices: Tensor, shape: Sequence[int], scales: Tensor | None, channels_last: bool, where: torch.device
) -> None:
    numel = math.prod(shape)
    if shape and min(shape) < 0:
        raise ValueError(f"shape must not have negative sizes: {tuple(shape)}")
    if rows.dim() != 2 or rows.shape[1] < numel:
        raise ValueError(f"rows must be [N, stride] with stride at least {numel}, not {tuple(rows.shape)}")
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ValueError(f"indices must be an int64 vector, not {indices.dtype} {tuple(indices.shape)}")
    rows_at, indices_at = rows.device, indices.device
    if rows_at != where and rows_at.type != "cpu":
        raise ValueError(f"rows are on {rows_at}, the minibatch is wanted on {where}")
    if indices_at not in (where, rows_at) and indices_at.type != "cpu":
        raise ValueError(f"indices are on {indices_at}, rows on {rows_at}")
    if indices_at.type == "cpu" and capturing(where):
        raise ValueError("indices must lie on the GPU while a CUDA graph is captured: a replay would read freed memory")
    if channels_last and len(shape) != 3:
        raise ValueError(f"channels_last is for a shape (C, H, W), not {tuple(shape)}")
    if scales is None:
        return
    if rows.dtype != torch.int8:
        raise ValueError(f"scales are for int8 rows, not {rows.dtype}")
    if scales.dtype != torch.float32 or not shape or scales.shape not in ((len(rows), shape[0]), (len(rows), 1)):
        wanted = f"{[len(rows), *shape[:1]]} or {[len(rows), 1]}"
        raise ValueError(f"scales must be float32 {wanted}, not {scales.dtype} {tuple(scales.shape)}")
    if scales.device != rows_at:
        raise ValueError(f"scales are on {scales.device}, rows on {rows_at}")
