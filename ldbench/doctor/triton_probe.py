"""A smallest Triton kernel: ``python -m ldbench.doctor.triton_probe`` runs it, or ends with an error."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _double(source, target, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """target = 2 source, both float32 [n]."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source + offsets, mask=offsets < n)
    tl.store(target + offsets, 2 * values, mask=offsets < n)


def main() -> None:
    """Run the kernel on the GPU, or in Triton's interpreter where TRITON_INTERPRET says so, and check what it wrote."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    source = torch.arange(1000, dtype=torch.float32, device="cpu" if interpreted else "cuda")
    target = torch.full_like(source, float("nan"))
    _double[(4,)](source, target, len(source), BLOCK=256)
    if not torch.equal(target, 2 * source):
        raise SystemExit("the kernel ran and wrote wrong values")
    print("interpreter" if interpreted else "compiled")


if __name__ == "__main__":
    main()
