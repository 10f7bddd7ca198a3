"""Choosing a cut by FLOPs: the table against figures worked out by hand, and decisions that no clock can change."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest

from ldbench.costs.break_even import StorePlan
from ldbench.costs.by_flops import FLOPS_PER_BYTE, in_flops, table_in_flops
from ldbench.costs.model import CostModel, Unmeasurable
from ldbench.costs.table import CostTable, TierCost
from ldbench.errors import UserError
from ldbench.policies.rules import FixedSchedule
from ldbench.stages.flops import StageFlops
from ldbench.store.budget import StoreBudget
from tests.support.loops import Net, Training, cheap_store

# The second stage is the dear one.
STAGES = [StageFlops(100, 200, 100, (4,)), StageFlops(1000, 2000, 1000, (4,)), StageFlops(50, 100, 50, (2,))]
TABLE = table_in_flops(STAGES, 10, (1, 2, 2), [False] * 3)
PLAN = StorePlan(100, "fp32", StoreBudget(10**9, 0, 0))
NO_OBSTACLES = [""] * 3


def test_a_step_counts_its_live_stages_and_what_they_read() -> None:
    images = 10 * 4 * 4 * 10  # samples x pixels x bytes x FLOPs a byte
    assert TABLE.step_seconds(0) == 10 * (100 + 100 + 1000 + 2000 + 50 + 100) + images
    row = 16  # bytes: rows are padded to 16
    assert TABLE.step_seconds(1, TABLE.read_seconds("device", row)) == 10 * (1000 + 1000 + 50 + 100) + 10 * row * 10
    assert TABLE.inference == TABLE.forward == [1000, 10_000, 500]


def model(table: CostTable | None, **options: Any) -> CostModel:
    return CostModel(table, options.pop("measure", no_clock), StoreBudget(10**9, 0, 0), lambda: TABLE)


def no_clock() -> CostTable:
    raise AssertionError("nothing is timed where FLOPs decide")


def timed(seconds: float) -> CostTable:
    """A table whose times would have nothing dropped: every later step takes longer."""
    tiers = {"device": TierCost(seconds, 0.0, 0.0)}
    return dataclasses.replace(TABLE, steps=[seconds, 2 * seconds, 3 * seconds], tiers=tiers, input_seconds=0.0)


def test_the_cut_is_chosen_by_flops_whatever_the_clock_says() -> None:
    choices = [
        model(table).choose_store(0, 2, 40, NO_OBSTACLES, False, PLAN) for table in (None, timed(1.0), timed(99.0))
    ]
    assert [choice.cut for choice in choices] == [2, 2, 2]
    assert choices[0].saving_seconds is None
    assert choices[1].saving_seconds == pytest.approx(
        40 * (1.0 - (3.0 + 1.0)) - 10 * (1000 + 10_000)
    )  # what the clock's table makes of the same cut, a building pass of 11,000 s included
    assert "FLOPs" in choices[0].reason
    assert choices[0].reason == choices[1].reason


def test_a_cut_by_flops_has_to_pay_for_its_store() -> None:
    # cut 2 saves 10 x (400 - 200 + 3000 - ...) a step; 10 batches x 11,000 to run and 10 x 160 bytes x 10 to write
    few = model(None).choose_store(0, 2, 1, NO_OBSTACLES, True, PLAN)
    assert few.cut == 0
    assert "does not pay" in few.reason
    assert "FLOPs" in few.reason


def test_reading_a_wide_activation_counts() -> None:
    wide = [StageFlops(100, 200, 100, (1000,)), StageFlops(10, 20, 10, (2,)), StageFlops(10, 20, 10, (2,))]
    dear = table_in_flops(wide, 10, (1, 2, 2), [False] * 3)
    assert CostModel(None, no_clock, StoreBudget(10**9, 0, 0), lambda: dear).choose_store(
        0, 1, 10**6, NO_OBSTACLES, True, PLAN
    ).cut == 0  # fmt: skip
    slow = StorePlan(100, "fp32", StoreBudget(0, 0, 10**9))  # a disk: 3000 FLOPs a byte
    on_disk = CostModel(None, no_clock, StoreBudget(0, 0, 10**9), lambda: TABLE)
    assert on_disk.choose_store(0, 1, 10**6, NO_OBSTACLES, True, slow).cut == 0
    assert model(None).choose_store(0, 1, 10**6, NO_OBSTACLES, True, PLAN).cut == 1
    assert FLOPS_PER_BYTE["device"] < FLOPS_PER_BYTE["pinned"] < FLOPS_PER_BYTE["disk"]


def test_a_network_whose_flops_cannot_be_counted_drops_nothing_and_says_why() -> None:
    def broken() -> CostTable:
        raise RuntimeError("no such operator")

    with pytest.raises(Unmeasurable, match="no such operator"):
        CostModel(None, no_clock, StoreBudget(10**9, 0, 0), broken).choose_store(0, 2, 40, NO_OBSTACLES, False, PLAN)


@pytest.mark.parametrize(
    ("flops", "text"), [(12.0, "12 FLOPs"), (5.2e9, "5.2 GFLOPs"), (-3e12, "-3 TFLOPs"), (7e6, "7 MFLOPs")]
)
def test_flops_are_written_for_people(flops: float, text: str) -> None:
    assert in_flops(flops) == text


def test_a_loop_that_decides_by_flops_drops_without_a_clock() -> None:
    schedule = ((0.25, 1), (0.5, 2))
    tables = (None, cheap_store(Net()))
    runs = [
        Training(FixedSchedule(schedule, cheapest=True), decide_by="flops", costs=table, epochs=20) for table in tables
    ]
    for run in runs:
        run.run()
    assert [(d.step, d.cut, d.reason) for d in runs[0].dropper.drops] == [
        (d.step, d.cut, d.reason) for d in runs[1].dropper.drops
    ]
    assert runs[0].dropper.cut == 2
    assert runs[0].dropper.costs.known is None  # nothing was measured
    assert all(drop.predicted_saving_seconds is None for drop in runs[0].dropper.drops)
    assert all(drop.predicted_saving_seconds is not None for drop in runs[1].dropper.drops)


def test_what_decides_is_one_of_two() -> None:
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="decide_by is flops or time"):
        stack.enter_context(Training(FixedSchedule(), decide_by="joules").dropper)
