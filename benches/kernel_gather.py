"""gather_rows on this machine: right against float64, and how fast beside the obvious lines, on device and bus."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldbench.kernels import gather_rows, row_stride

from .kernel_timing import REPEATS, Call, add_compiled, against, host_seconds, timed

INT8, HALF, BF16, SINGLE = torch.int8, torch.float16, torch.bfloat16, torch.float32


class Case(NamedTuple):
    """Rows of one shape, stored and wanted as."""

    shape: tuple[int, int, int]
    stored: torch.dtype
    wanted: torch.dtype
    last: bool = False

    @property
    def numel(self) -> int:
        """Elements of a sample."""
        return math.prod(self.shape)


CASES = {
    "int8 -> bf16, 64 x 32 x 32": Case((64, 32, 32), INT8, BF16),
    "int8 -> bf16, 64 x 32 x 32, channels_last": Case((64, 32, 32), INT8, BF16, True),
    "int8 -> bf16, 256 x 14 x 14": Case((256, 14, 14), INT8, BF16),
    "int8 -> fp32, 64 x 32 x 32": Case((64, 32, 32), INT8, SINGLE),
    "fp16 -> fp32, 64 x 32 x 32": Case((64, 32, 32), HALF, SINGLE),
    "fp16 -> fp16, 64 x 32 x 32": Case((64, 32, 32), HALF, HALF),
}


class Store:
    """Random rows on a device, with scales where they are int8, and minibatches of indices that reach the end."""

    def __init__(self, case: Case, device: torch.device, store_bytes: int, batch: int, pinned: bool = False) -> None:
        self.case, self.batch = case, batch
        stride = row_stride(case.numel, case.stored, pinned=pinned)
        self.samples = max(batch, store_bytes // (stride * case.stored.itemsize))
        generator = torch.Generator(device).manual_seed(0)
        rows = torch.empty(self.samples, stride, dtype=case.stored, device=device)
        for part in rows.split(2**14):
            if case.stored == INT8:
                part.random_(-127, 128, generator=generator)
            else:
                part.normal_(generator=generator)
        self.rows, self.scales = rows, None
        if case.stored == INT8:
            self.scales = torch.rand(self.samples, case.shape[0], generator=generator, device=device)
        self.sets = [torch.randint(self.samples, (batch,), generator=generator, device=device) for _ in range(8)]
        self.sets[0][-1] = self.samples - 1  # past 2**31 elements in the large ones

    def gather(self, indices: Tensor) -> Tensor:
        """The public call."""
        case = self.case
        return gather_rows(
            self.rows, indices, case.shape, dtype=case.wanted, scales=self.scales, channels_last=case.last
        )

    def launch(self, indices: Tensor, out: Tensor, block: int | None = None) -> None:
        """The kernel's launch into ``out`` [B, elements], without the checks of the public call."""
        from ldbench.kernels import gather

        gather.launch(self.rows, indices, self.scales, out, self.case.last, block or gather.BLOCK)

    def lines(self, indices: Tensor) -> Tensor:
        """The obvious lines, to the shape and memory format that training wants."""
        case, (channels, height, width) = self.case, self.case.shape
        layout = (height, width, channels) if case.last else case.shape
        x = self.rows[:, : case.numel][indices].view(-1, *layout)
        if self.scales is not None:
            scales = self.scales[indices]
            x = x * (scales[:, None, None, :] if case.last else scales[:, :, None, None])
        x = x.to(case.wanted)
        return x.permute(0, 3, 1, 2) if case.last else x

    @property
    def moved(self) -> int:
        """Bytes that a call has to read and write."""
        case = self.case
        scales = 0 if self.scales is None else 4 * self.batch * case.shape[0]
        return self.batch * case.numel * (case.stored.itemsize + case.wanted.itemsize) + scales

    def error(self) -> float:
        """Largest error of one minibatch against float64, relative."""
        case, indices = self.case, self.sets[0]
        (channels, height, width), found = case.shape, self.gather(indices)
        worst = 0.0
        for place, row in enumerate(indices.tolist()):
            exact = self.rows[row, : case.numel].double()
            exact = exact.view(height, width, channels).permute(2, 0, 1) if case.last else exact.view(case.shape)
            if self.scales is not None:
                exact = exact * self.scales[row].double()[:, None, None]
            off = (found[place].double() - exact).abs() / exact.abs().clamp(min=1e-30)
            worst = max(worst, off.max().item())
        return worst


def speed(
    case: Case,
    device: torch.device,
    copy: float | None,
    *,
    store_bytes: int,
    batch: int,
    repeats: int = REPEATS,
    compile_seconds: float = 0.0,
    block: int | None = None,
) -> dict[str, Any]:
    """Correctness of one minibatch, then seconds of the kernel and of its peers.

    "kernel" is the launch alone on a GPU (the public call with its checks is ``host``'s matter), "x[idx]" the copy of a
    row without conversion, "eager" the obvious lines, "compiled" the same compiled, if ``compile_seconds`` are enough.
    """
    store = Store(case, device, store_bytes, batch)
    found: dict[str, Any] = {"samples": store.samples, "batch": batch, "relative_error": store.error()}
    calls: dict[str, list[Call]] = {"kernel": [lambda i=i: store.gather(i) for i in store.sets]}
    if device.type == "cuda":
        out = torch.empty(batch, case.numel, dtype=case.wanted, device=device)
        calls["kernel"] = [lambda i=i: store.launch(i, out, block) for i in store.sets]
    if block is None:
        plain = "x[idx]" if case.stored == case.wanted else "eager"
        calls[plain] = [lambda i=i: store.lines(i) for i in store.sets]
    found["compiled_error"] = add_compiled(calls, store.lines, [(i,) for i in store.sets], compile_seconds)
    return found | against(timed(calls, device, repeats), "kernel", store.moved, copy)


def pinned(device: torch.device, store_bytes: int, batch: int = 256) -> dict[str, Any]:
    """int8 rows in pinned host memory read by the kernel, against a gather on the host and a copy, with launches."""
    case = Case((64, 32, 32), INT8, BF16)
    stride = row_stride(case.numel, INT8, pinned=True)
    samples = store_bytes // stride
    rows = torch.empty(samples, stride, dtype=INT8, pin_memory=True)
    some = torch.randint(-127, 128, (512, stride), dtype=INT8)
    for part in rows.split(len(some)):
        part.copy_(some[: len(part)])
    scales = torch.rand(samples, case.shape[0]).pin_memory()
    sets = [torch.randint(samples, (batch,)) for _ in range(8)]

    def read(indices: Tensor, where: torch.device) -> Tensor:
        return gather_rows(rows, indices, case.shape, dtype=BF16, scales=scales, device=where)

    calls: dict[str, list[Call]] = {
        "kernel": [lambda i=i: read(i, device) for i in sets],
        "host": [lambda i=i: read(i, torch.device("cpu")).to(device) for i in sets],
    }
    return against(timed(calls, device, 15, launches=8, graphs=False), "kernel", batch * case.numel, None)


def host(device: torch.device) -> dict[str, Any]:
    """What a call costs the host: indices on the host, indices on the device (which it has to wait for), the lines."""
    store = Store(Case((8, 4, 4), INT8, BF16), device, 2**16, 8)
    there, here = store.sets[0], store.sets[0].cpu()
    return {
        "indices on the host": host_seconds(lambda: store.gather(here), device),
        "indices on the device": host_seconds(lambda: store.gather(there), device),
        "eager, indices on the device": host_seconds(lambda: store.lines(there), device),
    }
