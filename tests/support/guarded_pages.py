"""Run the kernels in Triton's interpreter on buffers that end, or begin, where memory may not be touched.

Run in a process of its own: an access beyond a buffer, read or written, ends it by a segmentation fault. Prints how
many cases it ran.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from ldbench.kernels import DeltaNormPlan, delta_norm, gather, quantize_rows
from ldbench.kernels.tables import Tables

PAGE = mmap.PAGESIZE
PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[mmap.mmap] = []


def guarded(values: Tensor, *, at_end: bool) -> Tensor:
    """A contiguous copy of ``values`` that ends (or begins) at a page that may not be touched; such pages lie on both
    sides.
    """
    size = max(values.nbytes, 1)
    pages = -(-size // PAGE) * PAGE
    region = mmap.mmap(-1, pages + 2 * PAGE)
    _kept.append(region)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in (start, start + PAGE + pages):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    if not values.numel():
        return values
    offset = PAGE + (pages - values.nbytes if at_end else 0)
    copy = torch.frombuffer(region, dtype=values.dtype, count=values.numel(), offset=offset)
    return copy.view(values.shape).copy_(values)


def gathers(at_end: bool) -> int:
    cases = 0
    shapes = [(1,), (5,), (63,), (65,), (2, 4, 8), (3, 7, 5), (5, 4, 8), (33, 1, 1), (9, 2, 8)]
    stores = (torch.int8, torch.float16, torch.float32)
    for shape, stored, last in itertools.product(shapes, stores, (False, True)):
        if last and len(shape) != 3:
            continue
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
        rows, scales = quantize_rows(x) if stored == torch.int8 else (x.reshape(4, -1).to(stored), None)
        for all_scales in (scales, None if scales is None else torch.ones(4, shape[0])):
            factors = None if all_scales is None else guarded(all_scales, at_end=at_end)
            indices = guarded(torch.tensor([3, 0, 3]), at_end=at_end)
            out = guarded(torch.zeros(3, math.prod(shape)), at_end=at_end)
            gather.launch(guarded(rows, at_end=at_end), indices, factors, out, last, block=64)
            cases += 1
    return cases


def norms(at_end: bool) -> int:
    cases = 0
    for size, dtype in itertools.product((1, 15, 16, 17, 35), (torch.float32, torch.float16, torch.float64)):
        params = [guarded(torch.ones(n, dtype=dtype), at_end=at_end) for n in (size, 3, 0)]
        snapshots = [guarded(torch.zeros(n, dtype=dtype), at_end=at_end) for n in (size, 3, 0)]
        plan = DeltaNormPlan(params, snapshots, [0, 2, 2], 3, block=16)
        made = plan.tables()
        tables = Tables(
            made.signature,
            [guarded(chunks, at_end=at_end) for chunks in made.chunks],
            made.strided,
            guarded(made.offsets, at_end=at_end),
            guarded(made.sums, at_end=at_end),
        )
        out = guarded(torch.zeros(3, 2), at_end=at_end)
        delta_norm.launch(params, snapshots, tables, tables.sums, out, True, 16)
        assert out[:, 0].tolist() == torch.tensor([size**0.5, 0.0, 3**0.5]).tolist()
        cases += 1
    return cases


if __name__ == "__main__":
    work: list[Callable[[bool], int]] = [gathers, norms]
    print(sum(run(at_end) for run in work for at_end in (True, False)))
