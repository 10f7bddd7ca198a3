"""Whole runs that leave samples out: bits, schedules, figures of the record, and interruptions, on streams too."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support.interruptions import ONLINE, TABLE, Bench, StopAfter, check_resuming, lasting

from ldbench.meters import step_times
from ldbench.training import loop
from ldbench.training.checkpointing import Checkpointer

CPU = torch.device("cpu")
BOTH = ["infobatch", "autofreeze+store+infobatch"]
LONG: dict[str, Any] = {"epochs": 8}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def online(bench: Bench) -> Bench:
    return bench.online()


def same_weights(one: loop.CellRun, other: loop.CellRun) -> bool:
    return lasting(one)["weights"] == lasting(other)["weights"]


def test_with_nobody_left_out_a_run_has_the_bits_of_full(bench: Bench, tmp_path: Path) -> None:
    full = bench.run(bench.cell("full", **LONG), tmp_path)
    for options in ({"ratio": 0}, {"until": 0}):
        run = bench.run(bench.cell("infobatch", policy={"infobatch": options}, **LONG), tmp_path)
        assert same_weights(run, full)
        for row, whole in zip(run.epochs, full.epochs, strict=True):
            for key in ("step", "lr", "test_accuracy", "test_loss", "forward_flops", "backward_flops"):
                assert row[key] == whole[key], key
            assert row["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
        assert run.result["steps"] == full.result["steps"]
        assert run.result["predicted_saved_seconds"] == 0
    assert not same_weights(bench.run(bench.cell("infobatch", **LONG), tmp_path), full)


def test_a_rule_that_drops_has_its_own_bits_where_nobody_is_left_out(bench: Bench, tmp_path: Path) -> None:
    plain = bench.run(bench.cell("schedule", **LONG), tmp_path / "plain")
    policy = {"schedule+infobatch": {"drops": TABLE["policy"]["schedule"]["drops"], "ratio": 0}}
    run = bench.run(bench.cell("schedule+infobatch", policy=policy, **LONG), tmp_path / "pruned")
    drops = [[(drop["step"], drop["cut"]) for drop in each.result["drops"]] for each in (plain, run)]
    assert len(drops[0]) == 2
    assert drops[0] == drops[1]
    assert same_weights(run, plain)


def test_the_record_tells_the_steps_that_were_made_and_what_they_executed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_times, "FEWEST_STEPS", 10**9)  # every step counts as long as it was
    run = bench.run(bench.cell("infobatch", **LONG), tmp_path)
    record, rows, whole = run.result, run.epochs, 5
    lengths = [after - before for before, after in itertools.pairwise([0, *(row["step"] for row in rows)])]
    assert len(rows) == record["epochs"] == 8
    assert lengths[0] == lengths[-1] == whole
    assert all(1 <= length <= whole for length in lengths)
    assert sum(lengths) == record["steps"] < 8 * whole
    for kind in ("forward", "backward"):
        assert record[f"{kind}_flops_full"] * record["steps"] == record[f"{kind}_flops"] * 8 * whole
    assert record["forward_flops"] == 20 * record["steps"] * sum(stage["forward_flops"] for stage in record["stages"])
    assert sum(kind["steps"] for kind in record["step_seconds"]) == record["steps"]
    assert 0.7 * record["train_seconds"] <= record["typical_train_seconds"] <= record["train_seconds"]
    assert record["predicted_saved_seconds"] == pytest.approx((40 - record["steps"]) * bench.costs.step_seconds(0))
    full = bench.run(bench.cell("full", **LONG), tmp_path)
    assert rows[0]["lr"] == full.epochs[0]["lr"]  # the first epoch is whole
    assert rows[0]["test_accuracy"] == full.epochs[0]["test_accuracy"]
    for row, other in zip(rows, full.epochs, strict=True):
        assert 0.5 * other["train_loss"] < row["train_loss"] < 2 * other["train_loss"]  # of all samples, by weights


def test_a_drop_and_samples_that_sit_out_are_both_taken_off_the_flops(bench: Bench, tmp_path: Path) -> None:
    policy = {"schedule+infobatch": {"drops": [[0.5, 2]]}}
    record = bench.run(bench.cell("schedule+infobatch", policy=policy, **LONG), tmp_path).result
    [drop] = record["drops"]
    assert drop["cut"] == 2
    steps, stages = record["steps"], record["stages"]
    passes = 100 + 2  # the store of all samples, and two of them alone
    for place, stage in enumerate(stages):
        through = 20 * (drop["step"] if place < 2 else steps) + (passes if place < 2 else 0)
        assert stage["executed_forward_flops"] == through * stage["forward_flops"]
    assert 0.5 <= (drop["epoch"] + 1) / 8 <= 0.625  # half of the plan is over in the fourth epoch or behind it


def rates(
    bench: Bench, method: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[float], loop.CellRun]:
    """The rate of every step, and the run."""
    seen: list[float] = []
    set_rates = loop.set_learning_rates

    def watched(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        set_rates(optimizer, *rest)
        seen.append(optimizer.param_groups[-1]["lr"])

    monkeypatch.setattr(loop, "set_learning_rates", watched)
    run = bench.run(bench.cell(method, schedule="cosine", warmup_fraction=0.0, **options), folder)
    monkeypatch.setattr(loop, "set_learning_rates", set_rates)
    return seen, run


def test_the_rate_comes_to_rest_with_the_last_step(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, _ = rates(bench, "full", tmp_path, monkeypatch, **LONG)
    pruned, _ = rates(bench, "infobatch", tmp_path, monkeypatch, **LONG)
    assert len(pruned) < len(full) == 40
    assert pruned == sorted(pruned, reverse=True)
    assert pruned[:5] == full[:5]
    assert pruned[-5:] == full[-5:]  # both last epochs are whole
    assert pruned[-1] < 0.01 * pruned[0]


@pytest.mark.parametrize("spanned", ["chunk", "whole"])
def test_on_a_stream_each_chunk_or_the_last_ends_where_it_does_with_all_samples(
    spanned: str, online: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ONLINE | {"stream_schedule": spanned}
    full, _ = rates(online, "full", tmp_path, monkeypatch, **options)
    pruned, run = rates(online, "infobatch", tmp_path, monkeypatch, **options)
    record, rows = run.result, run.epochs
    assert len(pruned) == record["steps"] < len(full) == 4 * (4 + 6 + 6)
    assert pruned[-6:] == full[-6:]
    ends = [chunk["step"] for chunk in record["chunks"]]
    assert ends[-1] == record["steps"]
    steps = [0, *(row["step"] for row in rows)]
    lengths = [after - before for before, after in itertools.pairwise(steps)]
    assert [lengths[last] for last in (3, 7, 11)] == [4, 6, 6]  # whole at the end of every chunk
    closing, ending = [pruned[end - 1] for end in ends], [full[end - 1] for end in (16, 40, 64)]
    assert closing == ending
    assert (max(closing) < 0.05 * pruned[0]) == (spanned == "chunk")
    for row in rows:
        assert row["forward_flops"] == 10 * row["step"] * sum(stage["forward_flops"] for stage in record["stages"])


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_in_the_middle_of_a_pruned_epoch_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("autofreeze+store+infobatch", **LONG)
    check_resuming(bench, cell, tmp_path, once=19, often=7)


@pytest.mark.parametrize("method", BOTH)
def test_stopped_anywhere_a_run_ends_with_the_same_bits(method: str, bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell(method, **LONG)
    whole, counter = lasting(bench.run(cell, tmp_path / "plain")), StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Checkpointer(tmp_path / "counted", counter))
    for first in range(1, 10**9 - counter.left, 3):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == whole
        assert sum(kind["steps"] for kind in resumed.result["step_seconds"]) == resumed.result["steps"]


class Killed(Exception):
    """The process is gone at once."""


class KillAfter(StopAfter):
    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("method", BOTH)
def test_killed_anywhere_a_run_goes_on_from_its_last_checkpoint_with_the_same_bits(
    method: str, bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell(method, **LONG)
    whole = lasting(bench.run(cell, tmp_path / "plain"))
    folder, kills = tmp_path / "killed", 0
    folder.mkdir()
    for number in range(4, 40, 3):
        try:
            bench.run(cell, folder, Checkpointer(folder, KillAfter(number), minutes=0))  # one after every step
        except Killed:
            kills += 1
    assert kills >= 3
    assert lasting(bench.run(cell, folder, Checkpointer(folder))) == whole


@pytest.mark.parametrize("method", [*BOTH, "learn-and-drop+infobatch"])
def test_on_a_stream_an_interrupted_run_ends_with_the_same_bits(method: str, online: Bench, tmp_path: Path) -> None:
    policy = {"learn-and-drop+infobatch": {"remaining": 0.9, "patience": 1}}
    cell = online.cell(method, policy=policy, **ONLINE)
    plain = online.run(cell, tmp_path / "plain")
    assert bool(plain.result["drops"]) == (method != "infobatch")
    for first in (9, 33, 50):
        resumed, stopped = online.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == lasting(plain)
    often, stopped = online.interrupted(cell, tmp_path / "often", *range(7, 60, 5))
    assert stopped >= 2
    assert lasting(often) == lasting(plain)
