"""The page's tables of stages: when each left and why, or why it stayed, of one run per method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.report_records import STAGES, make_drop, make_record, write_cell, write_grid

from ldbench.records.results import load_results
from ldbench.reporting.comparisons import records_of
from ldbench.reporting.departures import MOST_STAGES, TITLE, departures
from ldbench.reporting.report import write_report

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


def shown(root: Path) -> str:
    return "".join(departures(root, records_of(load_results(root))))


def rows(html: str) -> list[list[str]]:
    """The texts of every row with cells."""
    found = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", html))
    return [texts for texts in found if texts]


def test_every_stage_is_named_with_when_it_left_or_why_it_stayed(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("learn-and-drop", 3))
    html = shown(tmp_path)
    assert "<summary>learn-and-drop, seed 3: 5 of 8 stages left</summary>" in html
    saves = "saves about 12 s over 600 steps"
    assert rows(html) == [
        *[[f"{s + 1}: features.{4 * s}", "epoch 2, step 300", saves] for s in range(2)],
        *[[f"{s + 1}: features.{4 * s}", "epoch 6, step 630", saves] for s in range(2, 5)],
        *[[f"{s + 1}: features.{4 * s}", "stayed", f"why features.{4 * s} of seed 3 stayed"] for s in range(5, STAGES)],
    ]
    assert "<p>Declined at step 900, 6 of 8 stages gone: cut 6 does not pay</p>" in html


def test_one_finished_run_of_each_method_that_can_drop_the_lowest_seed(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(1, 4), methods=["learn-and-drop", "freezeout", "my-own", "stochastic-depth"])
    write_cell(tmp_path, make_record("learn-and-drop", 0, status="failed", test_accuracy=None))
    write_cell(tmp_path, make_record("learn-and-drop", 2), policy={"patience": 3})
    summaries = re.findall(r"<summary>(.*?)</summary>", shown(tmp_path))
    assert summaries == [
        "learn-and-drop (patience=3), seed 2: 5 of 8 stages left",
        "learn-and-drop (default options), seed 1: 5 of 8 stages left",
        "freezeout, seed 1: 5 of 8 stages left",
        "my-own, seed 1: 0 of 8 stages left",
    ]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count(TITLE) == 1
    assert page.count("<details>") == len(summaries)
    assert "<details open" not in page


@pytest.mark.parametrize("why", [None, "", 3])
def test_records_without_reasons_report_as_before(tmp_path: Path, why: Any) -> None:
    for method in ("full", "learn-and-drop"):
        record = make_record(method, 0)
        record["stages"] = [{"name": "a", "parameters": 1} | ({} if why is None else {"why": why})] * STAGES
        write_cell(tmp_path, record)
    assert departures(tmp_path, records_of(load_results(tmp_path))) == []
    assert TITLE not in write_report(tmp_path).read_text(encoding="utf-8")


def test_hostile_reasons_do_no_harm_and_long_ones_are_cut(tmp_path: Path) -> None:
    record = make_record("learn-and-drop", 0)
    record["stages"] = [{"name": HOSTILE, "why": HOSTILE}, {"why": "x" * 9999}, "none", {"name": ["a"] * 99}]
    record["drops"] = [{"cut": HOSTILE}, {"cut": None}, make_drop(10, 1) | {"reason": HOSTILE, "step": HOSTILE}]
    record["declined"] = [{"step": HOSTILE, "cut": [], "reason": "y" * 9999}] * 99
    write_cell(tmp_path, record, lines=False)
    html = shown(tmp_path)
    assert "1 of 3 stages left" in html
    assert "&lt;script&gt;" in html
    assert not re.search("<script|\x1b|\u202e", html)
    assert not re.search("x{400}|y{400}", html)
    assert html.count("Declined") == 20
    assert "There is more of it" in html


def test_a_run_of_very_many_stages_is_counted_whole_and_shown_in_part(tmp_path: Path) -> None:
    stages = [{"name": str(s), "why": "" if s < 400 else "late"} for s in range(500)]
    write_cell(tmp_path, make_record("learn-and-drop", 0, stages=stages, drops=[make_drop(10, 400)]))
    html = shown(tmp_path)
    assert "400 of 500 stages left" in html
    assert len(rows(html)) == MOST_STAGES
    assert "There is more of it" in html
