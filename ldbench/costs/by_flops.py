"""A cost table in FLOPs instead of seconds: the same on every machine and at every time, so that decisions repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldbench.costs.table import CostTable, TierCost
from ldbench.stages.flops import StageFlops

# What moving a byte counts for, in FLOPs: the balance of a machine. A GPU that makes 30 TFLOP/s of a network's layers and
# reads 3 TB/s of its own memory has 10, as has a CPU core with 100 GFLOP/s and 10 GB/s; a host's memory behind PCIe gives
# some 100 GB/s, a disk 10.
FLOPS_PER_BYTE = {"device": 10.0, "pinned": 300.0, "disk": 3000.0}


def table_in_flops(
    flops: Sequence[StageFlops], batch_size: int, sample_shape: Sequence[int], normalised: Sequence[bool]
) -> CostTable:
    """A cost table whose "seconds" are FLOPs, a byte that is moved counted as ``FLOPS_PER_BYTE`` of them.

    Args:
        flops: per stage and sample.
        sample_shape: (C, H, W) of an image, read in fp32 from the device's memory.
        normalised: per stage, whether it holds BatchNorm statistics.
    """
    forward = [float(batch_size * stage.forward) for stage in flops]
    backward = [float(batch_size * stage.backward) for stage in flops]
    passed_on = [batch_size * (stage.backward - stage.backward_first) for stage in flops]
    whole = [sum(forward[cut:]) + sum(backward[cut:]) - passed_on[cut] for cut in range(len(flops))]
    return CostTable(
        stages=[],
        batch_size=batch_size,
        steps=whole,
        forward=forward,
        backward=backward,
        inference=forward,
        input_seconds=batch_size * 4 * math.prod(sample_shape) * FLOPS_PER_BYTE["device"],
        tiers={tier: TierCost(0.0, per_byte, per_byte) for tier, per_byte in FLOPS_PER_BYTE.items()},
        flops=list(flops),
        normalised=list(normalised),
    )


def in_flops(flops: float) -> str:
    """FLOPs for people: "5.2 GFLOPs"."""
    for size, name in ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs")):
        if abs(flops) >= size:
            return f"{flops / size:.3g} {name}"
    return f"{flops:.3g} FLOPs"
