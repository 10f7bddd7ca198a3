"""The live stages as one callable: random masks from streams of their own, and freshly compiled code after every drop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldbench.seeds import derive_seed
from ldbench.stages.split import has_randomness

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper


def live_network(dropper: LayerDropper) -> Callable[[Tensor], Tensor]:
    """A fresh callable for the stages that are left: compiled code that assumed the old network is never reused."""
    first, live = dropper.cut, list(dropper.stages)[dropper.cut :]
    random = [has_randomness(stage) for stage in live]
    base, depth = derive_seed(dropper.seed, "dropout"), dropper.depth

    def run(x: Tensor) -> Tensor:
        for offset, stage in enumerate(live):
            if random[offset]:  # a stream per step and stage: the same masks whatever else was dropped
                torch.manual_seed((base + dropper.step_count * 1_000_003 + (first + offset) * 7919) % 2**63)
            x = stage(x) if depth is None else depth.run(first + offset, stage, x)
        return x

    def run_compiled(x: Tensor) -> Tensor:
        if any(random):
            torch.manual_seed((base + dropper.step_count * 1_000_003) % 2**63)
        return compiled(x)  # type: ignore[no-any-return]

    compiled: Any = torch.compile(nn.Sequential(*live)) if dropper.compile else None
    return run_compiled if dropper.compile else run
