"""``delta_norms`` as Triton kernels: all parameters of a dtype in one launch, then one launch adds up each layer."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from .layout import signature
from .plan import DeltaNormPlan
from .tables import Tables, build_tables, check_pairs

Tensors = Sequence[Tensor]
_TRITON_DTYPES = (tl.float32, tl.float16, tl.bfloat16, tl.float64)  # as in DTYPES
REDUCE_BLOCK = 2048
# Sums of squares that single precision holds without loss to underflow or overflow.
SAFE_LOW, SAFE_HIGH = tl.constexpr(2.0**-80), tl.constexpr(2.0**120)


@triton.jit
def _sum_of_squares(x):
    """sum x**2 as float64, accumulated in the dtype of x; NaN and infinity come through."""
    return tl.sum(x * x, axis=0).to(tl.float64)


@triton.jit
def _store_sums(sums, slot, theta, prev):
    """sums[slot] = sum (theta - prev)**2, sum prev**2.

    Where single precision loses a sum to underflow or overflow it is taken again in double, from registers.
    """
    if theta.dtype == tl.float64:
        moved = _sum_of_squares(theta - prev)
        norm = _sum_of_squares(prev)
    else:
        single = prev.to(tl.float32)
        moved = _sum_of_squares(theta.to(tl.float32) - single)
        norm = _sum_of_squares(single)
        low = tl.minimum(moved, norm, propagate_nan=tl.PropagateNan.ALL)
        high = tl.maximum(moved, norm, propagate_nan=tl.PropagateNan.ALL)
        if not ((low >= SAFE_LOW) & (high <= SAFE_HIGH)):
            double = prev.to(tl.float64)
            moved = _sum_of_squares(theta.to(tl.float64) - double)
            norm = _sum_of_squares(double)
    tl.store(sums + slot * 2, moved)
    tl.store(sums + slot * 2 + 1, norm)


@triton.jit
def chunk_sums(chunks, sums, DTYPE: tl.constexpr, UPDATE: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one row of ``Tables.chunks``. A full chunk at 16-byte addresses is moved without a mask, since a
    mask of unknown length rules out 16-byte loads."""
    row = chunks + tl.program_id(0).to(tl.int64) * 4
    param, snapshot = tl.load(row), tl.load(row + 1)
    count, slot = tl.load(row + 2), tl.load(row + 3)
    i = tl.arange(0, BLOCK)
    if (count == BLOCK) & (((param | snapshot) & 15) == 0):
        thetas = tl.multiple_of(param.to(tl.pointer_type(DTYPE)), 16)
        prevs = tl.multiple_of(snapshot.to(tl.pointer_type(DTYPE)), 16)
        theta, prev = tl.load(thetas + i), tl.load(prevs + i)
        if UPDATE:
            tl.store(prevs + i, theta)
        _store_sums(sums, slot, theta, prev)
    else:
        inside = i < count
        thetas, prevs = param.to(tl.pointer_type(DTYPE)), snapshot.to(tl.pointer_type(DTYPE))
        theta, prev = tl.load(thetas + i, inside, 0.0), tl.load(prevs + i, inside, 0.0)
        if UPDATE:
            tl.store(prevs + i, theta, inside)
        _store_sums(sums, slot, theta, prev)


@triton.jit
def layer_norms(sums, offsets, out, BLOCK: tl.constexpr):
    """One program: out[l] = sqrt of the layer's rows of ``sums``, added in an order that only the plan decides."""
    layer = tl.program_id(0)
    begin, end = tl.load(offsets + layer), tl.load(offsets + layer + 1)
    moved = tl.zeros((BLOCK,), tl.float64)
    norm = tl.zeros((BLOCK,), tl.float64)
    start = begin
    while start < end:  # not range(): the interpreter of Triton 3.6 cannot take its bounds from a load under NumPy 2.4
        i = start + tl.arange(0, BLOCK)
        moved += tl.load(sums + i * 2, i < end, 0.0)
        norm += tl.load(sums + i * 2 + 1, i < end, 0.0)
        start += BLOCK
    tl.store(out + layer * 2, tl.sqrt(tl.sum(moved, axis=0)).to(tl.float32))
    tl.store(out + layer * 2 + 1, tl.sqrt(tl.sum(norm, axis=0)).to(tl.float32))


def launch(
    params: Tensors, snapshots: Tensors, tables: Tables, sums: Tensor, out: Tensor, update: bool, block: int
) -> None:
    """Fill ``out`` float32 [L, 2] by way of ``sums``, scratch like ``tables.sums``.

    Pairs without a common dense order go through PyTorch, which allocates; nothing else does.

    Two small kernels rather than a last-program-done counter: no ordering between programs to rely on, and no counter
    that a failed launch could leave behind. Cost: one launch of a few microseconds.
    """
    warps = max(1, min(8, block // 256))
    with torch.cuda.device_of(out):  # Triton launches on the current device
        for number, chunks, count in tables.launches:
            chunk_sums[(count,)](
                chunks, sums, _TRITON_DTYPES[number], update, block, num_warps=warps, enable_fp_fusion=True
            )
        if tables.strided:
            _strided_sums(params, snapshots, tables.strided, sums, update)
        layers = out.shape[0]
        if layers:
            reduce_block = min(REDUCE_BLOCK, max(block, 16))
            layer_norms[(layers,)](sums, tables.offsets, out, reduce_block, num_warps=4, enable_fp_fusion=True)


@torch.no_grad()
def _strided_sums(
    params: Tensors, snapshots: Tensors, strided: Sequence[tuple[int, int]], sums: Tensor, update: bool
) -> None:
    for i, row in strided:
        theta, prev = params[i].double(), snapshots[i].double()
        torch.stack([(theta - prev).square_().sum(), prev.square().sum()], out=sums[row])
        if update:
            snapshots[i].copy_(params[i])


@torch.library.custom_op("ldbench::delta_norms", mutates_args=("snapshots", "sums", "out"))
def delta_norms_op(
    params: Tensors,
    snapshots: Tensors,
    layers: Sequence[int],
    built_for: Tensor,
    chunks: Tensors,
    strided: Sequence[int],
    offsets: Tensor,
    sums: Tensor,
    out: Tensor,
    update: bool,
    block: int,
) -> None:
    """``launch`` as the compiler and the FLOP counter see it; ``built_for`` to ``sums`` are ``Tables``.

    A compiled graph may pass copies of the tensors the tables were built for; then tables for the copies are built.
    """
    pairs = list(zip(strided[::2], strided[1::2], strict=True))
    tables = Tables(built_for, list(chunks), pairs, offsets, sums)
    if built_for.tolist() != signature([*params, *snapshots]):
        check_pairs(params, snapshots)
        tables = build_tables(params, snapshots, layers, len(out), block)
    launch(params, snapshots, tables, tables.sums, out, update, block)


@delta_norms_op.register_fake
def _(*_: object) -> None:
    return None


@register_flop_formula(torch.ops.ldbench.delta_norms)
def delta_norm_flops(params: Sequence[Sequence[int]], *_: object, **__: object) -> int:
    """5 per element: the difference, and two times multiply and add. ``params``: their shapes."""
    return 5 * sum(math.prod(shape) for shape in params)


def delta_norms(plan: DeltaNormPlan, out: Tensor, update: bool) -> Tensor:
    """``ldbench.kernels.delta_norms`` with ``out`` given, by these kernels.

    The custom op is taken where somebody watches, the compiler or a dispatch mode such as the FLOP counter: its
    handling of long tensor lists costs more host time (3 us per tensor) than the rest of the call.
    """
    tables = plan.tables(update)
    if not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None:
        plan.check_out(out)
        launch(plan.params, plan.snapshots, tables, plan.scratch(tables), out, update, plan.block)
        return out
    strided = [number for pair in tables.strided for number in pair]
    built = (tables.signature, tables.chunks, strided, tables.offsets, tables.sums)
    delta_norms_op(plan.params, plan.snapshots, plan.layer_list, *built, out, update, plan.block)
    return out
