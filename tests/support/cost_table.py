"""A cost table of three stages with round figures."""

from __future__ import annotations

from ldbench.costs.table import CostTable, TierCost
from ldbench.stages.flops import StageFlops

FLOPS = [StageFlops(10, 20, 11, (4,)), StageFlops(30, 60, 31, (4,)), StageFlops(5, 10, 6, (2,))]
TABLE = CostTable(
    stages=["a", "b", "c"],
    batch_size=10,
    forward=[1.0, 3.0, 0.5],
    backward=[1.0, 6.0, 1.0],
    inference=[0.5, 1.5, 0.25],
    steps=[13.225, 8.125, 1.425],
    input_seconds=0.25,
    tiers={"device": TierCost(0.01, 0.0, 0.001)},
    flops=FLOPS,
    normalised=[True, False, False],
)
