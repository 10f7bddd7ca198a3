"""The README's tables are what the result files say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from report_records import ENVIRONMENT, costs, make_record, write_cell, write_grid

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "benches", raising=False)


def test_the_readme_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    from benches import tables

    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 0


def test_the_kernel_table_reads_what_the_kernel_script_writes(tmp_path: Path) -> None:
    from benches import tables

    speed = {"bytes_per_second": 3.5e12, "share_of_copy": 0.883, "times_faster_than": {"foreach": 2.41}}
    machine = {"device": "NVIDIA X", "driver": "1.2", "torch": "2.11", "triton": "3.6"}
    found = {"machine": machine, "parts": {"delta_speed": {"resnet152": speed, "part_seconds": 3.0}}}
    path = tmp_path / "kernels-x.json"
    path.write_text(json.dumps(found))
    row = tables.kernel_table([path]).splitlines()[-1]
    assert row == "| NVIDIA X, driver 1.2, torch 2.11, triton 3.6 | delta: resnet152 | 3500 | 88% | foreach 2.41 |"
    assert tables.kernel_table([]) == tables.NOTHING


def test_the_energy_table_has_joules_with_bound_or_the_reason(tmp_path: Path) -> None:
    from benches import tables

    read = {
        "energy_bound_joules": 50.0,
        "energy_unavailable_reason": None,
        "environment": ENVIRONMENT | {"gpu": "GPU X"},
    }
    for seed in range(3):
        write_cell(tmp_path, make_record("full", seed) | read | {"energy_joules": 5000.0 + seed})
        write_cell(tmp_path, make_record("short", seed, budget=0.5))
        write_cell(tmp_path, make_record("learn-and-drop", seed) | read | {"energy_joules": 3000.0 + seed})
    rows = tables.energy_table([tmp_path]).splitlines()[2:]
    assert len(rows) == 3
    assert all(row.startswith("| GPU X | ") for row in rows)
    assert "5001 ± 2 (± 50) | 1 |" in next(row for row in rows if "| full |" in row)
    assert "unavailable: training ran on the CPU" in next(row for row in rows if "short" in row)
    assert "| 0.600 [" in next(row for row in rows if "learn-and-drop" in row)
    assert tables.energy_table([]) == tables.NOTHING


def test_the_evidence_table_keeps_every_method_and_says_what_it_stands_on(tmp_path: Path) -> None:
    from benches import tables

    folder = tmp_path / "evidence-x"
    write_grid(folder, seeds=range(4), methods=("learn-and-drop", "freeze"))
    text = tables.evidence_table([folder])
    assert text.startswith("**evidence-x**: 24 runs on Test CPU, torch ")
    assert "2 tests of this report" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "short 0.25", "short 0.5", "short 0.75", "full", "learn-and-drop", "freeze",
    ]  # fmt: skip
    assert len({row.count(" | ") for row in rows}) == 1
    assert tables.evidence_table([]) == tables.NO_EVIDENCE


def test_the_verdicts_are_a_line_per_method_and_say_what_they_rest_on(tmp_path: Path) -> None:
    from benches import tables

    folder = tmp_path / "evidence-x"
    write_grid(folder, seeds=range(6), methods=("learn-and-drop", "freezeout"))
    text = tables.verdict_table([folder])
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[2] for row in rows] == ["learn-and-drop", "freezeout"]
    assert "**beats shortened training, p " in rows[0]
    assert "behind shortened training, p " in rows[1]
    assert "(results/evidence-x.md)" in text
    figure = tables.evidence_figure(folder)
    assert figure.startswith("<?xml")
    assert figure == tables.evidence_figure(folder)
    assert tables.verdict_table([]) == tables.NO_EVIDENCE


def test_leads_hold_two_rules_against_each_other_at_costs_of_their_own(tmp_path: Path) -> None:
    from benches.leads import lead_lines, leads
    from ldbench.reporting.comparisons import records_of
    from ldbench.results import load_results

    def write(method: str, seed: int, share: float, above: float = 0.0, budget: float | None = None) -> None:
        reached = {"test_accuracy": 0.9 + 0.05 * math.log2(share) + above, "test_correct_base64": None}
        write_cell(tmp_path, make_record(method, seed, budget=budget, **reached, **costs(share)))

    for seed in range(4):
        write("full", seed, 1.0)
        for budget in (0.25, 0.5):
            write("short", seed, budget, budget=budget)
        write("a", seed, 0.5, above=0.02)
        write("b", seed, 0.375, above=0.01 + 0.001 * seed)
    records = records_of(load_results(tmp_path))
    for axis in ("equal FLOPs", "equal time"):
        assert list(leads(records, "a", axis).values()) == pytest.approx([2.0] * 4)
        assert sorted(leads(records, "b", axis).values()) == pytest.approx([1.0, 1.1, 1.2, 1.3])
    [_, _, first, *_] = lead_lines(records, "a", "b")
    assert first.startswith("* vgg11_bn, equal FLOPs: +0.85 [")
    assert first.endswith("n = 4")
    assert lead_lines(records, "a", "never run") == []


def test_a_readme_without_a_place_for_the_table_is_an_error() -> None:
    from benches import tables

    assert tables.refreshed("a <!-- x table -->\nold\n<!-- end --> b", {"x": "new"}) == (
        "a <!-- x table -->\nnew\n<!-- end --> b"
    )
    with pytest.raises(ValueError, match="no place"):
        tables.refreshed("nothing here", {"x": "new"})


def test_the_readme_says_what_the_committed_records_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.tables", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to date" in done.stdout
