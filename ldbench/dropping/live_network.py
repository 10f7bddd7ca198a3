"""The network that trains: the live stages as one callable, with random masks from streams of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.seeds import derive_seed
from ldbench.stages.residual import RandomDepth
from ldbench.stages.split import has_randomness


class LiveNetwork:
    """Runs the stages that are left; code compiled for the network before a drop is never used again.

    Args:
        stages: the whole network's.
        seed: of dropout: a stream per step and stage, so that the masks are the same whatever else was dropped.
        compiled: compile the live stages.
        runs_dropped: send minibatches through the dropped stages first, in evaluation mode and without gradients.
        depth: leaves residual blocks out at random; None: none.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        seed: int,
        *,
        compiled: bool = False,
        runs_dropped: bool = False,
        depth: RandomDepth | None = None,
    ) -> None:
        self.stages, self.depth, self.runs_dropped = stages, depth, runs_dropped
        self._seed, self._wants_compiled = derive_seed(seed, "dropout"), compiled
        self.advance(0)

    def advance(self, cut: int) -> None:
        """The first ``cut`` stages are dropped from now on."""
        self._cut, self._live = cut, list(self.stages)[cut:]
        self._random = [has_randomness(stage) for stage in self._live]
        self._dropped = [m for stage in self.stages[:cut] for m in stage.modules()] if self.runs_dropped else []
        self._compiled: Any = torch.compile(nn.Sequential(*self._live)) if self._wants_compiled else None

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The network's output for a minibatch of step number ``step``, from 0."""
        if self.runs_dropped and self._cut:
            x = self._through_dropped(x)
        base = self._seed + step * 1_000_003
        if self._compiled is not None:
            if any(self._random):
                torch.manual_seed(base % 2**63)
            return self._compiled(x)  # type: ignore[no-any-return]
        for place, (stage, random) in enumerate(zip(self._live, self._random, strict=True), start=self._cut):
            if random:
                torch.manual_seed((base + place * 7919) % 2**63)
            x = stage(x) if self.depth is None else self.depth.run(place, stage, x)
        return x

    @torch.no_grad()
    def _through_dropped(self, x: Tensor) -> Tensor:
        awake = [module for module in self._dropped if module.training]
        for module in awake:
            module.training = False
        try:
            for stage in self.stages[: self._cut]:
                x = stage(x)
        finally:
            for module in awake:  # a live stage may share one, such as a dropout
                module.training = True
        return x

    def draw(self, step: int, survival: Callable[[int], Sequence[float] | None]) -> None:
        """Decide which residual blocks a step leaves out; ``survival``: the blocks' probabilities, given how many."""
        if self.depth is not None:
            self.depth.draw(step, survival(len(self.depth.places)) or [])

    @property
    def skipped(self) -> frozenset[int]:
        """Stages whose branch the step that was drawn leaves out."""
        return self.depth.skipped if self.depth is not None else frozenset()

    @property
    def skipped_steps(self) -> list[int]:
        """Per stage, how many steps left its branch out."""
        return self.depth.skipped_steps if self.depth is not None else [0] * len(self.stages)

    def count_step(self) -> None:
        """The step that was drawn was made."""
        if self.depth is not None:
            self.depth.count()

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {"skipped_steps": list(self.skipped_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        if self.depth is not None:
            self.depth.skipped_steps = list(state["skipped_steps"])
