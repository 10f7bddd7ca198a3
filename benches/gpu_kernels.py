"""What the kernels reach on this machine, against a device copy and against the obvious PyTorch lines, in one JSON file.

    python -m benches.gpu_kernels --out results        # one GPU, under 8 minutes; run it again to add parts that are missing
    python -m benches.gpu_kernels --out results --cpu  # the CPU path against the obvious lines

Every timing is a median with p20, p80 and n. Sets of inputs are rotated so that no call finds its inputs in the L2. Seconds come
from CUDA events around one call; "graph" replays the call as a CUDA graph, which leaves out the host's part.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from ldbench.kernels import DeltaNormPlan, delta_norms, gather_rows, quantize_rows, row_stride

from .kernel_timing import REPEATS, Call, against, as_graph, describe, rotations, timed

REPLAYS = 1000  # for determinism
UNIT = 2.0**-24
NETS = ("resnet18", "resnet152", "vgg19")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU path instead")
    options = parser.parse_args()
    device = torch.device("cpu" if options.cpu else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --cpu measures the CPU path")
    machine = describe(device)
    name = machine["device"].lower().replace(" ", "-")
    path = options.out / f"kernels-{name}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found.get("machine") != machine:  # another driver or version: nothing to resume
        found = {"machine": machine, "parts": {}}
    for part, work in (CPU_PARTS if options.cpu else GPU_PARTS).items():
        if part in found["parts"]:
            continue
        start = time.perf_counter()
        copy = found["parts"].get("ceilings", {}).get("copy_bytes_per_second")
        found["parts"][part] = {**work(device, copy), "part_seconds": round(time.perf_counter() - start, 1)}
        path.write_text(json.dumps(found, indent=1))  # after every part, so that a second run goes on here
        print(f"{part}: {found['parts'][part]}", flush=True)
    print(path)


# --- ceilings


def ceilings(device: torch.device, _: float | None, size: int = 2**32) -> dict[str, Any]:
    """A device-to-device copy, and one from pinned memory. Bytes read and written both count."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    pinned = torch.empty(size // 8, dtype=torch.uint8, pin_memory=device.type == "cuda")
    times = timed(
        {
            "copy": [lambda: target.copy_(source)],
            "pinned": [lambda: target[: size // 8].copy_(pinned, non_blocking=True)],
        },
        device,
    )
    return {
        "times": times,
        "copy_bytes_per_second": 2 * size / times["copy"]["median_seconds"],
        "pinned_bytes_per_second": size // 8 / times["pinned"]["median_seconds"],
    }


# --- delta norms


def parameters(net: str, device: torch.device, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[int], int]:
    """(params, snapshots, layers, number of layers) of a torchvision net, a layer per module that has parameters."""
    with torch.device("meta"):
        named = [(name.rpartition(".")[0], p) for name, p in torchvision.models.get_model(net).named_parameters()]
    modules = list(dict.fromkeys(module for module, _ in named))
    generator = torch.Generator(device).manual_seed(seed)
    params = [torch.randn(p.shape, generator=generator, device=device) for _, p in named]
    snapshots = [p + 0.01 * torch.randn(p.shape, generator=generator, device=device) for p in params]
    return params, snapshots, [modules.index(module) for module, _ in named], len(modules)


def foreach_lines(params: list[Tensor], snapshots: list[Tensor]) -> Tensor:
    """The obvious lines; per tensor, so without the sum over a layer, which favours them."""
    moved = torch._foreach_norm(torch._foreach_sub(params, snapshots))
    norms = torch._foreach_norm(snapshots)
    torch._foreach_copy_(snapshots, params)
    return torch.stack([*moved, *norms])


def delta_correct(device: torch.device, _: float | None) -> dict[str, Any]:
    """Largest relative error against float64 in units of 2^-24, snapshots equal to the bit, and replays equal to the bit."""
    answer: dict[str, Any] = {}
    for net in NETS[1:]:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            params, snapshots, layers, n_layers = parameters(net, device)
            params, snapshots = ([t.to(dtype) for t in ts] for ts in (params, snapshots))
            squares = torch.zeros(n_layers, 2, dtype=torch.float64, device=device)
            for p, s, layer in zip(params, snapshots, layers, strict=True):
                squares[layer] += torch.stack([(p.double() - s.double()).square().sum(), s.double().square().sum()])
            plan = DeltaNormPlan(params, snapshots, layers, n_layers)
            norms = delta_norms(plan, update=False)
            error = ((norms.double() - squares.sqrt()).abs() / squares.sqrt()).max().item() / UNIT
            answer[f"{net} {dtype}"] = {"error_units": error, **replays(plan, norms, device)}
            delta_norms(plan)
            answer[f"{net} {dtype}"]["snapshots_equal"] = all(map(torch.equal, params, snapshots))
    return answer


def replays(plan: DeltaNormPlan, norms: Tensor, device: torch.device) -> dict[str, int]:
    """How many of ``REPLAYS`` calls, and replays of a CUDA graph, differ in any bit."""
    out, differing = torch.empty_like(norms), torch.zeros((), dtype=torch.int64, device=device)

    def count(call: Call) -> int:
        differing.zero_()
        for _ in range(REPLAYS):
            out.fill_(float("nan"))
            call()
            differing.add_((out.view(torch.int32) != norms.view(torch.int32)).any())
        return int(differing)

    def call() -> Tensor:
        return delta_norms(plan, out, update=False)

    return {
        "n": REPLAYS,
        "differing": count(call),
        **({"graph_differing": count(as_graph(call))} if device.type == "cuda" else {}),
    }


def delta_speed(
    device: torch.device, copy: float | None, nets: tuple[str, ...] = NETS, repeats: int = REPEATS
) -> dict[str, Any]:
    """Snapshot update included: 12 bytes per float32 parameter."""
    answer: dict[str, Any] = {}
    for net in nets:
        numel = sum(p.numel() for p in torchvision.models.get_model(net).parameters())
        calls: dict[str, list[Call]] = {"kernel": [], "foreach": []}
        compiled, compiled_error = torch.compile(foreach_lines, dynamic=False), ""
        for seed in range(rotations(8 * numel, device)):
            params, snapshots, layers, n_layers = parameters(net, device, seed)
            out = torch.empty(n_layers, 2, device=device)
            # Two parameter sets take turns on one set of snapshots: no call finds its snapshot already equal.
            for thetas in (params, [p + 0.01 for p in params]):
                plan = DeltaNormPlan(thetas, snapshots, layers, n_layers)
                calls["kernel"].append(lambda plan=plan, out=out: delta_norms(plan, out))
                calls["foreach"].append(lambda p=thetas, s=snapshots: foreach_lines(p, s))
                if device.type == "cuda":
                    calls["kernel"][-1]()
                    calls.setdefault("kernel as graph", []).append(as_graph(calls["kernel"][-1]))
                    calls.setdefault("foreach as graph", []).append(as_graph(calls["foreach"][-1]))
                    try:
                        compiled(thetas, snapshots)
                        calls.setdefault("compiled", []).append(lambda c=compiled, p=thetas, s=snapshots: c(p, s))
                    except Exception as error:  # a peer that does not compile is a finding, not the end of the run
                        compiled_error = repr(error)[:300]
        ours = "kernel as graph" if device.type == "cuda" else "kernel"
        answer[net] = {
            **against(timed(calls, device, repeats), ours, 12 * numel, copy),
            "compiled_error": compiled_error,
        }
    return answer


# --- gather


def dequantised(rows: Tensor, indices: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The obvious lines for int8."""
    return (rows[indices].view(-1, *shape) * scales[indices].view(len(indices), shape[0], *[1] * (len(shape) - 1))).to(
        dtype
    )


def gather_case(
    device: torch.device, copy: float | None, shape: tuple[int, ...], stored: torch.dtype, wanted: torch.dtype,
    store_bytes: int, batch: int, channels_last: bool = False, repeats: int = REPEATS,
) -> dict[str, Any]:  # fmt: skip
    """Random rows of one store: correctness against float64 of one minibatch, then times of the call and of its peers."""
    from ldbench.kernels import gather as kernel

    numel, stride = math.prod(shape), row_stride(math.prod(shape), stored)
    samples = max(batch, store_bytes // (stride * stored.itemsize))
    generator = torch.Generator(device).manual_seed(0)
    scales = None
    if stored == torch.int8:
        rows = torch.empty(samples, stride, dtype=stored, device=device)
        for part in rows.split(2**14):
            part.random_(-127, 128, generator=generator)
        scales = torch.rand(samples, shape[0], generator=generator, device=device)
    else:
        rows = torch.empty(samples, stride, dtype=stored, device=device)
        for part in rows.split(2**14):
            part.normal_(generator=generator)
    sets = [torch.randint(samples, (batch,), generator=generator, device=device) for _ in range(8)]
    sets[0][-1] = samples - 1  # the far end of the store, past 2**31 elements in the large ones
    batch_now = gather_rows(rows, sets[0], shape, dtype=wanted, scales=scales, channels_last=channels_last)
    layout = (shape[1], shape[2], shape[0]) if channels_last else shape
    exact = torch.stack([rows[i, :numel] for i in sets[0].tolist()]).double().view(batch, *layout)
    exact = exact.permute(0, 3, 1, 2) if channels_last else exact
    if scales is not None:
        exact = exact * scales[sets[0]].double().view(batch, shape[0], *[1] * (len(shape) - 1))
    error = ((batch_now.double() - exact).abs() / exact.abs().clamp(min=1e-30)).max().item()
    out = torch.empty(batch, numel, dtype=wanted, device=device)
    host = [indices.cpu() for indices in sets]
    calls: dict[str, list[Call]] = {
        "kernel": [lambda i=i: kernel.launch(rows, i, scales, out, channels_last, shape[0]) for i in sets],
        "call": [
            lambda i=i: gather_rows(rows, i, shape, dtype=wanted, scales=scales, channels_last=channels_last)
            for i in host
        ],
    }
    if not channels_last:

        def lines(indices: Tensor) -> Tensor:
            if scales is not None:
                return dequantised(rows[:, :numel], indices, scales, shape, wanted)
            return rows[:, :numel][indices].to(wanted)

        compiled = torch.compile(lines, dynamic=False)
        calls["eager"] = [lambda i=i: lines(i) for i in sets]
        if device.type == "cuda":
            calls["compiled"] = [lambda i=i: compiled(i) for i in sets]
    moved = batch * numel * (stored.itemsize + wanted.itemsize) + (0 if scales is None else 4 * batch * shape[0])
    return {
        "samples": samples,
        "batch": batch,
        "relative_error": error,
        **against(timed(calls, device, repeats), "kernel", moved, copy),
    }


def gather_speed(
    device: torch.device, copy: float | None, store_bytes: int = 20 * 10**9, repeats: int = REPEATS
) -> dict[str, Any]:
    """Stores of up to 20 GB, at most half the memory; minibatches whose result exceeds the L2."""
    if device.type == "cuda":
        store_bytes = min(store_bytes, torch.cuda.mem_get_info(device)[0] // 2)
    answer: dict[str, Any] = {}
    int8, half, bf16, single = torch.int8, torch.float16, torch.bfloat16, torch.float32
    for name, shape, stored, wanted, last in [
        ("int8 -> bf16, 64 x 32 x 32", (64, 32, 32), int8, bf16, False),
        ("int8 -> bf16, 64 x 32 x 32, channels_last", (64, 32, 32), int8, bf16, True),
        ("int8 -> bf16, 256 x 14 x 14", (256, 14, 14), int8, bf16, False),
        ("int8 -> fp32, 64 x 32 x 32", (64, 32, 32), int8, single, False),
        ("fp16 -> fp32, 64 x 32 x 32", (64, 32, 32), half, single, False),
        ("fp16 -> fp16, 64 x 32 x 32", (64, 32, 32), half, half, False),
    ]:
        answer[name] = gather_case(device, copy, shape, stored, wanted, store_bytes, 1024, last, repeats)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return answer


def gather_pinned(device: torch.device, _: float | None, store_bytes: int = 4 * 10**9) -> dict[str, Any]:
    """int8 rows in pinned host memory read by the kernel, against a gather on the host and a copy."""
    shape, batch = (64, 32, 32), 256
    numel = math.prod(shape)
    samples = store_bytes // row_stride(numel, torch.int8, pinned=True)
    rows = torch.ones(samples, row_stride(numel, torch.int8, pinned=True), dtype=torch.int8).pin_memory()
    scales = torch.ones(samples, shape[0]).pin_memory()
    sets = [torch.randint(samples, (batch,)) for _ in range(8)]
    there = [indices.to(device) for indices in sets]
    options: dict[str, Any] = {"dtype": torch.bfloat16, "scales": scales}
    calls: dict[str, list[Call]] = {
        "kernel": [lambda i=i: gather_rows(rows, i, shape, **options) for i in there],
        "host": [lambda i=i: gather_rows(rows, i, shape, **options).to(device) for i in sets],
    }
    return against(timed(calls, device, 20), "kernel", batch * numel, None)


# --- the CPU path


def cpu_paths(device: torch.device, _: float | None) -> dict[str, Any]:
    """The reference against the obvious lines, taking turns: ratios above 1 are in favour of the reference."""
    answer: dict[str, Any] = {}
    net = "resnet18"
    params, snapshots, layers, n_layers = parameters(net, device)
    index = torch.tensor(layers)

    def lines(params: list[Tensor]) -> Tensor:
        norms = foreach_lines(params, snapshots).view(2, -1).T
        return torch.zeros(n_layers, 2).index_add_(0, index, norms.square()).sqrt()

    calls: dict[str, list[Call]] = {"reference": [], "lines": []}
    for thetas in (params, [p + 0.01 for p in params]):
        plan = DeltaNormPlan(thetas, snapshots, layers, n_layers)
        calls["reference"].append(lambda plan=plan: delta_norms(plan))
        calls["lines"].append(lambda p=thetas: lines(p))
    answer[f"delta_norms {net}"] = against(timed(calls, device), "reference", 12 * sum(p.numel() for p in params), None)
    shape = (64, 16, 16)
    x = torch.randn(2048, *shape)
    rows, scales = quantize_rows(x)
    at = torch.randint(2048, (256,))
    pairs: dict[str, dict[str, list[Call]]] = {
        "gather int8": {
            "reference": [lambda: gather_rows(rows, at, shape, scales=scales)],
            "lines": [lambda: dequantised(rows, at, scales, shape, torch.float32)],
        },
        "gather fp32": {
            "reference": [lambda: gather_rows(x.view(2048, -1), at, shape)],
            "lines": [lambda: x.view(2048, -1)[at].view(-1, *shape)],
        },
        "quantize": {
            "reference": [lambda: quantize_rows(x[:256])],
            "lines": [
                lambda: (
                    (x[:256] / (x[:256].abs().amax((2, 3), keepdim=True) / 127)).round().clamp(-127, 127).to(torch.int8)
                )
            ],
        },
    }
    for name, calls in pairs.items():
        answer[name] = against(timed(calls, device), "reference", 0, None)
    return answer


GPU_PARTS: dict[str, Callable[[torch.device, float | None], dict[str, Any]]] = {
    "ceilings": ceilings,
    "delta_correct": delta_correct,
    "delta_speed": delta_speed,
    "gather_speed": gather_speed,
    "gather_pinned": gather_pinned,
}
CPU_PARTS: dict[str, Callable[[torch.device, float | None], dict[str, Any]]] = {"cpu_paths": cpu_paths}

if __name__ == "__main__":
    main()
