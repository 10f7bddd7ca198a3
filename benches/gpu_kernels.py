"""What the kernels reach on this machine, against a device copy and the obvious PyTorch lines, in one JSON file.

    python -m benches.gpu_kernels --out FILE.json [--seconds 95] [--device cuda:0]

On a GPU a timing is that of many launches in one CUDA graph with inputs rotated past the L2: a median with p20, p80
and n. Beside them: errors against float64, 1,000 replays that must agree to the bit, and what a call costs the host. On
a CPU the same code times the plain PyTorch path at small sizes. What comes last (compiled peers, other block sizes) is
left out where ``--seconds`` run short.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from . import kernel_delta, kernel_gather
from .lab_machine import ceilings
from .lab_results import Results, device_of, options, surroundings

# Shares of the device copy, and times faster than the peer named.
TARGETS = {
    "delta": {"case": "resnet152", "share_of_copy": 0.85, "peer": "foreach", "times_faster": 2.2},
    "gather": {"case": "int8 -> bf16, 64 x 32 x 32", "share_of_copy": 0.85, "peer": "eager", "times_faster": 2.5},
}
BLOCKS = (1024, 2048, 8192)  # elements per program beside the present choice
COMPILING = 20.0  # seconds that a peer may take to compile


class Sizes(NamedTuple):
    """How large everything is."""

    nets: tuple[str, ...]
    precise: dict[str, tuple[torch.dtype, ...]]  # correctness: networks and dtypes
    replays: int
    store_bytes: int
    pinned_bytes: int
    batch: int
    repeats: int


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PRECISE = {"resnet152": FLOATS, "vgg19": (torch.float32,)}
GPU = Sizes(("resnet18", "resnet152", "vgg19"), PRECISE, 1000, 8 * 10**9, 2 * 10**9, 1024, 30)
CPU = Sizes(("squeezenet1_1",), {"squeezenet1_1": (torch.float32,)}, 3, 2**24, 2**24, 16, 3)


def measure(results: Results, device: torch.device, sizes: Sizes) -> None:
    """Everything, in the order that a reader wants it."""
    on_gpu = device.type == "cuda"
    results.put("environment", surroundings(device))
    results.put("ceilings", ceilings(device))
    copy = results.found["ceilings"]["copy_bytes_per_second"]
    errors = {
        f"{net} {str(dtype).removeprefix('torch.')}": kernel_delta.correct(device, net, dtype, sizes.replays)
        for net, dtypes in sizes.precise.items()
        for dtype in dtypes
    }
    results.put("delta_correct", errors)
    store = {"store_bytes": sizes.store_bytes, "batch": sizes.batch}
    if on_gpu:
        store["store_bytes"] = min(sizes.store_bytes, torch.cuda.mem_get_info(device)[0] // 4)

    def delta(net: str, **more: Any) -> dict[str, Any]:
        return kernel_delta.speed(device, copy, net, repeats=sizes.repeats, **more)

    def gather(case: str, **more: Any) -> dict[str, Any]:
        found = kernel_gather.speed(kernel_gather.CASES[case], device, copy, repeats=sizes.repeats, **store | more)
        if on_gpu:
            torch.cuda.empty_cache()
        return found

    several(results, "delta", dict.fromkeys(sizes.nets, delta))
    several(results, "gather", dict.fromkeys(kernel_gather.CASES, gather))
    results.put("targets", judged(results.found))
    results.put("host", {"delta_norms": kernel_delta.host(device), "gather_rows": kernel_gather.host(device)})
    if not on_gpu:
        return
    results.put("pinned", kernel_gather.pinned(device, sizes.pinned_bytes))
    some = dict.fromkeys(list(kernel_gather.CASES)[::3], gather)
    several(results, "compiled gather", some, COMPILING, compile_seconds=COMPILING)
    several(results, "compiled delta", {"resnet18": delta}, COMPILING + 5, compile_seconds=COMPILING)
    for block in BLOCKS:
        several(results, f"gather by {block}", {TARGETS["gather"]["case"]: gather}, 4, block=block)
        several(results, f"delta by {block}", {TARGETS["delta"]["case"]: delta}, 4, block=block)


def several(
    results: Results, name: str, works: Mapping[str, Callable[..., dict[str, Any]]], needs: float = 0.0, **more: Any
) -> None:
    """Put what the works find with ``more``, as each is done; one that needs more seconds than are left is left out."""
    found: dict[str, Any] = {}
    for case, work in works.items():
        if needs and results.left < needs:
            found[case] = {"left_out": f"{max(results.left, 0):.0f} s left, it may take {needs:.0f}"}
        else:
            found[case] = work(case, **more)
        results.put(name, found)


def judged(found: Mapping[str, Any]) -> dict[str, Any]:
    """The targets beside what was measured."""
    answer = {}
    for what, target in TARGETS.items():
        row = found.get(what, {}).get(target["case"])
        if row is not None:
            share, ratio = row["share_of_copy"], row["times_faster_than"].get(target["peer"])
            met = None not in (share, ratio) and share >= target["share_of_copy"] and ratio >= target["times_faster"]
            answer[what] = {"target": target, "share_of_copy": share, "times_faster": ratio, "met": met}
    return answer


def main() -> None:
    """Measure and write."""
    chosen = options(__doc__).parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    measure(results, device, GPU if device.type == "cuda" else CPU)
    print(json.dumps(results.found, indent=1))


if __name__ == "__main__":
    main()
