"""Online training: what the store holds, what is read again, what is charged, and that interruptions change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from support.hostile import ldbench, refused
from support.interruptions import TABLE, Bench, StopAfter, lasting
from support.loops import BATCH, SAMPLES, Net, cheap_store, data
from torch import Tensor, nn

from ldbench import FixedSchedule, LayerDropper
from ldbench.cli.progress import ConsoleProgress
from ldbench.data.batch_source import TensorSource
from ldbench.data.stream import Stream, chunked
from ldbench.errors import UserError
from ldbench.experiment.grid import cells
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import plain, read_sealed
from ldbench.io.tensors import read_checkpoint
from ldbench.models.recipes import default_recipe
from ldbench.records.integrity import verify
from ldbench.records.results import load_results
from ldbench.reporting.report import write_report
from ldbench.reporting.summary import summarize
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.runner.run_grid import run_experiment
from ldbench.store.budget import StoreOptions
from ldbench.training.checkpointing import CHECKPOINT, Checkpointer
from ldbench.training.epochs import plan_epochs
from ldbench.training.interrupts import Interrupted
from ldbench.training.loop import run_cell

CPU = torch.device("cpu")
METHODS = ["full", "short", "learn-and-drop", "freeze", "schedule", "freezeout"]
ONLINE: dict[str, Any] = {
    "scenario": "online",
    "chunks": 3,
    "memory": 20,
    "train_size": 120,
    "epochs": 2,
    "batch_size": 10,
    "policy": TABLE["policy"] | {"learn-and-drop": {"remaining": 0.9, "patience": 1}},
}


class Watched(TensorSource):
    """Notes which images are read."""

    read: list[int]

    def batch(self, indices: Tensor, augment: Any = None) -> tuple[Tensor, Tensor]:
        self.read += indices.tolist()
        return super().batch(indices, augment)


def stream() -> Stream:
    return chunked(data()[1], 3, chunks=3, memory=20)  # 32 new ones each


@pytest.mark.parametrize("tier", ["device", "disk"])
def test_new_samples_pass_once_through_the_dropped_stages_and_join_the_store(tier: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    feed, sets, model = Watched(*data(), CPU), stream(), Net()
    feed.read = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    dropper = LayerDropper(
        model,
        optimizer,
        feed,
        stream=sets,
        batch_size=BATCH,
        epochs=2,
        policy=FixedSchedule([[0.2, 1], [0.75, 2]], waits=False),
        costs=cheap_store(model),
        check_every=1,
        store=StoreOptions(budget="0,0,1MB" if tier == "disk" else None, folder=tmp_path),
    )
    assert dropper.total_steps == 2 * (2 + 3 + 3)
    dropper.count_flops((1, 8, 8))
    for chunk in range(3):
        feed.read = []
        had_store = dropper.store is not None
        if chunk:
            dropper.begin_chunk(chunk)
        if had_store:
            assert sorted(feed.read) == sets.arrivals(chunk).tolist()  # each once, and no other
        for _ in range(2):
            for x, y, index in dropper:
                assert torch.isin(index, sets.sets[chunk]).all()
                optimizer.zero_grad()
                nn.functional.cross_entropy(dropper(x), y).backward()
                optimizer.step()
                dropper.step()
        store = dropper.store
        assert store is not None
        assert (store.tier, store.samples) == (tier, sets.capacity) == (tier, 52)
        if had_store:  # also where a second drop was made meanwhile
            assert set(feed.read) <= set(sets.arrivals(chunk).tolist())
        active = sets.sets[chunk]
        with torch.no_grad():
            fresh = data()[0][active]
            for stage in dropper.stages[: dropper.cut].eval():
                fresh = stage(fresh)
        torch.testing.assert_close(dropper.activations.read(active), fresh, rtol=1e-5, atol=1e-6)
        assert torch.equal(dropper.activations.batch(active)[1], data()[1][active])
    assert [(drop.cut, drop.step <= 10) for drop in dropper.drops] == [(1, True), (2, False)]
    ledger = dropper.account.flops
    flops = [entry.forward for entry in ledger.table]
    passes = 32 + 2 + 2 * 32  # at the first drop: the store, two samples alone; later two chunks
    later = 52 + 2  # at the second drop: the store, two samples alone
    assert ledger.building == passes * flops[0] + later * flops[1]
    assert len(feed) == SAMPLES


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Data of the online cells, and a table in which every drop pays."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    online = experiment_from_dict(TABLE | ONLINE)
    made.data = Preparation(online, made.folder / "online", CPU).data(plan(online)[0])
    return made


def test_all_methods_meet_the_same_chunks_and_steps_and_are_told_apart_by_what_they_cost(
    bench: Bench, tmp_path: Path
) -> None:
    runs = {method: bench.run(bench.cell(method, **ONLINE), tmp_path / method) for method in METHODS}
    records = {method: run.result for method, run in runs.items()}
    size, remembered = 40, [0, 20, 20]
    steps = [8, 8 + 12, 8 + 12 + 12]
    for method, record in records.items():
        chunks = record["chunks"]
        assert [c["remembered"] for c in chunks] == remembered
        assert [c["images_seen"] for c in chunks] == [size, 2 * size, 3 * size]
        assert [c["step"] for c in chunks] == (steps if method != "short" else [4, 4 + 7, 4 + 7 + 7])
        assert record["average_accuracy"] == pytest.approx(sum(c["test_accuracy"] for c in chunks) / 3)
        assert record["test_accuracy"] == chunks[-1]["test_accuracy"]
        assert (record["chunk_size"], record["memory_size"], record["scenario"]) == (size, 20, "online")
        seconds, forward = ([c[key] for c in chunks] for key in ("train_seconds", "forward_flops"))
        assert seconds == sorted(seconds)
        assert forward == sorted(forward)
        assert forward[-1] == record["forward_flops"]
    assert records["full"]["forward_flops"] == records["full"]["forward_flops_full"]
    assert len(records["schedule"]["drops"]) == 2
    first = records["learn-and-drop"]["drops"][0]
    assert records["learn-and-drop"]["store_bytes"] <= 60 * max(
        stage["activation_bytes"] + 64 for stage in records["full"]["stages"]
    )
    assert 0 < first["step"] <= 20  # so that at least one chunk arrives after it
    assert records["learn-and-drop"]["cache_build_flops"] > 0


def test_what_has_stopped_leaves_when_its_chunk_is_over_and_evaluated(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(bench.cell("schedule", **ONLINE), tmp_path)  # 25 % of the run: in the first chunk, of 8 in 32 steps
    ends = [chunk["step"] for chunk in run.result["chunks"]]
    assert [(drop["step"], drop["at_chunk_end"]) for drop in run.result["drops"]] == [(end, True) for end in ends[:2]]
    gone = [chunk["dropped_stages"] for chunk in run.result["chunks"]]
    assert gone == [0, *(drop["cut"] for drop in run.result["drops"])]
    own = bench.run(
        bench.cell("freezeout+store", **(ONLINE | {"policy": {"freezeout+store": {"t_first": 0.4}}})), tmp_path
    )
    assert not any(drop["at_chunk_end"] for drop in own.result["drops"])  # a rival's rule is its own


@pytest.mark.parametrize(("spanned", "rests"), [("chunk", [True, True, True]), ("whole", [False, False, True])])
def test_the_rate_comes_to_rest_in_each_chunk_or_once(
    spanned: str, rests: list[bool], bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell("full", **ONLINE, schedule="cosine", stream_schedule=spanned)
    run = bench.run(cell, tmp_path)
    closing = {row["chunk"]: row["lr"] for row in run.epochs}
    assert [closing[chunk] < 0.1 * cell.lr for chunk in range(3)] == rests


def test_short_early_spends_its_budget_on_the_first_chunk_first() -> None:
    sets = stream()  # of 32, 52 and 52 samples
    steps = [6, 10, 10]  # two epochs in batches of ten

    def trained(budget: float, early: bool) -> list[int]:
        course = plan_epochs(sets, 10, 2, budget, early=early)
        assert [epoch.chunk for epoch in course] == sorted(epoch.chunk for epoch in course)
        return [sum(epoch.steps for epoch in course if epoch.chunk == chunk) for chunk in range(3)]

    assert trained(0.5, early=False) == [3, 5, 5]
    assert trained(0.5, early=True) == [6, 4, 4]  # 13 of 26 steps, 7 of them for two chunks
    assert trained(0.1, early=True) == [3, 1, 1]  # no chunk is left out
    assert all(0 < few <= many for few, many in zip(trained(0.75, early=True), steps, strict=True))


def test_short_early_is_a_control_of_streams_alone() -> None:
    with pytest.raises(UserError, match="short-early is short where data do not arrive in chunks"):
        experiment_from_dict({"method": ["full", "short-early"]})
    both = experiment_from_dict(
        {"method": ["full", "short-early"], "scenario": ["scratch", "online"], "short_budgets": [0.5]}
    )
    made = [(cell.scenario, cell.method, cell.budget) for cell in cells(both, default_recipe)]
    assert made == [("scratch", "full", None), ("online", "full", None), ("online", "short-early", 0.5)]


def test_skipping_the_backward_pass_alone_ends_where_the_store_does(bench: Bench, tmp_path: Path) -> None:
    changes = ONLINE | {"dropout": 0.0}
    stored = bench.run(bench.cell("schedule", **changes), tmp_path / "a")
    replay = [(drop["step"], drop["cut"], drop["at_chunk_end"]) for drop in stored.result["drops"]]
    assert [late for *_, late in replay] == [True] * 2
    frozen = run_cell(bench.cell("freeze", **changes), bench.data, bench.costs, tmp_path, device=CPU, replay=replay)
    assert [c["dropped_stages"] for c in frozen.result["chunks"]] == [
        c["dropped_stages"] for c in stored.result["chunks"]
    ]
    for name, tensor in stored.model.state_dict().items():
        torch.testing.assert_close(tensor, frozen.model.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("short", {}),
        ("freezeout", {}),
        ("learn-and-drop", {}),
        ("schedule", {"cache_dtype": "int8"}),
        ("schedule", {"cache_budget": "0,0,100MB", "stream": "by-class"}),
        ("egeria+store", {}),
        ("simfreeze", {}),
        ("simfreeze+store", {}),
        ("learn-and-drop", {"policy": {"learn-and-drop": {"remaining": 0.9, "patience": 1}}}),
    ],
)
def test_interrupted_in_any_chunk_a_run_ends_with_the_same_bits(
    method: str, options: dict[str, object], bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell(method, **(ONLINE | options))
    whole = bench.run(cell, tmp_path / "plain")
    assert bool(whole.result["drops"]) == (method not in ("full", "short"))
    told, counter = lasting(whole), StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Checkpointer(tmp_path / "counted", counter))
    for first in range(5, 10**9 - counter.left, 19):
        resumed, stopped = bench.interrupted(cell, tmp_path / str(first), first)
        assert stopped == 1
        assert lasting(resumed) == told
    often, stopped = bench.interrupted(cell, tmp_path / "often", *range(7, 60, 4))
    assert stopped >= 2
    assert lasting(often) == told


def test_a_kept_store_is_taken_up_again_in_a_later_chunk(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = bench.cell("schedule", **ONLINE, cache_budget="0,0,100MB")
    whole = bench.run(cell, tmp_path / "plain")
    assert whole.result["drops"][-1]["step"] <= 20  # before the third chunk
    folder = tmp_path / "hit"
    folder.mkdir()
    counter = StopAfter(10**9)
    bench.run(cell, tmp_path / "counted", Checkpointer(tmp_path / "counted", counter))
    for points in (10**9 - counter.left - 9, 3):  # in the third chunk both times
        with pytest.raises(Interrupted):
            bench.run(cell, folder, Checkpointer(folder, StopAfter(points)))
        assert list(folder.glob("store-*.json"))
        assert read_checkpoint(folder / CHECKPOINT)["run"]["dropper"]["activations"]["chunk"] == 2
    monkeypatch.setattr("ldbench.store.activations.fill_store", None)  # to fill one anew would fail
    assert lasting(bench.run(cell, folder, Checkpointer(folder))) == lasting(whole)


def test_a_store_that_is_lost_in_a_later_chunk_is_made_again_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell("schedule", **ONLINE, cache_budget="0,0,100MB", cache_dtype="fp16")
    whole = lasting(bench.run(cell, tmp_path / "plain"))
    folder = tmp_path / "hit"
    folder.mkdir()
    with pytest.raises(Interrupted):
        bench.run(cell, folder, Checkpointer(folder, StopAfter(50)))
    [file] = folder.glob("store-*.bin")
    file.unlink()
    assert lasting(bench.run(cell, folder, Checkpointer(folder))) == whole


def test_a_grid_with_all_scenarios_runs_is_reported_and_verified(tmp_path: Path) -> None:
    table = TABLE | ONLINE | {
        "scenario": ["online", "online-fine-tune", "scratch"], "pretrain_dataset": "digits[0-4]", "pretrain_epochs": 1,
        "method": ["full", "learn-and-drop"],
    }  # fmt: skip
    outcome = run_experiment(experiment_from_dict(table), tmp_path, ConsoleProgress(Console(), quiet=True))
    assert (outcome.finished, outcome.failed) == (6, 0)
    records = [read_sealed(path) for path in tmp_path.glob("cells/*/result.json")]
    assert {(r["scenario"], len(r["chunks"]), r["init_sha256"] is None) for r in records} == {
        ("online", 3, True), ("online-fine-tune", 3, False), ("scratch", 0, True),
    }  # fmt: skip
    summary = summarize(load_results(tmp_path))
    assert sorted(set(summary["scenario"])) == ["online", "online-fine-tune", "scratch"]
    page = write_report(tmp_path)
    assert page.read_text().count("Accuracy and training seconds after every chunk") == 2
    told = pd.read_csv(page.with_name("chunks.csv"))
    assert len(told) == 2 * 2 * 3
    for cell, rows in told.groupby("cell"):
        record = read_sealed(tmp_path / "cells" / str(cell) / "result.json")
        assert rows["test_accuracy"].tolist() == pytest.approx([c["test_accuracy"] for c in record["chunks"]])
    for value in summary.loc[summary["scenario"] == "online", "average_accuracy_percent_mean"]:
        assert any(value == pytest.approx(100 * r["average_accuracy"]) for r in records if r["scenario"] == "online")
    assert list(verify(tmp_path)) == []
    assert plain(records)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chunks", "4"], "add --scenario online"),
        (["--stream", "by-class"], "add --scenario online"),
        (["--scenario", "online", "--chunks", "1"], "chunks must be 2 to"),
        (["--scenario", "online", "--memory", "-1"], "memory must not be negative"),
        (["--scenario", "online", "--stream", "by-clas"], "did you mean by-class"),
        (["--scenario", "online", "--chunks", "1000"], "fill no minibatch of 128"),
        (["--scenario", "online-fine-tune"], "needs weights to begin with"),
    ],
)
def test_a_stream_that_cannot_be_had_ends_with_exit_code_2_and_one_line(
    words: list[str], said: str, tmp_path: Path
) -> None:
    command = ["run", "--dataset", "digits", "--model", "resnet18", "--width", "0.1", "--image-size", "16"]
    ended = ldbench(*command, *words, "--out", tmp_path / "out")
    assert refused(ended)
    assert said in ended.err
    assert not (tmp_path / "out").exists()


def test_an_online_cell_keeps_its_options_and_a_cell_of_another_scenario_none_of_them() -> None:
    table = TABLE | ONLINE | {"scenario": ["online", "scratch"], "stream": "by-class"}
    online, scratch = plan(experiment_from_dict(table | {"method": "full"}))
    assert (online.chunks, online.memory, online.stream) == (3, 20, "by-class")
    assert (scratch.chunks, scratch.memory, scratch.stream) == (None, None, None)


def test_a_stream_that_diverges_is_recorded_as_diverged(tmp_path: Path) -> None:
    table = {
        "model": "support.tiny_nets:net", "dataset": "digits", "scenario": "online", "method": "full", "epochs": 1,
        "batch_size": 16, "train_size": 120, "test_size": 80, "chunks": 2, "threads": 1, "lr": 1e30,
    }  # fmt: skip
    outcome = run_experiment(experiment_from_dict(table), tmp_path, ConsoleProgress(Console(), quiet=True))
    assert (outcome.diverged, outcome.failed) == (1, 0)
    [path] = tmp_path.glob("cells/*/result.json")
    assert read_sealed(path)["chunks"][-1]["test_correct_base64"] is None
