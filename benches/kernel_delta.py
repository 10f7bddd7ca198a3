"""delta_norms on this machine: right against float64, the same bits every time, how fast beside the obvious lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from ldbench.kernels import DeltaNormPlan, delta_norms

from .kernel_timing import REPEATS, Call, add_compiled, against, as_graph, host_seconds, rotations, timed

REPLAYS = 1000  # for determinism
UNIT = 2.0**-24
BYTES = 12  # per float32 parameter: two reads and a write


def blank(net: str) -> torch.nn.Module:
    """A network of torchvision's without memory."""
    with torch.device("meta"):
        return torchvision.models.get_model(net)  # type: ignore[no-any-return, unused-ignore]


def parameters(net: str, device: torch.device, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[int], int]:
    """(params, snapshots, layers, number of layers) of a torchvision net, a layer per module that has parameters."""
    named = [(name.rpartition(".")[0], p) for name, p in blank(net).named_parameters()]
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


def correct(device: torch.device, net: str, dtype: torch.dtype, n: int = REPLAYS) -> dict[str, Any]:
    """Largest relative error against float64 in units of 2^-24; whether snapshots and replays are equal to the bit."""
    params, snapshots, layers, n_layers = parameters(net, device)
    params, snapshots = ([t.to(dtype) for t in ts] for ts in (params, snapshots))
    squares = torch.zeros(n_layers, 2, dtype=torch.float64, device=device)
    for p, s, layer in zip(params, snapshots, layers, strict=True):
        squares[layer] += torch.stack([(p.double() - s.double()).square().sum(), s.double().square().sum()])
    plan = DeltaNormPlan(params, snapshots, layers, n_layers)
    norms = delta_norms(plan, update=False)
    error = ((norms.double() - squares.sqrt()).abs() / squares.sqrt()).max().item() / UNIT
    found = {"error_units": error, **replays(plan, norms, device, n)}
    delta_norms(plan)
    return found | {"snapshots_equal": all(map(torch.equal, params, snapshots))}


def replays(plan: DeltaNormPlan, norms: Tensor, device: torch.device, n: int) -> dict[str, int]:
    """How many of ``n`` calls, and replays of a CUDA graph, differ in any bit."""
    out, differing = torch.empty_like(norms), torch.zeros((), dtype=torch.int64, device=device)

    def count(call: Call) -> int:
        differing.zero_()
        for _ in range(n):
            out.fill_(float("nan"))
            call()
            differing.add_((out.view(torch.int32) != norms.view(torch.int32)).any())
        return int(differing)

    def call() -> Tensor:
        return delta_norms(plan, out, update=False)

    graph = {"graph_differing": count(as_graph([call]))} if device.type == "cuda" else {}
    return {"n": n, "differing": count(call), **graph}


def speed(
    device: torch.device,
    copy: float | None,
    net: str,
    *,
    repeats: int = REPEATS,
    block: int | None = None,
    compile_seconds: float = 0.0,
) -> dict[str, Any]:
    """Seconds of a call that updates the snapshots, beside foreach and, if they compile in time, the compiled lines.

    Args:
        block: elements per program instead of the plan's own.
        compile_seconds: how long compiling may take; 0 leaves that peer out.
    """
    numel = sum(p.numel() for p in blank(net).parameters())
    calls: dict[str, list[Call]] = {"kernel": [], "foreach": []}
    pairs: list[tuple[list[Tensor], list[Tensor]]] = []
    for seed in range(rotations(8 * numel, device)):
        params, snapshots, layers, n_layers = parameters(net, device, seed)
        out = torch.empty(n_layers, 2, device=device)
        # Two parameter sets take turns on one set of snapshots: no call finds its snapshot already equal.
        for thetas in (params, [p + 0.01 for p in params]):
            plan = DeltaNormPlan(thetas, snapshots, layers, n_layers, **({} if block is None else {"block": block}))
            calls["kernel"].append(lambda plan=plan, out=out: delta_norms(plan, out))
            calls["foreach"].append(lambda p=thetas, s=snapshots: foreach_lines(p, s))
            pairs.append((thetas, snapshots))
    for call in calls["kernel"]:
        call()  # compiles, and builds the tables that capture needs
    compiled_error = add_compiled(calls, foreach_lines, pairs, compile_seconds)
    if block is not None:
        calls.pop("foreach")
    found = against(timed(calls, device, repeats), "kernel", BYTES * numel, copy)
    return {"tensors": len(pairs[0][0]), "parameters": numel, **found, "compiled_error": compiled_error}


def host(device: torch.device, tensors: Sequence[int] = (62, 124, 466)) -> dict[str, Any]:
    """What a call costs the host, by the number of tensors; they are small, two to a layer."""
    found: dict[str, Any] = {}
    for count in tensors:
        thetas = [torch.randn(64, device=device) for _ in range(count)]
        snapshots = [t + 0.01 for t in thetas]
        n_layers = math.ceil(count / 2)
        plan = DeltaNormPlan(thetas, snapshots, [i // 2 for i in range(count)], n_layers)
        out = torch.empty(n_layers, 2, device=device)
        found[f"{count} tensors"] = {
            "kernel": host_seconds(lambda plan=plan, out=out: delta_norms(plan, out), device),
            "foreach": host_seconds(lambda t=thetas, s=snapshots: foreach_lines(t, s), device),
        }
    return found
