"""The profile says what the trainer's own rule says, and its figures add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.cost_table import FLOPS, TABLE

from ldbench.costs.break_even import StorePlan, best_cut
from ldbench.costs.profile import cut_rows, plot, stage_rows
from ldbench.dropping.account import FlopLedger
from ldbench.store.budget import StoreBudget

PLAN = StorePlan(100, "fp32", StoreBudget(10**9, 0, 0))


@pytest.mark.parametrize("epochs", [1, 3, 20])
def test_a_cut_pays_after_exactly_the_epochs_at_which_the_trainer_takes_it(epochs: int) -> None:
    for row in cut_rows(TABLE, PLAN, [True] * 3):
        assert row.break_even_epochs is not None
        steps = 10 * epochs
        taken = best_cut(TABLE, PLAN, 0, row.cut, steps, [True] * 3, exact=True).cut == row.cut
        assert taken == (epochs > row.break_even_epochs)


def test_saved_flops_are_the_difference_of_two_counted_epochs() -> None:
    full = FlopLedger.empty(FLOPS)
    full.add_step(100, 0, 0)
    for row in cut_rows(TABLE, PLAN, [True] * 3):
        dropped = FlopLedger.empty(FLOPS)
        dropped.add_step(100, row.cut, row.cut)
        spent = [sum(ledger.forward) + sum(ledger.backward) for ledger in (full, dropped)]
        assert row.saved_flops == spent[0] - spent[1]


def test_a_store_that_fits_nowhere_saves_nothing() -> None:
    row = cut_rows(TABLE, StorePlan(100, "fp32", StoreBudget(0, 0, 0)), [True] * 3)[0]
    assert (row.store_tier, row.saved_seconds, row.break_even_epochs) == (None, None, None)


def test_the_plot_names_every_stage() -> None:
    svg = plot(stage_rows(TABLE, [1, 2, 3]), cut_rows(TABLE, PLAN, [True] * 3), "title")
    assert svg.lstrip().startswith("<?xml")
    assert svg.count("<!-- b -->") >= 1


def test_the_command_measures_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldbench.cli import main

    options = [
        "--model",
        "resnet18",
        "--width",
        "0.1",
        "--image-size",
        "16",
        "--train-size",
        "100",
        "--batch-size",
        "20",
    ]
    monkeypatch.setattr(sys, "argv", ["ldbench", "profile", *options, "--out", str(tmp_path / "p"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "p" / "profile.json").read_text())
    assert len(printed["cuts"]) == len(printed["stages"]) - 1
    assert all(stage["forward_seconds"] > 0 for stage in printed["stages"])
    assert (tmp_path / "p" / "profile.svg").stat().st_size > 1000
    several = [*options, "--augment", "flip+crop", "--cache-views", "4"]
    monkeypatch.setattr(sys, "argv", ["ldbench", "profile", *several, "--json"])
    with pytest.raises(SystemExit):
        main()
    stored = json.loads(capsys.readouterr().out)
    assert [cut["store_bytes"] for cut in stored["cuts"]] == [4 * cut["store_bytes"] for cut in printed["cuts"]]
    assert (printed["views"], stored["views"]) == (1, 4)
