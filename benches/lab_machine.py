"""What the machine could do at best, and what it has: copies, matrix products, and the doctor's findings.

    python -m benches.lab_machine [--out FILE.json] [--device cuda:0]

Ceilings are medians over calls timed by events; bytes of a copy count twice, read and written.
"""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import torch
from rich.console import Console

from ldbench.doctor.checks import doctor

from .kernel_timing import one, summary
from .lab_results import Results, device_of, options, surroundings

SPACE = {"cuda": 2**32, "cpu": 2**26}  # bytes copied: far past every cache
SIDE = {"cuda": 8192, "cpu": 256}  # of the matrices
REPEATS = {"cuda": 20, "cpu": 5}


def ceilings(device: torch.device) -> dict[str, Any]:
    """Bytes and FLOPs per second: a copy on the device, one from pinned memory, and a bfloat16 matrix product."""
    size, side = SPACE[device.type], SIDE[device.type]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    pinned = torch.ones(size // 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
    x = torch.randn(side, side, device=device, dtype=torch.bfloat16)  # zeros would draw less power and clock higher
    out = torch.empty_like(x)
    works = {
        "copy": (lambda: target.copy_(source), 2 * size, "bytes_per_second"),
        "pinned": (lambda: target[: size // 8].copy_(pinned, non_blocking=True), size // 8, "bytes_per_second"),
        "bf16_matmul": (lambda: torch.mm(x, x, out=out), 2 * side**3, "flops_per_second"),
    }
    found: dict[str, Any] = {}
    for name, (work, amount, unit) in works.items():
        for _ in range(3):
            work()
        took = summary([one(work, device) for _ in range(REPEATS[device.type])])
        found[f"{name}_{unit}"] = amount / took["median_seconds"]
        found[f"{name}_times"] = took
    return found


def main() -> None:
    """Measure and write."""
    chosen = options(__doc__).parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    results.put("environment", surroundings(device))
    results.put("ceilings", ceilings(device))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        doctor(Console(file=io.StringIO()), as_json=True)
    results.put("doctor", json.loads(printed.getvalue()))
    print(json.dumps(results.found, indent=1))


if __name__ == "__main__":
    main()
