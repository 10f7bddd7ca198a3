"""The tables of README and pages are what the result files say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.report_records import ENVIRONMENT, costs, make_record, write_cell, write_grid

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "benches", raising=False)


def test_the_readme_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    from benches import tables

    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 0


WHERE = ENVIRONMENT | {"gpu": "GPU X", "driver": "1.2", "cuda": "13.0", "torch": "2.11", "triton": "3.6"}
WHERE |= {"python": "3.12.1", "numpy": "2.5"}
CAPTION = (
    "**GPU X**, driver 1.2, cuda 13.0, torch 2.11, triton 3.6, python 3.12.1, numpy 2.5, 2026-01-02, "
    "commit 0123456789ab."
)


def lab_file(folder: Path, **results: Any) -> Path:
    """A ``lab.json`` whose parts ran on a GPU."""
    found = {name: {"environment": WHERE} | value for name, value in results.items()}
    told = {"state": "done", "date": "2026-01-02", "git_commit": "0123456789abcdef"}
    lab = {"results": found, "parts": dict.fromkeys(found, told)}
    path = folder / "lab.json"
    path.write_text(json.dumps(lab))
    return path


def test_the_kernel_table_has_bandwidth_peers_targets_and_what_they_were_measured_with(tmp_path: Path) -> None:
    from benches import lab_tables

    times = {"kernel": {"median_seconds": 1e-4, "n": 30}}
    speed = {"bytes_per_second": 2.655e12, "share_of_copy": 0.885, "times_faster_than": {"foreach": 2.41}}
    speed |= {"times": times}
    compiled = speed | {"times_faster_than": {"foreach": 2.4, "compiled": 1.2}}
    compiled["times"] = times | {"compiled": {"median_seconds": 1.2e-4, "n": 30, "in": "calls one by one"}}
    target = {"case": "resnet152", "share_of_copy": 0.85, "peer": "foreach", "times_faster": 2.2}
    right = {"error_units": 3.21, "n": 1000, "differing": 0, "graph_differing": 1}
    deltas = {"kernel": {"median_seconds": 12e-6}, "foreach": {"median_seconds": 3e-5}}
    gathers = {"indices on the host": {"median_seconds": 5e-5}}
    kernels = {
        "ceilings": {"copy_bytes_per_second": 3e12},
        "delta": {"resnet152": speed},
        "compiled delta": {"resnet18": compiled, "vgg19": {"left_out": "3 s left"}},
        "targets": {"delta": {"target": target, "share_of_copy": 0.885, "times_faster": 2.41, "met": True}},
        "delta_correct": {"resnet152 float32": right},
        "host": {"delta_norms": {"124 tensors": deltas}, "gather_rows": gathers},
    }
    memcheck = {"cases": 32, "watched_by": "memcheck", "wrong": {}, "memory_errors": 5}
    tests = {"tests": {"passed": 61, "failed": 1, "not_run": ["a", "b"]}, "memcheck": memcheck}
    path = lab_file(tmp_path, kernels=kernels, tests=tests)
    text = lab_tables.kernel_table([path])
    assert text.splitlines()[0] == CAPTION
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| delta_norms, parameters of resnet152 | 2655 | 88% | foreach 2.41 | 30 |",
        "| delta_norms, parameters of resnet18 (beside a compiled peer) | 2655 | 88% | foreach 2.40, compiled 1.20\\* "
        "| 30 |",
    ]
    assert "A device copy moves 3000 GB/s" in text
    assert "(resnet152): 85% of a copy and 2.2 times foreach: met, 88% and 2.41." in text
    assert "delta_norms 124 tensors 12.0 µs (foreach 30.0); gather_rows, indices on the host 50.0 µs." in text
    assert "Largest error of delta_norms against float64: 3.2 x 2^-24; of 2000 repetitions 1 differ in a bit." in text
    assert "61 passed, 1 failed, 2 not run; 32 odd cases under memcheck: 0 wrong, 5 memory errors." in text


def test_the_step_table_has_joules_with_bound_or_the_reason(tmp_path: Path) -> None:
    from benches import lab_tables

    step = {"model": "vgg11_bn", "stages": 11, "median_seconds": 4e-3, "p20": 3.9e-3, "p80": 4.2e-3, "n": 12}
    metered = {"joules_per_step": 1.5, "bound_joules_per_step": 0.02, "watts": 375.0, "unavailable_reason": None}
    steps = [
        step | {"dropped": "none", "cut": 0, "of_a_whole_step": 1.0, "energy": metered},
        step | {"dropped": "half", "cut": 5, "energy": {"unavailable_reason": "3 s were left"}},
    ]
    sizes = {"batch": 128, "precision": "bf16", "least_steps": 20}
    rows = lab_tables.step_table([lab_file(tmp_path, steps={"steps": steps, "sizes": sizes})]).splitlines()
    assert rows[0] == CAPTION
    assert rows[4] == "| vgg11_bn | none (0 of 11) | 4.00 [3.90, 4.20] | 1.00 | 1.500 (± 0.020) | 375 | 12 |"
    assert "| - | unavailable: 3 s were left | - | 12 |" in rows[5]
    assert "batch 128, bf16 autocast" in rows[-1]


def test_the_energy_table_has_joules_with_bound_or_the_reason(tmp_path: Path) -> None:
    from benches import lab_tables, lab_trainings
    from ldbench.io.checksums import plain
    from ldbench.records.results import load_results

    read = {"energy_bound_joules": 50.0, "energy_unavailable_reason": None, "environment": WHERE}
    folder = tmp_path / "training"
    for seed in range(3):
        write_cell(folder, make_record("full", seed) | read | {"energy_joules": 5000.0 + seed})
        write_cell(folder, make_record("short", seed, budget=0.5))
        write_cell(folder, make_record("learn-and-drop", seed) | read | {"energy_joules": 3000.0 + seed})
    used = {"train_size": 10_000, "dataset": ["fashion-mnist"], "epochs": 16, "precision": "bf16"}
    found = plain(lab_trainings.told_of(load_results(folder))) | {"experiment": used}
    text = lab_tables.energy_table([lab_file(tmp_path, trainings=found)])
    assert text.splitlines()[0] == CAPTION
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 3
    assert "5001 ± 2 (± 50) | 1 |" in next(row for row in rows if "| full |" in row)
    assert "unavailable: training ran on the CPU" in next(row for row in rows if "short" in row)
    assert "| 0.600 [" in next(row for row in rows if "learn-and-drop" in row)


def test_a_rehearsal_and_no_file_at_all_are_no_figures(tmp_path: Path) -> None:
    from benches import lab_tables

    path = lab_file(tmp_path, kernels={"environment": WHERE | {"gpu": None}})
    for table in (lab_tables.kernel_table, lab_tables.step_table, lab_tables.energy_table):
        assert table([]) == table([path]) == lab_tables.NOTHING


def test_the_evidence_table_keeps_every_method_and_says_what_it_stands_on(tmp_path: Path) -> None:
    from benches import tables

    folder = tmp_path / "evidence-x"
    write_grid(folder, seeds=range(4), methods=("learn-and-drop", "freeze"))
    text = tables.evidence_table([folder])
    assert text.startswith("**evidence-x**: 24 runs on Test CPU, torch ")
    assert "Exploratory: nothing was declared" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[1] for row in rows[2:4]] == ["learn-and-drop", "freeze"]  # over the group
    assert sorted(row.split(" | ")[0] for row in rows[6:8]) == ["| freeze", "| learn-and-drop"]  # over everything
    methods = [row.split(" | ")[0].strip("| ") for row in rows[10:]]
    assert methods == ["short 0.25", "short 0.5", "short 0.75", "full", "learn-and-drop", "freeze"]
    assert len({row.count(" | ") for row in rows[8:]}) == 1
    assert "leaving one budget out" in text
    assert tables.evidence_table([]) == tables.NO_EVIDENCE


def test_the_verdicts_are_told_by_group_and_overall_and_say_what_they_rest_on(tmp_path: Path) -> None:
    from benches import tables

    folder = tmp_path / "evidence-x"
    for dataset in ("fashion-mnist", "colour"):
        write_grid(
            folder, seeds=range(6), methods=("learn-and-drop", "freezeout"), declared="learn-and-drop", dataset=dataset
        )
    text = tables.verdict_table([folder])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    groups, overall = rows[2:4], rows[6:]
    assert groups[0].startswith("| vgg11_bn, single set: scratch on colour, fashion-mnist | learn-and-drop | 6 | ")
    assert "**beats shortened training, p " in groups[0]
    assert groups[1].split(" | ")[1] == "freezeout"
    assert groups[1].endswith("| exploratory |")
    assert "All 2 comparisons together" in text
    assert sorted(row.split(" | ")[0] for row in overall) == ["| freezeout", "| learn-and-drop"]
    assert all("x [" in row for row in overall)
    assert "(../results/evidence-x.md)" in text
    figure = tables.evidence_figure(folder)
    assert figure.startswith("<?xml")
    assert all(f"vgg11_bn, {name}, scratch" in figure for name in ("fashion-mnist", "colour"))
    assert figure == tables.evidence_figure(folder)
    assert tables.verdict_table([]) == tables.NO_EVIDENCE


def write_two_rules(folder: Path) -> None:
    """On two data sets, "paced" 2 points above the frontier at half the cost, "autofreeze+store" 1.15 at three eighths."""

    def write(method: str, seed: int, share: float, above: float = 0.0, budget: float | None = None) -> None:
        for dataset in ("grey", "colour"):
            reached = {"test_accuracy": 0.9 + 0.05 * math.log2(share) + above, "test_correct_base64": None}
            write_cell(folder, make_record(method, seed, budget=budget, dataset=dataset, **reached, **costs(share)))

    for seed in range(4):
        write("full", seed, 1.0)
        for budget in (0.125, 0.25, 0.5):
            write("short", seed, budget, budget=budget)
        write("paced", seed, 0.5, above=0.02)
        write("autofreeze+store", seed, 0.375, above=0.01 + 0.001 * seed)


def test_leads_hold_rules_against_each_other_at_costs_of_their_own(tmp_path: Path) -> None:
    from benches.leads import leads_of_all, mean_difference, ranking, ranking_lines, winner
    from ldbench.records.results import load_results

    write_two_rules(tmp_path)
    cells = load_results(tmp_path)
    for axis in ("flops", "time"):
        found = leads_of_all(cells, axis)
        ours, theirs = found["paced", "{}"], found["autofreeze+store", "{}"]
        assert len(ours) == 8
        assert list(ours.values()) == pytest.approx([2.0] * 8)
        assert sorted(set(np.round(list(theirs.values()), 6))) == pytest.approx([1.0, 1.1, 1.2, 1.3])
        told = mean_difference(ours, theirs)
        assert told.mean == pytest.approx(0.85)
        assert told.n == 4
    first, second = ranking(cells)
    assert (winner(cells).method, winner(cells).policy) == (first.method, first.policy)
    assert first.is_the_default()
    assert first.method == "paced"
    assert first.comparisons == 2
    assert first.share["flops"].mean == pytest.approx(0.5)
    assert second.share["flops"].mean == pytest.approx(0.375)
    assert first.to_full.mean == pytest.approx(-3)  # 5 for half the cost, less the lead
    # 2 points of a frontier that gains 5 by doubling.
    assert first.speed_ups["flops"].ratio == pytest.approx(2 ** (2 / 5), rel=0.02)
    assert second.default_ahead["flops"].mean == pytest.approx(0.85)
    [said, _, _, _, paced, autofreeze, _] = ranking_lines(cells)
    assert said.startswith("All 2 comparisons together")
    assert paced.startswith("| paced | 4 | 1.3")
    assert paced.endswith("| 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | -3.00 [-3.00, -3.00] | - | - |")
    assert autofreeze.count("+0.85 [") == 2


def test_the_default_is_told_from_the_same_rule_with_other_options(tmp_path: Path) -> None:
    from benches.leads import Overall, ranking, ranking_lines
    from ldbench.records.results import load_results
    from ldbench.reporting.stats import Estimate

    def default(method: str, options: str) -> bool:
        return Overall(method, options, 1, {}, Estimate(), {}, {}, {}).is_the_default()

    assert default("paced", "{}")
    assert default("paced", '{"pace":1.5,"earliest":0.2}')
    assert not default("paced", '{"pace":2.0,"earliest":0.2}')
    assert not default("paced", '{"refresh_statistics":true}')
    assert not default("autofreeze+store", "{}")
    write_two_rules(tmp_path)
    cells = load_results(tmp_path)
    ours = cells["method"] == "paced"
    other = cells[ours].assign(policy='{"pace":2.0}')
    both = pd.concat([other, cells.assign(policy=cells["policy"].where(~ours, '{"earliest":0.2}'))])
    assert [rule.policy for rule in ranking(both) if rule.is_the_default()] == ['{"earliest":0.2}']
    lines = ranking_lines(both)
    assert "`paced (earliest=0.2)` is further ahead of training less" in lines[2]
    [late] = [text for text in lines if text.startswith("| paced (pace=2.0) |")]
    assert late.count("+0.00 [") == 2


def test_who_also_leaves_samples_out_or_skips_the_backward_pass_alone_is_no_candidate_for_the_default() -> None:
    from benches.leads import Overall
    from ldbench.reporting.stats import Estimate

    def candidate(method: str) -> bool:
        return Overall(method, "{}", 1, {}, Estimate(), {}, {}, {}).is_a_candidate()

    assert all(candidate(name) for name in ("paced", "learn-and-drop", "schedule", "autofreeze+store"))
    assert not any(candidate(name) for name in ("infobatch", "paced+infobatch", "autofreeze", "freeze", "resize"))


def test_a_readme_without_a_place_for_the_table_is_an_error() -> None:
    from benches import tables

    assert tables.refreshed("a <!-- x table -->\nold\n<!-- end --> b", {"x": "new"}) == (
        "a <!-- x table -->\nnew\n<!-- end --> b"
    )
    with pytest.raises(ValueError, match="no place"):
        tables.refreshed("nothing here", {"x": "new"})
