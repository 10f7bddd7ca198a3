"""The cost table (seconds and FLOPs per stage, store costs per tier) and the break-even rule that reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ldbench.stages.flops import StageFlops


@dataclass(frozen=True)
class TierCost:
    """Seconds to read and to write one minibatch of rows: overhead + bytes x rate."""

    read_overhead: float
    read_per_byte: float
    write_per_byte: float


@dataclass(frozen=True)
class CostTable:
    """What one step costs, measured once per model, data set and machine. Seconds are per minibatch of ``batch_size``.

    Attributes:
        steps: a whole training step of the stages from each cut on, its input at hand. Not the sum of the parts: in a
            whole step every part finds the caches full of the others' activations.
        forward, backward: train mode, each stage by itself; ``backward`` includes the gradient of the stage's input,
            save for the first stage, whose input needs none.
        inference: forward in eval mode without gradients, per stage.
        input_seconds: fetching and normalising a minibatch of images.
        tiers: cost of the activation store by tier.
        flops: FLOPs per sample and stage, with the output shapes.
        normalised: per stage, whether it holds BatchNorm statistics.
        machine: what the seconds are true for.
    """

    stages: list[str]
    batch_size: int
    steps: list[float]
    forward: list[float]
    backward: list[float]
    inference: list[float]
    input_seconds: float
    tiers: dict[str, TierCost]
    flops: list[StageFlops]
    normalised: list[bool]
    machine: dict[str, Any] = field(default_factory=dict)
    seconds_to_measure: float = 0.0

    def read_seconds(self, tier: str, row_bytes: float) -> float:
        """One minibatch from a store of ``row_bytes`` bytes per sample."""
        cost = self.tiers[tier]
        return cost.read_overhead + cost.read_per_byte * row_bytes * self.batch_size

    def step_seconds(self, cut: int, source_seconds: float | None = None) -> float:
        """One training step with the first ``cut`` stages gone; ``source_seconds`` replaces reading images."""
        return self.steps[cut] + (self.input_seconds if source_seconds is None else source_seconds)

    @classmethod
    def untimed(cls, flops: list[StageFlops], batch_size: int) -> CostTable:
        """A table for a run that drops nothing: FLOPs alone, no second of which was measured."""
        none = [0.0] * len(flops)
        return cls([], batch_size, none, none, none, none, 0.0, {}, flops, [False] * len(flops))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CostTable:
        """The table that ``to_dict`` described."""
        flops = [StageFlops(**{**f, "output_shape": tuple(f["output_shape"])}) for f in values["flops"]]
        tiers = {name: TierCost(**cost) for name, cost in values["tiers"].items()}
        return cls(**{**values, "flops": flops, "tiers": tiers})
