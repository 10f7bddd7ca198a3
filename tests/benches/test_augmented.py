"""Augmentation and the store: every arm is run beside the same controls, and the tables say what the records hold."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from support.report_records import costs, make_record, write_cell

from ldbench import load_results
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.runner.plan import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "benches", raising=False)


def told(cell: Cell) -> str:
    """What tells arms apart."""
    entries = (cell.method, cell.policy, cell.cache_views, cell.refresh_views, cell.change_features)
    return json.dumps([str(entry) for entry in entries])


@pytest.mark.parametrize("name", ["evidence-augment", "evidence-photographs"])
def test_every_arm_is_run_with_the_seeds_rates_and_controls_of_the_suite(name: str) -> None:
    from benches import augmented

    asked = [experiment_from_dict(table) for table in augmented.tables(name)]
    assert asked[0] == asked[-1]
    assert claims_digest(asked[0]) is not None
    assert all(claims_digest(one) is None for one in asked[1:-1])
    whole: dict[str, set[tuple[str, int]]] = {}
    controls = {cell.cell_id for cell in plan(asked[0]) if cell.method in ("full", "short")}
    for one in asked:
        assert one.tune == asked[0].tune
        planned = plan(one)
        assert controls == {cell.cell_id for cell in planned if cell.method in ("full", "short")}
        for cell in planned:
            if cell.method not in ("full", "short"):
                whole.setdefault(told(cell), set()).add((cell.model, cell.seed))
    assert len(whole) == len(set(augmented.SUITES[name]) - set(augmented.GONE))
    assert len({tuple(sorted(some)) for some in whole.values()}) == 1
    assert len(next(iter(whole.values()))) == len(asked[0].model) * len(asked[0].seeds)


def test_the_table_has_a_row_for_each_arm_and_network_with_what_was_stored(tmp_path: Path) -> None:
    from benches import augmented

    suite = next(iter(augmented.tables("evidence-augment")))
    timetable = augmented.options_of(suite, "augmentation stops")

    def write(model: str, method: str, seed: int, share: float, above: float = 0.0, **more: Any) -> None:
        config = {"policy": more.pop("policy", {}), "cache_views": more.pop("cache_views", 1)}
        reached = {"test_accuracy": 0.9 + 0.05 * math.log2(share) + above, "test_correct_base64": None}
        record = make_record(method, seed, model=model, **reached, **(costs(share) | more))
        write_cell(tmp_path, record, **config)

    for seed in range(3):
        for model, above in (("resnet18", 0.01), ("vgg11_bn", 0.03)):
            write(model, "full", seed, 1.0)
            for budget in (0.25, 0.5, 0.75):
                write(model, "short", seed, budget, budget=budget)
            stored = {"policy": timetable, "train_seconds": 50.0}
            write(model, "paced", seed, 0.5, above + 0.001 * seed, store_bytes=2e6, cache_build_seconds=1.0, **stored)
            stored |= {"cache_views": 4, "store_bytes": 8e6, "cache_build_seconds": 4.0}
            write(model, "paced", seed, 0.5, above / 2 + 0.001 * seed, **stored)
            write(model, "paced+freeze", seed, 0.5, above + 0.02, policy=timetable)
    (tmp_path / "experiment.json").write_text("{}")
    rows = [row.strip("| ").split(" | ") for row in augmented.table("evidence-augment", load_results(tmp_path))]
    assert [row[:3] for row in rows[2:]] == [
        [arm, network, "3"]
        for arm in ("augmentation stops", "4 views", "no store, augmentation throughout")
        for network in ("resnet18", "vgg11_bn", "all")
    ]
    assert len({len(row) for row in rows}) == 1
    stops, views, throughout = (rows[at : at + 3] for at in (2, 5, 8))
    assert [row[4].split(" ")[0] for row in (*stops, *views, *throughout)] == (
        ["-1.90"] * 3 + ["-2.40", "-3.40", "-2.90"] + ["-"] * 3
    )
    assert [row[-2:] for row in rows[2:8]] == [["2", "2.0"]] * 3 + [["8", "8.0"]] * 3
    assert [row[7].split(" ")[0] for row in rows[2:8]] == ["+1.10", "+3.10", "+2.10", "+0.60", "+1.60", "+1.10"]
    assert [row[8].split(" ")[0] for row in rows[2:]] == ["-"] * 3 + ["-0.50", "-1.50", "-1.00"] + ["+1.90"] * 3


def test_the_table_of_what_is_exact_has_a_row_for_each_cut() -> None:
    from benches import equivariance

    names = ("mirrored", "mirrored_left_as_it_is", "moved_zeros", "moved_black", "moved_left_as_it_is")
    row = {"stage": "conv1", "map": [8, 4, 4]} | {name: 0.125 + place for place, name in enumerate(names)}
    row["moved_exact_places"] = 0.25
    told = {
        "environment": {"cpu": "Test CPU", "torch": "2", "git_commit": "0123456789"},
        "networks": {"vgg11_bn": {"samples": 8, "cuts": [row, row]}},
    }
    lines = equivariance.table(told)
    assert lines[0] == "Test CPU, torch 2, commit 01234567; relative errors, means over 8 test images."
    assert lines[-1] == "| vgg11_bn | conv1 | 8 x 4 x 4 | 0.12 | 1.12 | 2.12 | 3.12 | 4.12 | 25 % |"
    assert len(lines) == 6
