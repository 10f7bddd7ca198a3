"""The timetable that is fitted to a rule's drops, by hand, and the comparison on records with known leads."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.report_records import costs, frontier, make_drop, make_record, write_cell

from benches import matched
from ldbench.policies.base import Observation
from ldbench.policies.rules import FixedSchedule

ROOT = Path(__file__).parents[2]


def test_the_table_in_the_docs_is_that_of_the_committed_runs() -> None:
    told = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    shown = told.split("<!-- matched table -->\n")[1].split("\n<!-- end -->")[0].splitlines()
    assert shown == matched.table(ROOT / "results" / "matched")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in shown[2:]]
    assert [row[1] for row in rows] == ["vgg11_bn", "resnet18", "both"] * len(matched.RULES)
    # As the text says: none is ahead of its timetable, one behind on one network, none over both.
    intervals = {(row[0].split(":")[0], row[1]): re.findall(r"\[(.*?), (.*?)\]", row[2])[0] for row in rows}
    assert [rule for rule, (low, _) in intervals.items() if float(low) > 0] == []
    assert [rule for rule, (_, high) in intervals.items() if float(high) < 0] == [("simfreeze", "resnet18")]
    assert all(float(high) < 1 for (_, network), (_, high) in intervals.items() if network == "both")


def run(*drops: tuple[int, int], steps: int = 100) -> dict[str, object]:
    return {"steps": steps, "drops": [{"step": step, "cut": cut} for step, cut in drops]}


def test_a_stage_leaves_at_the_mean_of_its_times_and_stays_where_it_stayed() -> None:
    runs = [run((20, 1), (50, 3)), run((40, 2)), run((30, 2), steps=50)]
    # stage 1: 0.2, 0.4, 0.6; stage 2: 0.5, 0.4, 0.6; stage 3: 0.5, then 1 and 1
    assert matched.timetable(runs) == [[0.4, 1], [0.5, 2], [0.8333, 3]]
    assert matched.timetable([run((20, 2)), run((40, 2))]) == [[0.3, 2]]  # they left together
    assert matched.timetable([run(), run()]) == []


@given(st.lists(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 6)), max_size=5), min_size=1, max_size=5))
def test_a_fitted_timetable_keeps_every_stage_as_long_as_the_runs_did_in_the_mean(
    runs: list[list[tuple[int, int]]],
) -> None:
    told = [run(*drops) for drops in runs]
    table = matched.timetable(told)
    if not table or table[0][0] >= 1:
        return
    policy = FixedSchedule([pair for pair in table if pair[0] < 1])
    for stage in range(6):
        mean = sum(min((s / 100 for s, cut in drops if cut > stage), default=1.0) for drops in runs) / len(runs)
        live = [policy.stopped(Observation(step, 1000, 0, 8)) <= stage for step in range(1000)]
        assert sum(live) / 1000 == pytest.approx(mean, abs=2e-3)


def grid(folder: Path, ahead: float) -> None:
    """Three seeds of controls, a rule that ends ``ahead`` of training less, and a timetable that ends level with it."""
    drops = [make_drop(300, 2), make_drop(600, 5)]
    table = [[0.25, 2], [0.5, 5]]

    def cell(method: str, seed: int, share: float, lead: float, policy: dict[str, Any], **more: Any) -> None:
        correct = np.arange(2000) < round(2000 * (frontier(share) + lead))
        changes = {"model": "resnet18", "test_accuracy": float(correct.mean()), **costs(share), **more}
        bits = base64.b64encode(np.packbits(correct).tobytes()).decode()
        write_cell(folder, make_record(method, seed, test_correct_base64=bits, **changes), policy=policy)

    for seed in range(3):
        cell("full", seed, 1.0, 0.0, {})
        for budget in (0.25, 0.5, 0.75):
            cell("short", seed, budget, 0.0, {}, budget=budget)
        cell("autofreeze+store", seed, 0.5, ahead, {}, drops=drops, dropped_stages=5)
        cell("schedule", seed, 0.5, 0.0, {"drops": table}, drops=drops, dropped_stages=5)


def test_the_gain_of_a_rule_is_its_lead_less_that_of_its_timetable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matched, "NETWORKS", {"resnet18": 1.0})
    monkeypatch.setattr(matched, "RECIPES", {"one": {}, "two": {}})
    monkeypatch.setattr(matched, "RULES", {"mine": ("autofreeze+store", {}, "a score")})
    for recipe, ahead in (("one", 0.02), ("two", 0.04)):
        folder = tmp_path / f"resnet18-{recipe}"
        grid(folder, ahead)
    found, shares = matched.differences(tmp_path, "mine", "flops")
    assert found["resnet18"].mean == pytest.approx(3.0, abs=1e-9)
    assert found["resnet18"].n == 3
    assert found["both"].mean == found["resnet18"].mean
    assert shares["resnet18"][0] == pytest.approx(shares["resnet18"][1])
    assert "| mine: a score | resnet18 | +3.00 [" in "\n".join(matched.table(tmp_path))
