"""The network that trains: the live stages as one callable, with random masks from streams of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.seeds import derive_seed
from ldbench.stages.residual import RandomDepth
from ldbench.stages.split import has_randomness
from ldbench.stages.undisturbed import preserved_random


class LiveNetwork:
    """Runs the stages that are left; code compiled for the network before a drop is never used again.

    Args:
        stages: the whole network's.
        seed: of dropout: a stream per step and stage, so that the masks are the same whatever else was dropped.
        device: whose random state is put back after a forward pass.
        compiled: compile the live stages.
        depth: leaves residual blocks out at random; None: none.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        seed: int,
        device: torch.device,
        *,
        compiled: bool = False,
        depth: RandomDepth | None = None,
    ) -> None:
        self.stages, self.depth, self.device = stages, depth, device
        self._seed, self._wants_compiled = derive_seed(seed, "dropout"), compiled
        self.advance(0)

    def advance(self, cut: int) -> None:
        """The first ``cut`` stages are dropped from now on."""
        self._cut, self._live = cut, list(self.stages)[cut:]
        self._random = [has_randomness(stage) for stage in self._live]
        self._compiled: Any = torch.compile(nn.Sequential(*self._live)) if self._wants_compiled else None

    def __call__(self, x: Tensor, number: int, entry: int) -> Tensor:
        """The network's output for minibatch ``number`` of the run, from 0, which has been through ``entry`` stages.

        The dropped stages from there on run in evaluation mode and without gradients. The global random states are
        left as they were: masks come from streams of their own.
        """
        if entry < self._cut:
            x = self._through_dropped(x, entry)
        if not any(self._random):
            return self._run(x, 0)
        with preserved_random(self.device):
            return self._run(x, self._seed + number * 1_000_003)

    def _run(self, x: Tensor, base: int) -> Tensor:
        if self._compiled is not None:
            if any(self._random):
                self._begin_stream(base % 2**63)
            return self._compiled(x)  # type: ignore[no-any-return]
        for place, (stage, random) in enumerate(zip(self._live, self._random, strict=True), start=self._cut):
            if random:
                self._begin_stream((base + place * 7919) % 2**63)
            x = stage(x) if self.depth is None else self.depth.run(place, stage, x)
        return x

    def _begin_stream(self, seed: int) -> None:
        """As ``torch.manual_seed``, for the two generators that a stage can draw from: that takes a fifth of a millisecond
        where CUDA is not initialised.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            place = torch.cuda.current_device() if self.device.index is None else self.device.index
            torch.cuda.default_generators[place].manual_seed(seed)

    @torch.no_grad()
    def _through_dropped(self, x: Tensor, entry: int) -> Tensor:
        stages = list(self.stages)[entry : self._cut]
        awake = [module for stage in stages for module in stage.modules() if module.training]
        for module in awake:
            module.training = False
        try:
            for stage in stages:
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
