"""Resuming: a run that was interrupted anywhere ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import Bench, StopAfter, lasting
from ldbench.checkpoint import read_checkpoint
from ldbench.keeper import CHECKPOINT, Keeper
from ldbench.signals import Interrupted


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


METHODS = ["full", "short", "learn-and-drop", "freeze", "freezeout", "schedule"]


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_before_between_and_after_drops_a_run_ends_with_the_same_bits(
    method: str, bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell(method)
    plain = bench.run(cell, tmp_path / "plain")
    whole = lasting(plain)
    if method not in ("full", "short"):
        assert len({drop["cut"] for drop in plain.result["drops"]}) >= 2
    counter = StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Keeper(tmp_path / "counted", counter))
    points = 10**9 - counter.left  # steps, minibatches of stores and evaluations, and the end of training
    for first in (1, points // 4, points // 2 + 1, 3 * points // 4, points - 1):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == whole
        assert resumed.result["resumes"] == 1


def test_a_run_stopped_after_every_few_steps_ends_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("schedule", cache_budget="0,0,100MB", optimizer="adamw", augment="flip+crop", val_size=20)
    whole = lasting(bench.run(cell, tmp_path / "plain"))
    resumed, stopped = bench.interrupted(cell, tmp_path / "often", *[9] * 30)
    assert stopped >= 5
    assert lasting(resumed) == whole
