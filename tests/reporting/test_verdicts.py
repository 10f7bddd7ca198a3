"""From tests to verdicts: the correction for their number, and a sentence that says no more than was shown."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support.report_records import costs, make_record, write_cell, write_grid

from ldbench.records.results import load_results
from ldbench.reporting.stats import Estimate, holm, seeds_needed, simultaneous_confidence, t_interval, two_way_interval
from ldbench.reporting.summary import summarize
from ldbench.reporting.verdicts import AT_THE_END, FLAT, Evidence, Pair, direction_of, judge, one_sided, verdict

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)
SAMPLES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=12)

# --- Holm and the intervals ------------------------------------------------------------------------------------------


def test_holm_agrees_with_a_calculation_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.floats(0, 1))
def test_a_family_of_one_is_not_corrected(p: float) -> None:
    assert holm([p]) == [p]
    assert simultaneous_confidence(1) == pytest.approx(0.95)


@given(P_VALUES)
def test_holm_keeps_the_order_and_lies_between_plain_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for plain, corrected in zip(p_values, adjusted, strict=True):
        assert plain <= corrected <= min(1.0, len(p_values) * plain)
    by_size = sorted(zip(p_values, adjusted, strict=True))
    assert all(before[1] <= after[1] for before, after in pairwise(by_size))


@given(P_VALUES, st.floats(0, 1))
def test_one_more_test_never_makes_another_easier(p_values: list[float], further: float) -> None:
    assert all(more >= less for less, more in zip(holm(p_values), holm([*p_values, further]), strict=False))


def test_holm_errs_in_one_family_of_twenty_at_most() -> None:
    random = np.random.default_rng(5)
    false = 0
    for _ in range(400):
        shared = random.normal(size=5)  # all tests of a report share their controls
        tests = [t_interval(shared + random.normal(size=5)) for _ in range(12)]
        false += min(holm([test.p_value for test in tests])) <= 0.05
    assert false / 400 <= 0.07


@given(SAMPLES)
def test_the_p_value_is_scipys_and_agrees_with_the_interval(values: list[float]) -> None:
    ours = t_interval(values)
    if np.std(values) < 1e-6:
        return
    assert ours.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-9)
    assert ours.standard_error == pytest.approx(stats.sem(values))
    assert ours.spread == pytest.approx(np.std(values, ddof=1))
    if abs(ours.p_value - 0.05) > 1e-9:
        assert (ours.p_value < 0.05) == (ours.sign != 0)


@given(SAMPLES, st.integers(1, 500))
def test_simultaneous_intervals_are_wider_and_scipys(values: list[float], tests: int) -> None:
    plain = t_interval(values)
    wide = plain.at(simultaneous_confidence(tests))
    assert wide.low <= plain.low + 1e-9
    assert wide.high >= plain.high - 1e-9
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(1 - 0.05 / tests, len(values) - 1, np.mean(values), stats.sem(values))
        assert (wide.low, wide.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_two_way_intervals_carry_their_degrees_of_freedom() -> None:
    images = np.random.default_rng(1).normal(0.1, 1, (5, 300))
    both = two_way_interval(images)
    assert both.freedom >= 4
    assert both.at(0.95).low == pytest.approx(both.low)
    assert both.at(0.99).low < both.low
    assert (both.p_value <= 0.05) == (both.sign != 0)


def test_values_without_spread_are_certain_and_a_single_one_has_no_p() -> None:
    assert t_interval([0.1, 0.1]).p_value == 0
    assert t_interval([0.0, 0.0]).p_value == 1
    assert math.isnan(t_interval([0.1]).p_value)
    assert math.isnan(Estimate().p_value)


# --- verdicts --------------------------------------------------------------------------------------------------------

UP, DOWN, FLAT_ONE, NONE = (
    Estimate(0.01, 0.005, 0.015, 4, freedom=3),
    Estimate(-0.01, -0.015, -0.005, 4, freedom=3),
    Estimate(0.001, -0.005, 0.007, 4, freedom=3),
    Estimate(reason="why not"),
)


@pytest.mark.parametrize(
    ("flops", "time", "mixed", "expected"),
    [
        ((UP, UP), (UP, UP), False, "ahead"),
        ((UP, NONE), (UP, NONE), False, "ahead"),
        ((UP, UP), (FLAT_ONE, UP), False, "undecided"),
        ((FLAT_ONE, FLAT_ONE), (UP, UP), False, "undecided"),
        ((UP, UP), (UP, FLAT_ONE), False, "undecided"),
        ((UP, UP), (UP, DOWN), False, "undecided"),
        ((UP, UP), (DOWN, DOWN), False, "behind"),
        ((DOWN, FLAT_ONE), (UP, UP), False, "undecided"),
        ((UP, UP), (UP, UP), True, "undecided"),
        ((UP, UP), (DOWN, DOWN), True, "undecided"),
        ((DOWN, DOWN), (UP, UP), True, "behind"),
        ((UP, UP), (NONE, NONE), False, "n/a"),
        ((DOWN, DOWN), (NONE, NONE), False, "behind"),
        ((replace(UP, n=3, reason="one is out"), NONE), (UP, UP), False, "undecided"),
        ((replace(DOWN, n=3, reason="one is out"), NONE), (UP, UP), False, "undecided"),
    ],
)
def test_ahead_needs_both_axes_and_every_interval(flops: Pair, time: Pair, mixed: bool, expected: str) -> None:
    evidence = Evidence(flops, time, runs=4, unfinished=0, mixed_hardware=mixed)
    said, reason = verdict(evidence, direction_of(evidence.tested()))
    assert said == expected
    assert reason


def test_an_axis_is_as_doubtful_as_its_most_doubtful_interval() -> None:
    assert one_sided((UP, FLAT_ONE), 1) == FLAT_ONE.p_value / 2
    assert one_sided((UP, NONE), 1) == UP.p_value / 2
    assert one_sided((UP, DOWN), 1) == 1 - DOWN.p_value / 2
    assert one_sided((UP, DOWN), -1) == 1 - UP.p_value / 2


def test_better_needs_both_axes_and_worse_pays_for_looking_at_two() -> None:
    both = direction_of({"flops": (UP, UP), "time": (FLAT_ONE, NONE)})
    assert both is not None
    assert both == (FLAT_ONE.p_value, 1)
    assert direction_of({"flops": (UP, UP)}) == (1.0, -1)  # one axis never shows a lead
    worse = direction_of({"flops": (UP, UP), "time": (DOWN, DOWN)})
    assert worse == (pytest.approx(2 * DOWN.p_value), -1)
    assert direction_of({"time": (DOWN, DOWN)}) == (pytest.approx(DOWN.p_value), -1)
    assert direction_of({}) is None


def test_a_row_errs_in_one_direction_or_the_other_in_a_twentieth_of_all_cases_at_most() -> None:
    random = np.random.default_rng(3)
    claims = 0
    for _ in range(2000):
        seeds = random.normal(size=6)
        axes = {axis: (t_interval(seeds + 0.3 * random.normal(size=6)), NONE) for axis in ("flops", "time")}
        shown = direction_of(axes)
        assert shown is not None
        claims += shown.p <= 0.05
    assert claims / 2000 <= 0.06  # 0.05, and two standard errors of a rate seen 2,000 times


@pytest.mark.parametrize(
    ("final", "expected"),
    [((UP, UP), "ahead"), ((FLAT_ONE, NONE), "ahead"), ((NONE, NONE), "ahead"), ((DOWN, DOWN), "undecided")],
)
def test_a_lead_over_the_chunks_that_is_lost_at_the_end_is_no_lead(final: Pair, expected: str) -> None:
    evidence = Evidence((UP, UP), (UP, UP), 4, 0, False, final=((UP, UP), final))
    said, reason = verdict(evidence, direction_of(evidence.tested()))
    assert said == expected
    assert (reason == AT_THE_END) == (expected == "undecided")


def judged(evidence: list[Evidence | None], state: str = "sloping") -> list[dict[str, Any]]:
    means = {"difference_at_equal_flops_points_mean": 1.0, "difference_at_equal_time_points_mean": 1.0}
    rows: list[dict[str, Any]] = [{"frontier_state": state, **means} for _ in evidence]
    judge(rows, evidence)
    return rows


def test_what_looks_decided_alone_is_not_among_many() -> None:
    some = Estimate(0.01, 0.001, 0.019, 4, freedom=3)  # p = 0.038
    one = Evidence((some, NONE), (some, NONE), 4, 0, False)
    equal = Evidence((FLAT_ONE, NONE), (FLAT_ONE, NONE), 4, 0, False)
    [row, *_] = judged([one, None, *[equal] * 9])
    assert (row["tests_in_family"], row["verdict"], row["verdict_uncorrected"]) == (10, "undecided", "ahead")
    assert "better by this test alone, but not among 10" in row["statement"]
    assert row["statement"].startswith("no difference shown: +1.00 [")
    assert (row["p"], row["holm_p"]) == pytest.approx((some.p_value, 10 * some.p_value))


def test_simultaneous_columns_enclose_both_samplings() -> None:
    wide = replace(UP, low=0.001, high=0.019)
    [row] = judged([Evidence((UP, wide), (UP, UP), 4, 0, False)])
    expected = wide.at(1 - 0.05 / 2)
    assert row["difference_at_equal_flops_points_simultaneous_low"] == pytest.approx(100 * expected.low)
    assert row["difference_at_equal_flops_points_simultaneous_high"] == pytest.approx(100 * expected.high)


def test_sentences_are_plain() -> None:
    sure = replace(UP, low=0.009, high=0.011)
    down = replace(DOWN, low=-0.011, high=-0.009)
    pairs = ((sure, sure), (down, sure), (NONE, NONE))  # at equal FLOPs, at equal time
    up, fallen, missing = (Evidence((flops, flops), (time, time), 4, 0, False) for flops, time in pairs)
    better, worse, control, none = judged([up, fallen, None, missing])
    assert better["statement"].startswith("beats shortened training: +1.00 [+0.")
    assert "points at equal FLOPs, +1.00" in better["statement"]
    assert worse["statement"].startswith("behind shortened training: ")
    assert control["statement"] == ""
    assert none["statement"] == "cannot be compared: why not"


def test_a_flat_cell_is_called_flat_and_only_where_nothing_was_shown() -> None:
    unsure, sure = Evidence((FLAT_ONE, NONE), (FLAT_ONE, NONE), 4, 0, False), replace(UP, low=0.009, high=0.011)
    rows = judged([unsure, Evidence((sure, NONE), (sure, NONE), 4, 0, False)], "saturated")
    assert rows[0]["statement"] == FLAT
    assert rows[1]["statement"].startswith("beats shortened training")


def test_a_narrow_rejection_by_holms_steps_says_so() -> None:
    sure, narrow = replace(UP, low=0.0099, high=0.0101), replace(UP, low=0.0005, high=0.0195)
    [row] = judged([Evidence((sure, NONE), (narrow, NONE), 4, 0, False)])
    assert row["verdict"] == "ahead"
    assert row["difference_at_equal_time_points_simultaneous_low"] < 0
    assert "(Holm's p = 0.04" in row["statement"]


def test_the_family_is_every_test_of_the_report(tmp_path: Path) -> None:
    for model in ("a", "b"):
        write_grid(tmp_path, seeds=range(3), model=model)
    summary = summarize(load_results(tmp_path))
    assert set(summary["tests_in_family"]) == {2 * 3}
    assert set(summary["table_version"]) == {3}
    tested = summary[summary["verdict"] != "control"]
    assert (tested["holm_p"] >= tested["p"]).all()
    for axis in ("flops", "time"):
        low = tested[f"difference_at_equal_{axis}_points_simultaneous_low"]
        assert (low <= tested[f"difference_at_equal_{axis}_points_low"]).all()


def test_the_summary_names_the_front_and_the_seeds_that_a_plan_needs(tmp_path: Path) -> None:
    summary = summarize(load_results(write_grid(tmp_path, seeds=range(5)))).set_index("label")
    assert summary.loc["learn-and-drop", "pareto"] == "FLOPs; time"
    assert summary.loc["freezeout", "pareto"] == "dominated"
    assert summary.loc["full", "pareto"] == "FLOPs; time"
    row = summary.loc["learn-and-drop"]
    spread = max(row[f"difference_at_equal_{axis}_points_sd"] for axis in ("flops", "time"))
    assert row["seeds_needed_for_quarter_point"] == seeds_needed(spread, 0.25)


def test_a_method_with_lost_runs_is_not_on_the_front(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(3))
    lost = {"status": "diverged", "test_accuracy": None, "test_correct_base64": None, "error": "not finite"}
    write_cell(tmp_path, make_record("learn-and-drop", 2) | lost)
    assert summarize(load_results(tmp_path)).set_index("label").loc["learn-and-drop", "pareto"].startswith("n/a")


# --- streams ---------------------------------------------------------------------------------------------------------


def write_stream(root: Path, *, early: float, ours: float, at_the_end: float) -> None:
    """Five seeds of a stream: accuracy over the chunks rises with the budget, by ``early`` points more where early."""
    chunks = [{"chunk": 0, "test_accuracy": 0.8, "train_seconds": 1.0, "forward_flops": 1, "backward_flops": 1}]

    def write(method: str, seed: int, share: float, above: float = 0.0, **changes: Any) -> None:
        average = 0.8 + 0.1 * share + above + 0.0004 * np.random.default_rng(seed).standard_normal()
        stream = {"scenario": "online", "chunks": chunks, "average_accuracy": average}
        write_cell(root, make_record(method, seed, **stream, **costs(share), **changes))

    for seed in range(5):
        write("full", seed, 1.0)
        for budget in (0.25, 0.5, 0.75):
            write("short", seed, budget, budget=budget)
            write("short-early", seed, budget, above=early, budget=budget)
        images = np.arange(2000) < 2000 * (make_record("short", seed, budget=0.5)["test_accuracy"] + at_the_end)
        bits = base64.b64encode(np.packbits(images).tobytes()).decode()
        write("learn-and-drop", seed, 0.5, above=ours, test_accuracy=float(images.mean()), test_correct_base64=bits)


def test_streams_are_judged_by_the_mean_over_the_chunks_against_the_better_way_of_shortening(tmp_path: Path) -> None:
    write_stream(tmp_path, early=0.02, ours=0.03, at_the_end=0.0)
    row = summarize(load_results(tmp_path)).set_index("label").loc["learn-and-drop"]
    assert (
        row["average_difference_at_equal_flops_control"]
        == row["average_difference_at_equal_time_control"]
        == "short-early"
    )
    assert row["average_difference_at_equal_flops_points_mean"] == pytest.approx(1.0)
    assert row["average_difference_to_full_points_mean"] == pytest.approx(-2.0)
    assert row["verdict"] == "ahead"
    assert "in the mean over the chunks" in row["statement"]
    assert row["frontier_slope_points_per_doubling_mean"] > 0


def test_beating_the_weaker_way_of_shortening_alone_is_no_lead(tmp_path: Path) -> None:
    write_stream(tmp_path, early=0.05, ours=0.03, at_the_end=0.0)
    row = summarize(load_results(tmp_path)).set_index("label").loc["learn-and-drop"]
    assert row["average_difference_at_equal_flops_points_mean"] == pytest.approx(-2.0)
    assert row["verdict"] == "behind"


def test_what_falls_behind_at_the_end_of_a_stream_is_said(tmp_path: Path) -> None:
    write_stream(tmp_path, early=0.0, ours=0.03, at_the_end=-0.05)
    row = summarize(load_results(tmp_path)).set_index("label").loc["learn-and-drop"]
    assert (row["verdict"], row["verdict_reason"]) == ("undecided", AT_THE_END)
    assert AT_THE_END in row["statement"]
