"""Compile the kernels for GPUs this machine need not have, and print what the tests look at as JSON.

Run in a process of its own without ``TRITON_INTERPRET``: the mode holds for a whole process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ldbench.kernels import delta_norm, gather, tables

TYPES = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16, "fp64": tl.float64}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory, read by the cuobjdump that Triton brings."""
    tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]


def inspect(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, divisible: tuple[str, ...] = ()
) -> dict[str, int]:
    """Counts in the PTX of ``kernel`` for ``sm_<capability>``; ``divisible`` names the arguments known to be multiples
    of 16.
    """
    names = [*types, *constants]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(kernel, {**types, **dict.fromkeys(constants, "constexpr")}, constants, attributes)
    options = {"num_warps": 8, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = built.asm["ptx"]

    def count(pattern: str) -> int:
        return len(re.findall(pattern, ptx))

    wide = r"[^\n;]*\.(?:v4\.[bfsu]32|v2\.[bfsu]64)"
    return {
        "wide_loads": count(r"ld\.global" + wide),
        "wide_stores": count(r"st\.global" + wide),
        "byte_loads": count(r"ld\.global[^\n;]*\.[bsu]8\s"),
        "local": count(r"\b(?:ld|st)\.local"),
        "multiplications_64": count(r"mul\.lo\.[su]64|mul\.wide\.[su]32|mad\.lo\.[su]64|mad\.wide\.[su]32"),
        "products_64": count(r"(?:mul|mad)\.lo\.[su]64"),
        **resources(built.asm["cubin"]),
    }


def delta(dtype: str, update: bool, capability: int) -> dict[str, int]:
    constants = {"DTYPE": TYPES[dtype], "UPDATE": update, "BLOCK": tables.BLOCK}
    return inspect(delta_norm.chunk_sums, {"chunks": "*i64", "sums": "*fp64"}, constants, capability)


def gathered(stored: str, wanted: str, layout: str, capability: int) -> dict[str, int]:
    """``layout``: "nchw" with 32 x 32 places, "odd" with 7 x 7, "last" for channels_last, "flat" without scales,
    "padded" for
    rows that 16 does not divide in a store that it divides, "bare" for such rows without padding."""
    pointers = {"rows": f"*{stored}", "indices": "*i64", "scales": "*fp32", "out": f"*{wanted}"}
    channels = 0 if layout in ("flat", "padded", "bare") else 64
    constants = {
        "CHANNELS": channels, "SPATIAL": 49 if layout == "odd" else 1024, "LAST": layout == "last",
        "GROUP": 16 if layout == "nchw" else 1, "OUT": TYPES[wanted], "BLOCK": gather.BLOCK,
    }  # fmt: skip
    sizes = {"bare": (), "padded": ("stride", "width")}.get(layout, ("stride", "width", "numel"))
    divisible = ("rows", "indices", "scales", "out", *sizes)
    types = {**pointers, "tiles": "i32", "stride": "i32", "width": "i32", "numel": "i32"}
    return inspect(gather.gather, types, constants, capability, divisible)


def main() -> None:
    answer: dict[str, dict[str, int]] = {}
    for capability in (80, 90):
        for dtype in TYPES:
            for update in (True, False):
                answer[f"delta {dtype} {'update' if update else 'read'} {capability}"] = delta(
                    dtype, update, capability
                )
        constants = {"BLOCK": delta_norm.REDUCE_BLOCK}
        pointers = {"sums": "*fp64", "offsets": "*i64", "out": "*fp32"}
        answer[f"layers {capability}"] = inspect(delta_norm.layer_norms, pointers, constants, capability)
        for stored, wanted, layout in [
            ("i8", "bf16", "nchw"),
            ("i8", "fp16", "nchw"),
            ("i8", "fp32", "nchw"),
            ("i8", "bf16", "odd"),
            ("i8", "bf16", "last"),
            ("i8", "fp32", "last"),
            ("fp16", "fp32", "flat"),
            ("bf16", "fp32", "flat"),
            ("i8", "bf16", "padded"),
            ("fp16", "fp32", "padded"),
            ("i8", "bf16", "bare"),
        ]:
            answer[f"gather {stored} {wanted} {layout} {capability}"] = gathered(stored, wanted, layout, capability)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
