"""Both kernels at odd sizes and at the very ends of their buffers, to be run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m benches.kernel_memcheck

Without the caching allocator every tensor is an allocation of its own, so that a read past its end is an error that
memcheck sees. Rows start at odd places, samples end at the store's last byte, and scales at that of theirs. Every
result is compared with float64. On a CPU, with TRITON_INTERPRET=1 and LDBENCH_KERNELS=triton, the kernels run in
Triton's interpreter, which tells of no such reads.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldbench.kernels import DeltaNormPlan, delta_norms, gather_rows, quantize_rows, row_stride
from ldbench.kernels.dispatch import use_triton

from .lab_results import Results, device_of, options, surroundings

# (shape, whether rows are padded to 16 bytes, channels_last): shorter and longer than a block, divisible by 16 and not
GATHERS = [
    ((1,), False, False), ((33,), False, False), ((3, 7, 5), True, False), ((3, 7, 5), False, True),
    ((16, 4, 4), True, False), ((5, 4, 8), True, True), ((64, 9, 8), True, False), ((17, 16, 16), True, True),
]  # fmt: skip
STORED = {torch.int8: torch.bfloat16, torch.float16: torch.float32, torch.float32: torch.float16}  # and wanted as
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
FEW = 8  # roundings of float32 that a norm may be off
DELTAS = [(1,), (4095, 4096, 4097), (0, 3, 12289), (64, 1, 1000)]  # elements of the tensors of a plan


def gather_error(
    shape: tuple[int, ...], padded: bool, last: bool, stored: torch.dtype, wanted: torch.dtype, device: torch.device
) -> float:
    """Largest relative error of one minibatch, in units of the result's rounding; at most 1 is right."""
    samples, numel = 5, math.prod(shape)
    stride = row_stride(numel, stored) if padded else numel
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(samples, *shape, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    scales = None
    if stored == torch.int8:
        flat, scales = quantize_rows(x)
        scales = scales.to(device)
    else:
        flat = (x.permute(0, 2, 3, 1) if last else x).reshape(samples, numel).to(stored)
    # A view that ends where the allocation ends: nothing is left behind the last sample to hide a read.
    whole = torch.zeros((samples - 1) * stride + numel, dtype=stored, device=device)
    rows = whole.as_strided((samples, numel), (stride, 1))
    rows.copy_(flat[:, :numel])
    indices = torch.tensor([samples - 1, 0, samples - 1, 2], device=device)
    found = gather_rows(rows, indices, shape, dtype=wanted, scales=scales, channels_last=last).double()
    exact = rows[indices].double()
    exact = exact.view(len(indices), *shape[1:], shape[0]).permute(0, 3, 1, 2) if last else exact.view(-1, *shape)
    if scales is not None:
        of_channels = (len(indices), -1, *[1] * (len(shape) - 1))  # or one of a sample
        exact = exact * scales[indices].double().view(of_channels)
    return ((found - exact).abs() / exact.abs().clamp(min=1e-30)).max().item() / ROUNDING[wanted]


def delta_error(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    """Largest relative error of the norms of a plan with these tensors, in units of 2^-23; some are right."""
    thetas, snapshots = ([torch.randn(n, device=device).to(dtype) for n in sizes] for _ in range(2))
    norms = delta_norms(DeltaNormPlan(thetas, snapshots, [0] * len(sizes), 1), update=False)
    moved = _norm(t.double() - s.double() for t, s in zip(thetas, snapshots, strict=True))
    exact = torch.stack([moved, _norm(s.double() for s in snapshots)])
    delta_norms(DeltaNormPlan(thetas, snapshots, [0] * len(sizes), 1))
    if not all(map(torch.equal, thetas, snapshots)):
        return math.inf
    return ((norms[0].double() - exact).abs() / exact).max().item() / 2.0**-23


def _norm(tensors: Any) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().sqrt()


def all_cases(device: torch.device) -> dict[str, Callable[[], float]]:
    """Every case by name; what it gives is at most 1 where the result is right."""
    works: dict[str, Callable[[], float]] = {}
    for sizes, dtype in itertools.product(DELTAS, (torch.float32, torch.float16)):
        works[f"delta_norms {sizes} {dtype}"] = lambda s=sizes, d=dtype: delta_error(s, d, device) / FEW
    for (shape, padded, last), (stored, wanted) in itertools.product(GATHERS, STORED.items()):
        name = f"gather_rows {shape} {stored} -> {wanted}" + padded * " padded" + last * " channels_last"
        works[name] = functools.partial(gather_error, shape, padded, last, stored, wanted, device)
    return works


def main() -> int:
    """Run every case; exit code 1 if a result is wrong."""
    chosen = options(__doc__).parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    results.put("environment", surroundings(device))
    if not use_triton(device):
        results.cannot("the kernels do not run here: without a GPU set TRITON_INTERPRET=1 and LDBENCH_KERNELS=triton")
        return 0
    errors: dict[str, float] = {}
    wrong: dict[str, float] = {}
    works = all_cases(device)
    for name, work in works.items():
        if results.left > 0:
            errors[name] = work()
            wrong |= {} if errors[name] <= 1 else {name: errors[name]}
        results.put("cases", len(errors))
        results.put("left_out", len(works) - len(errors))
        results.put("wrong", wrong)
        results.put("largest_error_in_roundings", max(errors.values(), default=None))
    print(json.dumps(results.found, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
