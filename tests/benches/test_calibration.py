"""The ruler on simulated reports whose truth is known: it does not claim what is not there, and finds what is."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldbench.reporting.comparisons import by_comparison, total_flops

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "benches", raising=False)


def most(rate: float, tests: int) -> float:
    """What a rate may come to in so many tests: three standard errors above."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / tests)


@pytest.mark.parametrize(
    ("truth", "lead", "only", "nulls"),
    [
        ("linear", 0.0, "", 4),
        ("concave", 0.0, "", 4),
        ("concave", 0.5, "FLOPs", 4),
        ("concave", 1.0, "FLOPs in one group", 1),
    ],
)
def test_what_is_not_ahead_is_called_ahead_in_one_of_forty_tests_at_most(
    truth: str, lead: float, only: str, nulls: int
) -> None:
    from benches.calibration import Case, run_case

    reports = 150
    rates = run_case(Case(truth, lead, 5, only=only), reports, seed=1)
    assert rates.groups_false is not None
    assert rates.groups_false <= most(0.025, nulls * reports)
    assert abs(rates.bias_flops) < 0.05  # a fifth of the smallest lead that is simulated
    assert 1 - rates.coverage <= most(0.05, 4 * reports)


def test_a_lead_of_a_point_is_found_with_ten_seeds() -> None:
    from benches.calibration import Case, run_case

    rates = run_case(Case("concave", 1.0, 10), 20, seed=3)
    assert rates.groups_true is not None
    assert rates.groups_true > 0.9
    assert rates.lines_true is not None
    assert rates.lines_true > 0.6


def test_the_same_seed_gives_the_same_table() -> None:
    from benches.calibration import Case, run_case, table

    case = Case("linear", 0.5, 3)
    first, again = run_case(case, 5, seed=4), run_case(case, 5, seed=4)
    assert first == again
    assert table([(case, first)]).count("\n") == 2


def values_of(records: list[dict[str, Any]], method: str, budget: float | None, value: str) -> dict[int, float]:
    """By seed."""
    some = [r for r in records if r["method"] == method and (budget is None or r["budget"] == budget)]
    return {r["seed"]: total_flops(r) if value == "flops" else float(r[value]) for r in some}


def test_what_is_simulated_is_what_the_committed_records_hold() -> None:
    from benches.calibration import LINES, RECORDED, RULES
    from ldbench.records.results import load_results

    found = by_comparison(load_results(ROOT / "results" / "evidence-pilot.jsonl"))
    scenarios = ("scratch", "fine-tune", "online", "online-fine-tune")
    for place, line in enumerate(LINES):
        scenario = scenarios[place % 4]
        [records] = [some for key, some in found.items() if (key[0], key[2]) == (line.model, scenario)]
        accuracy = "average_accuracy" if line.stream else "test_accuracy"

        for way, (means, scatter) in zip(("short", "short-early"), line.ways, strict=False):
            for budget, mean, spread in zip(RECORDED, means, scatter, strict=True):
                method = "full" if budget == 1 else way
                values = [
                    100 * v for v in values_of(records, method, None if budget == 1 else budget, accuracy).values()
                ]
                assert (np.mean(values), np.std(values, ddof=1)) == pytest.approx((mean, spread), abs=0.006)
        full, accurate = values_of(records, "full", None, "flops"), values_of(records, "full", None, accuracy)
        for rule, (cost, spread, own) in zip(RULES, line.rules, strict=True):
            shares = {
                seed: math.log(flops / full[seed]) for seed, flops in values_of(records, rule, None, "flops").items()
            }
            logs = np.array(list(shares.values()))
            assert np.exp(logs).mean() == pytest.approx(cost, abs=0.006)
            assert logs.std(ddof=1) == pytest.approx(spread, abs=0.006)
            behind = np.array(
                [100 * (a - accurate[seed]) for seed, a in values_of(records, rule, None, accuracy).items()]
            )
            columns = np.stack([np.ones(len(logs)), logs], axis=1)[:, : 2 if logs.std() > 1e-3 else 1]
            rest = behind - columns @ np.linalg.lstsq(columns, behind, rcond=None)[0]
            assert math.sqrt((rest**2).sum() / (len(rest) - columns.shape[1])) == pytest.approx(own, abs=0.006)


def test_the_table_in_the_docs_is_the_committed_one_and_keeps_the_level() -> None:
    from benches.calibration import SEED, TABLE, cases, committed, table
    from benches.tables import refreshed

    found = committed()
    assert [case for case, _ in found] == cases()
    assert SEED == 20261130
    assert refreshed(TABLE.read_text(), {"calibration": table(found)}) == TABLE.read_text()
    for case, rates in found:
        if rates.groups_false is not None:
            tests = rates.reports * {"FLOPs in one group": 1, "one group": 3}.get(case.only, 4)
            assert rates.groups_false <= most(0.025, tests), case
