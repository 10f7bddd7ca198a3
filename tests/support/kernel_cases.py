"""What the kernel tests share: where they run, buffers between canaries, values by kind.

What no test can tell apart without a GPU, and the tests marked ``gpu`` look at: scratch per stream and per captured
graph, tables that outlive their plan's changes while a graph points to them (a played capture shows who keeps what,
not the race), indices taken out of pinned memory at the call, pinned rows read by the kernel rather than the host, the
device a launch goes to. What only speed would show: the number of warps, hints on alignment beyond those
``test_codegen`` sees in the PTX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNIT = 2.0**-24  # relative rounding error of float32
PAD = 16  # canaries on either side of a buffer, elements
VALUES = ["normal", "zeros", "equal", "nudged", "tiny", "huge", "inf", "nan"]


@contextmanager
def forced(kernels: str) -> Iterator[None]:
    """Use one implementation; the interpreter computes with NumPy, whose warnings a GPU does not have."""
    with mock.patch.dict(os.environ, LDBENCH_KERNELS=kernels), np.errstate(all="ignore"):
        yield


def fenced(numel: int, dtype: torch.dtype, offset: int = 0) -> tuple[Tensor, Tensor]:
    """(whole buffer of canaries, a view of ``numel`` elements in it that starts ``offset`` elements past 16-byte
    alignment).
    """
    canary = 113 if dtype == torch.int8 else float("nan")
    whole = torch.full((numel + 2 * PAD + offset,), canary, dtype=dtype, device=DEVICE)
    return whole, whole[PAD + offset : PAD + offset + numel]


def assert_fence_untouched(whole: Tensor, numel: int, offset: int = 0) -> None:
    fence = torch.cat([whole[: PAD + offset], whole[PAD + offset + numel :]])
    assert bool((fence == 113).all() if whole.dtype == torch.int8 else fence.isnan().all()), "wrote outside its buffer"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN and signed zeros included."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.equal(a.contiguous().view(kinds[a.element_size()]), b.contiguous().view(kinds[b.element_size()]))


def fill(theta: Tensor, prev: Tensor, kind: str, generator: torch.Generator) -> None:
    """Write a pair of the given kind of values, drawn from ``generator`` (on the CPU)."""

    def draw() -> Tensor:
        return torch.randn(theta.shape, generator=generator, dtype=torch.float64)

    scale = {"tiny": 1e-30, "huge": 1e30 if torch.finfo(theta.dtype).max > 1e31 else 1e4}.get(kind, 1.0)
    if kind == "tiny" and theta.dtype == torch.float16:
        scale = 1e-6
    prev.copy_(draw() * (0 if kind == "zeros" else scale))
    theta.copy_(prev if kind in ("equal", "nudged") else draw() * (0 if kind == "zeros" else scale))
    if theta.numel() and kind in ("inf", "nan", "nudged"):
        at = int(torch.randint(theta.numel(), (1,), generator=generator))
        place = np.unravel_index(at, tuple(theta.shape)) if theta.dim() else ()
        where = tuple(int(i) for i in place)
        theta[where] = torch.nextafter(theta[where], theta.new_tensor(10.0)) if kind == "nudged" else float(kind)
