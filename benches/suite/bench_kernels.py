"""The two kernels and their peers in plain PyTorch, at sizes taken from real networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import models

from ldbench.kernels import DeltaNormPlan, delta_norms, gather_rows, quantize_rows, row_stride

from . import common
from .places import synchronize

timeout = 300


class _Norms:
    """Norms of all layers with the snapshot updated, by turns of two sets of parameters, so that they always moved."""

    def setup(self, model: str, *_: str) -> None:
        where = common.device()
        network = models.get_model(model, num_classes=10).to(where)
        first = [p.detach() for p in network.parameters()]
        self.parameters = [first, [p + 0.01 for p in first]]
        self.snapshots = [p.clone() for p in first]
        layers = list(range(len(first)))
        self.plans = [DeltaNormPlan(thetas, self.snapshots, layers, len(layers)) for thetas in self.parameters]
        self.turn = 0
        self.out = torch.empty(len(layers), 2, device=where)

    def run(self, by: str) -> None:
        self.turn = 1 - self.turn
        if by == "ldbench":
            delta_norms(self.plans[self.turn], self.out)
        else:
            torch._foreach_norm(torch._foreach_sub(self.parameters[self.turn], self.snapshots))
            torch._foreach_norm(self.snapshots)
            torch._foreach_copy_(self.snapshots, self.parameters[self.turn])
        synchronize(self.out.device)


class DeltaNorms(_Norms):
    """Seconds of ours and of the obvious lines."""

    params = (["vgg11_bn", "resnet50"], ["ldbench", "foreach"], [common.machine_key()])
    param_names = ("parameters of", "by", "device")
    version = "2"

    def time_norms(self, model: str, by: str, device: str) -> None:
        self.run(by)


class DeltaNormsRatio(_Norms):
    """Ours over the obvious lines."""

    params = (["resnet18"], [common.machine_key()])
    param_names = ("parameters of", "device")
    unit = "of the foreach lines"
    version = "2"

    def track_norms_over_foreach(self, model: str, device: str) -> dict[str, object]:
        def pair() -> tuple[Callable[[], None], Callable[[], None]]:
            self.setup(model)
            return lambda: self.run("ldbench"), lambda: self.run("foreach")

        return common.ratio_samples(pair)


class _Gather:
    """A minibatch of 128 from a store behind VGG's second stage, by what the rows are kept in."""

    shape = (64, 8, 8)

    def setup(self, rows: str, *_: str) -> None:
        where = common.device()
        self.x = torch.randn(2048, *self.shape, device=where)
        self.scales: Tensor | None = None
        if rows == "int8":
            self.rows, self.scales = quantize_rows(self.x)
        else:
            dtype = {"fp32": torch.float32, "fp16": torch.float16}[rows]
            assert row_stride(64 * 8 * 8, dtype) == 64 * 8 * 8
            self.rows = self.x.reshape(2048, -1).to(dtype)
        self.index = torch.randint(2048, (128,), device=where)

    def run(self, by: str) -> None:
        if by == "ldbench":
            out = gather_rows(self.rows, self.index, self.shape, dtype=torch.float32, scales=self.scales)
        else:
            out = self.rows[self.index].float().view(-1, *self.shape)
            if self.scales is not None:
                out = out * self.scales[self.index].view(-1, self.shape[0], 1, 1)
        synchronize(out.device)


class GatherRows(_Gather):
    """Seconds of ours and of the obvious lines."""

    params = (["fp32", "fp16", "int8"], ["ldbench", "indexing"], [common.machine_key()])
    param_names = ("rows", "by", "device")
    version = "2"
    sample_time = 0.05

    def time_gather(self, rows: str, by: str, device: str) -> None:
        self.run(by)


class GatherRatio(_Gather):
    """Ours over the obvious lines."""

    params = (["fp32", "fp16", "int8"], [common.machine_key()])
    param_names = ("rows", "device")
    unit = "of indexing"
    version = "2"

    def track_gather_over_indexing(self, rows: str, device: str) -> dict[str, object]:
        def pair() -> tuple[Callable[[], None], Callable[[], None]]:
            self.setup(rows)
            return lambda: self.run("ldbench"), lambda: self.run("indexing")

        return common.ratio_samples(pair)
