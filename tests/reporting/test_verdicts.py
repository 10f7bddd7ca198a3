"""From declared groups to verdicts: what is tested, what is only shown, and sentences that say no more than that."""

from __future__ import annotations

import base64
import json
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
from support.report_records import DIGEST, costs, declare, make_record, write_cell, write_grid

from ldbench.records.results import load_results
from ldbench.reporting.frontier import Leads
from ldbench.reporting.groups import UNDECLARED
from ldbench.reporting.moderation import moderated, variance_prior
from ldbench.reporting.sentences import FLAT, cheaper, family, group_statement
from ldbench.reporting.stats import Estimate, holm, seeds_needed, t_interval, two_way_interval
from ldbench.reporting.summary import tabulate
from ldbench.reporting.verdicts import (
    AT_THE_END,
    Evidence,
    Group,
    direction_of,
    group_of,
    judge_groups,
    judge_lines,
    one_sided,
)

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


def test_two_way_intervals_carry_their_degrees_of_freedom() -> None:
    images = np.random.default_rng(1).normal(0.1, 1, (5, 300))
    both = two_way_interval(images)
    assert both.freedom >= 4
    assert both.high - both.mean == pytest.approx(stats.t.ppf(0.975, both.freedom) * both.standard_error)
    assert (both.p_value <= 0.05) == (both.sign != 0)


def test_values_without_spread_are_certain_and_a_single_one_has_no_p() -> None:
    assert t_interval([0.1, 0.1]).p_value == 0
    assert t_interval([0.0, 0.0]).p_value == 1
    assert math.isnan(t_interval([0.1]).p_value)
    assert math.isnan(Estimate().p_value)


# --- verdicts --------------------------------------------------------------------------------------------------------

UP = np.array([0.008, 0.010, 0.012, 0.010])
NOISY = np.array([-0.02, 0.03, -0.01, 0.012])
BOTH = ("flops", "time")


def evidence(flops: Any = UP, time: Any = UP, **changes: Any) -> Evidence:
    """A line of four seeds with these leads."""

    def some(values: Any) -> Leads:
        return Leads(
            tuple(range(len(values))), np.asarray(values, dtype=float), reason="" if len(values) else "why not"
        )

    return Evidence({"flops": some(flops), "time": some(time)}, 4, 0, False)._replace(**changes)


def judged(*lines: Evidence, axes: tuple[str, ...] = BOTH, exploratory: str = "") -> tuple[str, str]:
    [verdict] = judge_groups([group_of(lines, axes, exploratory)])
    return verdict.kind, verdict.reason


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (evidence(), "ahead"),
        (evidence(UP, NOISY), "undecided"),
        (evidence(NOISY, UP), "undecided"),
        (evidence(-UP, NOISY), "behind"),
        (evidence(UP, -UP), "behind"),
        (evidence(-UP, -UP), "behind"),
        (evidence(UP, UP, mixed_hardware=True), "undecided"),
        (evidence(-UP, UP, mixed_hardware=True), "undecided"),  # times from two machines bend the axis that is claimed
        (evidence(UP, ()), "undecided"),
        (evidence((), ()), "n/a"),
        (evidence(UP[:1], UP[:1]), "undecided"),
        (evidence(UP[:3], UP), "undecided"),
        (evidence(unfinished=1), "undecided"),
    ],
)
def test_ahead_needs_every_axis_and_behind_one(line: Evidence, kind: str) -> None:
    assert judged(line)[0] == kind


def test_a_claim_about_one_axis_is_tested_on_that_one() -> None:
    assert judged(evidence(UP, NOISY), axes=("flops",)) == ("ahead", "")
    assert judged(evidence(UP, UP, mixed_hardware=True), axes=("flops",)) == ("ahead", "")
    assert judged(evidence(NOISY, UP), axes=("flops",))[0] == "undecided"


def test_what_was_not_declared_has_no_verdict_however_sure() -> None:
    assert judged(evidence(), exploratory="why") == ("exploratory", "why")
    groups = [group_of([evidence()], BOTH, "why"), group_of([evidence()], BOTH)]
    verdicts = judge_groups(groups)
    assert [verdict.kind for verdict in verdicts] == ["exploratory", "ahead"]
    assert math.isnan(verdicts[0].adjusted)
    assert verdicts[1].adjusted == verdicts[1].p  # a family of one


def test_by_hand_the_groups_p_value_is_the_larger_axiss_and_holm_goes_over_the_groups() -> None:
    random = np.random.default_rng(4)
    groups = [group_of([evidence(*random.normal(0.01, 0.004, (2, 4)))], BOTH) for _ in range(3)]
    priors = {
        axis: variance_prior([float(g.leads[axis].differences.var(ddof=1)) for g in groups], [3.0] * 3) for axis in BOTH
    }
    expected = []
    for group in groups:
        each = [moderated(group.leads[axis].differences, priors[axis]).p_value for axis in BOTH]
        expected.append(max(each))
    verdicts = judge_groups(groups)
    assert [verdict.p for verdict in verdicts] == pytest.approx(expected)
    assert [verdict.adjusted for verdict in verdicts] == pytest.approx(holm(expected))


def test_by_hand_one_group_is_an_ordinary_t_test() -> None:
    [verdict] = judge_groups([group_of([evidence(UP, 2 * UP)], BOTH)])
    assert verdict.p == pytest.approx(stats.ttest_1samp(UP, 0).pvalue)


def test_the_choice_of_the_test_images_is_part_of_the_test() -> None:
    images = np.random.default_rng(0).normal(0.01, 0.3, (1, 50)).repeat(4, axis=0)  # the same images lucky every time
    images += (UP - images.mean())[:, None]
    lucky = replace(evidence().leads["flops"], images=images)
    sure = evidence()._replace(leads={"flops": lucky, "time": lucky})
    assert t_interval(UP).sign == 1
    assert judged(sure)[0] == "undecided"


def test_many_groups_make_each_one_harder() -> None:
    some = np.array([0.005, 0.010, 0.016, 0.006])
    weak = evidence(some, some)
    assert judged(weak)[0] == "ahead"
    many = judge_groups([group_of([weak], BOTH)] + [group_of([evidence(NOISY, NOISY)], BOTH)] * 6)
    assert many[0].kind == "undecided"
    assert many[0].adjusted > 0.05


@pytest.mark.parametrize(("end", "expected"), [(UP, "ahead"), (NOISY, "ahead"), (-UP, "undecided")])
def test_a_lead_over_the_chunks_that_is_lost_at_the_end_is_no_lead(end: Any, expected: str) -> None:
    none = Estimate(reason="no per-image record")
    kind, reason = judged(evidence(final=((t_interval(UP), none), (t_interval(end), none))))
    assert kind == expected
    assert (reason == AT_THE_END) == (expected == "undecided")


def lines_of(groups: list[Group]) -> list[list[tuple[str, str]]]:
    return [[(v.kind, v.reason) for v in lines] for lines in judge_lines(groups, judge_groups(groups))]


def test_single_lines_are_tested_behind_their_groups_gate_alone() -> None:
    strong, weak = evidence(2 * UP, 2 * UP), evidence(NOISY, NOISY)
    opened = group_of([strong, strong], BOTH)
    shut = group_of([weak, strong], BOTH)
    assert judge_groups([shut])[0].kind == "undecided"
    [first, second, third] = lines_of([opened, shut, group_of([strong], BOTH, "why")])
    assert [kind for kind, _ in first] == ["ahead", "ahead"]
    assert second == [("exploratory", "its group's verdict opens no gate")] * 2
    assert third == [("exploratory", "why")]


def test_a_lines_adjusted_p_is_never_below_its_groups_and_pays_for_all_groups() -> None:
    groups = [group_of([evidence(2 * UP, 2 * UP), evidence()], BOTH), group_of([evidence()], BOTH)]
    verdicts = judge_groups(groups)
    for verdict, lines in zip(verdicts, judge_lines(groups, verdicts), strict=True):
        assert all(line.adjusted >= verdict.adjusted for line in lines)
        assert all(line.adjusted >= min(1.0, 2 * line.p) for line in lines)


def test_a_line_against_its_groups_direction_is_not_called_ahead() -> None:
    group = group_of([evidence(6 * UP, 6 * UP), evidence(-UP, -UP)], BOTH)
    assert judge_groups([group])[0].kind == "ahead"
    [[first, second]] = lines_of([group])
    assert first[0] == "ahead"
    assert second[0] == "undecided"


def test_an_axis_is_as_doubtful_as_its_most_doubtful_interval() -> None:
    up, flat = t_interval(UP), t_interval(NOISY)
    assert one_sided((up, flat), 1) == flat.p_value / 2
    assert one_sided((up, Estimate()), 1) == up.p_value / 2
    assert one_sided((up, t_interval(-UP)), -1) == pytest.approx(1 - up.p_value / 2)


def test_better_needs_all_axes_and_worse_pays_for_looking_at_two() -> None:
    up, down, flat = t_interval(UP), t_interval(-UP), t_interval(NOISY)
    both = direction_of({"flops": (up,), "time": (flat,)})
    assert both is not None
    assert both == (flat.p_value, 1)
    assert direction_of({"flops": (up,)}) == (1.0, -1)  # one axis of two never shows a lead
    assert direction_of({"flops": (up,)}, axes=1) == (up.p_value, 1)
    assert direction_of({"flops": (up,), "time": (down,)}) == (pytest.approx(2 * down.p_value), -1)
    assert direction_of({}) is None


# --- whole tables ----------------------------------------------------------------------------------------------------


def groups_in(root: Path) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()}
        for row in tabulate(load_results(root)).groups.to_dict("records")
    ]
    return {row["label"]: row for row in rows}


def test_the_declared_rule_alone_gets_a_verdict_and_everything_else_its_figures(tmp_path: Path) -> None:
    tables = tabulate(load_results(write_grid(tmp_path, seeds=range(6), declared="learn-and-drop")))
    groups = {row["label"]: row for row in tables.groups.to_dict("records")}
    assert {label: (row["standing"], row["verdict"]) for label, row in groups.items()} == {
        "learn-and-drop": ("declared", "ahead"),
        "freeze": ("exploratory", "exploratory"),
        "freezeout": ("exploratory", "exploratory"),
    }
    assert next(iter(groups)) == "learn-and-drop"
    assert groups["freezeout"]["verdict_reason"] == "it is not the rule that was declared"
    lines = tables.lines.set_index("label")
    assert lines.loc["learn-and-drop", "verdict"] == "ahead"
    assert lines.loc["freezeout", "verdict"] == "exploratory"
    assert lines.loc["freezeout", "statement"].startswith("exploratory: ")
    assert set(tables.lines["table_version"]) == {4}
    assert lines.loc["full", "standing"] == "control"
    assert groups["learn-and-drop"]["statement"].startswith("beats shortened training: ")
    assert "x cheaper [" in groups["learn-and-drop"]["statement"]
    assert "1 group of comparisons, 1 of them tested" in family(list(groups.values()))


def test_without_claims_everything_is_exploratory_and_nothing_beats(tmp_path: Path) -> None:
    tables = tabulate(load_results(write_grid(tmp_path, seeds=range(8))))
    assert set(tables.groups["verdict"]) == {"exploratory"}
    assert set(tables.groups["verdict_reason"]) == {UNDECLARED}
    assert set(tables.lines["verdict"]) == {"control", "exploratory"}
    for text in (*tables.groups["statement"], *tables.lines["statement"]):
        assert "beats" not in text
        assert "behind" not in text
    assert "nothing was declared" in family(tables.groups.to_dict("records"))


def test_runs_made_before_the_declaration_make_it_exploratory(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(6), declared="learn-and-drop")
    write_cell(tmp_path, make_record("short", 3, budget=0.5))  # carries no claims
    row = groups_in(tmp_path)["learn-and-drop"]
    assert (row["standing"], row["verdict"]) == ("exploratory", "exploratory")
    assert row["verdict_reason"].startswith("1 of its runs and controls were not made under")


def test_nothing_is_judged_before_every_declared_seed_and_comparison_is_there(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(6), declared="learn-and-drop")
    declare(tmp_path, "learn-and-drop", range(8))
    row = groups_in(tmp_path)["learn-and-drop"]
    assert (row["verdict"], row["verdict_reason"]) == (
        "n/a",
        "6 of 8 declared seeds are there: it is judged when all are",
    )
    declare(tmp_path, "learn-and-drop", range(6), scenarios=("scratch", "fine-tune"))
    assert groups_in(tmp_path)["learn-and-drop"]["verdict_reason"] == "no run yet of fashion-mnist fine-tune"
    declare(tmp_path, "learn-and-drop", range(6), groups=(("vgg11_bn", "single set"), ("vgg11_bn", "streams")))
    tables = tabulate(load_results(tmp_path)).groups
    missing = tables[tables["kind"] == "streams"].to_dict("records")
    assert [(row["verdict"], row["statement"]) for row in missing] == [("n/a", "cannot be compared: no run yet")]


def test_a_declared_seed_that_diverged_forbids_ahead_and_stays_declared(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(6), declared="learn-and-drop")
    lost = {"status": "diverged", "test_accuracy": None, "test_correct_base64": None, "error": "not finite"}
    write_cell(tmp_path, make_record("learn-and-drop", 5, claims_sha256="feedc0defeedc0de") | lost)
    row = groups_in(tmp_path)["learn-and-drop"]
    assert (row["standing"], row["verdict"]) == ("declared", "undecided")
    assert "1 runs did not finish" in row["verdict_reason"]


def test_a_group_is_the_mean_over_scenarios_seed_by_seed(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(4), methods=("learn-and-drop",))
    tuned = {"scenario": "fine-tune"}
    for seed in range(4):
        for budget in (0.25, 0.5, 0.75):
            write_cell(tmp_path, make_record("short", seed, budget=budget, **tuned), scenario="fine-tune")
        write_cell(tmp_path, make_record("full", seed, **tuned), scenario="fine-tune")
        better = {"test_accuracy": make_record("learn-and-drop", seed)["test_accuracy"] + 0.01 * seed}
        record = make_record("learn-and-drop", seed, **tuned, **better, test_correct_base64=None)
        write_cell(tmp_path, record, scenario="fine-tune")
    tables = tabulate(load_results(tmp_path))
    [group] = tables.groups.to_dict("records")
    lines = tables.lines[tables.lines["verdict"] != "control"]
    assert len(lines) == group["comparisons"] == 2
    mean = lines["difference_at_equal_flops_points_mean"].mean()
    assert group["lead_flops_points_mean"] == pytest.approx(mean)
    first = lines[lines["scenario"] == "scratch"].iloc[0]
    second = lines[lines["scenario"] == "fine-tune"].iloc[0]
    assert second["difference_at_equal_flops_points_mean"] == pytest.approx(
        first["difference_at_equal_flops_points_mean"] + 1.5
    )


def test_rules_with_other_options_are_groups_of_their_own(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(3), methods=("learn-and-drop",))
    for seed in range(3):
        write_cell(tmp_path, make_record("learn-and-drop", seed), policy={"patience": 3})
        write_cell(tmp_path, make_record("learn-and-drop", seed), refresh_statistics=True)
    labels = sorted(groups_in(tmp_path))
    assert labels == [
        "learn-and-drop (default options)", "learn-and-drop (patience=3)", "learn-and-drop (refresh_statistics=true)",
    ]  # fmt: skip


def test_the_summary_names_the_front_and_the_seeds_that_a_plan_needs(tmp_path: Path) -> None:
    summary = tabulate(load_results(write_grid(tmp_path, seeds=range(5)))).lines.set_index("label")
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
    lines = tabulate(load_results(tmp_path)).lines.set_index("label")
    assert lines.loc["learn-and-drop", "pareto"].startswith("n/a")


# --- time ------------------------------------------------------------------------------------------------------------


def test_time_is_the_median_steps_where_all_have_it_and_the_raw_seconds_stand_beside(tmp_path: Path) -> None:
    for seed in range(3):
        for method, budget in (("full", None), ("short", 0.5), ("short", 0.25), ("learn-and-drop", None)):
            record = make_record(method, seed, budget=budget)
            stall = 40.0 if method == "learn-and-drop" else 0.0
            typical = record["train_seconds"]
            write_cell(tmp_path, record | {"typical_train_seconds": typical, "train_seconds": typical + stall})
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    assert row["time_basis"].startswith("median step time, the steadier of both over the controls")
    assert row["train_time_ratio_mean"] == pytest.approx(0.65, abs=0.03)
    assert row["raw_time_ratio_mean"] == pytest.approx(1.05, abs=0.04)
    assert row["train_seconds_mean"] == pytest.approx(row["compared_seconds_mean"] + 40)
    at_its_time = row["difference_at_equal_time_points_mean"]
    write_cell(tmp_path, make_record("full", 1))  # one record without
    raw = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    assert raw["time_basis"] == "raw seconds"
    assert raw["difference_at_equal_time_points_mean"] < at_its_time


# --- sentences -------------------------------------------------------------------------------------------------------


def speed(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"verdict": "exploratory", "verdict_reason": "", "adjusted_p": math.nan, "flat": False}
    for axis in BOTH:
        row |= {
            f"speed_up_{axis}_{part}": value
            for part, value in zip(
                ("mean", "low", "high", "lowest", "highest", "bound"), (1.43, 1.21, 1.65, 0.3, 2.0, ""), strict=True
            )
        }
        row |= {
            f"lead_{axis}_points_{part}": v for part, v in zip(("mean", "low", "high"), (0.6, 0.3, 0.9), strict=True)
        }
    return row | changes


def test_the_speed_up_comes_first_and_the_points_beside_it() -> None:
    assert group_statement(speed(verdict="ahead", adjusted_p=0.004)) == (
        "beats shortened training: 1.43x cheaper [1.21, 1.65] by FLOPs, 1.43x cheaper [1.21, 1.65] by time, at equal "
        "accuracy; +0.60 [+0.30, +0.90] points at equal FLOPs, +0.60 [+0.30, +0.90] points at equal time (Holm's p = "
        "0.004)"
    )


def test_bounds_are_printed_as_bounds() -> None:
    above = speed(speed_up_flops_mean=2.0, speed_up_flops_high=math.inf, speed_up_flops_bound="at least")
    assert cheaper(above, "flops") == "≥ 2.00x [1.21, > 2.00]"
    below = speed(
        speed_up_flops_mean=0.3, speed_up_flops_low=0.0, speed_up_flops_high=0.8, speed_up_flops_bound="at most"
    )
    assert cheaper(below, "flops") == "≤ 0.30x [< 0.30, 0.80]"
    assert "0.30x as cheap" in group_statement(below)
    assert cheaper(speed(speed_up_time_mean=math.nan), "time") == ""
    assert cheaper(speed(speed_up_time_low=math.nan), "time") == "1.43x"


def test_a_flat_group_is_called_flat_where_nothing_was_shown() -> None:
    assert group_statement(speed(flat=True)).startswith(FLAT)
    assert group_statement(speed(flat=True, verdict="ahead")).startswith("beats")
    assert group_statement(speed(verdict="n/a", verdict_reason="why")) == "cannot be compared: why"
    doubtful = speed(verdict="undecided", verdict_reason="2 runs did not finish", adjusted_p=0.01)
    assert group_statement(doubtful).endswith("(Holm's p = 0.01) (2 runs did not finish)")


# --- streams ---------------------------------------------------------------------------------------------------------


def write_stream(root: Path, *, early: float, ours: float, at_the_end: float) -> None:
    """Five seeds of a stream: accuracy over the chunks rises with the budget, by ``early`` points more where early."""
    chunks = [{"chunk": 0, "test_accuracy": 0.8, "train_seconds": 1.0, "forward_flops": 1, "backward_flops": 1}]

    def write(method: str, seed: int, share: float, above: float = 0.0, **changes: Any) -> None:
        average = 0.8 + 0.1 * share + above + 0.0004 * np.random.default_rng(seed).standard_normal()
        stream = {"scenario": "online", "chunks": chunks, "average_accuracy": average, "claims_sha256": DIGEST}
        write_cell(root, make_record(method, seed, **stream, **costs(share), **changes))

    for seed in range(5):
        write("full", seed, 1.0)
        for budget in (0.25, 0.5, 0.75):
            write("short", seed, budget, budget=budget)
            write("short-early", seed, budget, above=early, budget=budget)
        images = np.arange(2000) < 2000 * (make_record("short", seed, budget=0.5)["test_accuracy"] + at_the_end)
        bits = base64.b64encode(np.packbits(images).tobytes()).decode()
        write("learn-and-drop", seed, 0.5, above=ours, test_accuracy=float(images.mean()), test_correct_base64=bits)
    declare(root, "learn-and-drop", range(5), groups=(("vgg11_bn", "streams"),), scenarios=("online",))


def test_streams_are_judged_by_the_mean_over_the_chunks_against_the_better_way_of_shortening(tmp_path: Path) -> None:
    write_stream(tmp_path, early=0.02, ours=0.03, at_the_end=0.0)
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
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
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    assert row["average_difference_at_equal_flops_points_mean"] == pytest.approx(-2.0)
    assert row["verdict"] == "behind"


def test_what_falls_behind_at_the_end_of_a_stream_is_said(tmp_path: Path) -> None:
    write_stream(tmp_path, early=0.0, ours=0.03, at_the_end=-0.05)
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    assert row["verdict"] == "exploratory"
    group = groups_in(tmp_path)["learn-and-drop"]
    assert (group["verdict"], group["verdict_reason"]) == ("undecided", AT_THE_END)
    assert AT_THE_END in group["statement"]


def test_of_streams_too_the_images_are_sampled_where_every_chunk_was_recorded(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def write(method: str, seed: int, share: float, budget: float | None = None) -> None:
        bits = random.random((3, 2000)) < 0.8 + 0.1 * share
        chunks = [
            {"chunk": chunk, "test_accuracy": float(some.mean()),
             "test_correct_base64": base64.b64encode(np.packbits(some).tobytes()).decode()}
            for chunk, some in enumerate(bits)
        ]  # fmt: skip
        average = float(bits.mean(axis=1).mean())
        record = make_record(method, seed, budget=budget, scenario="online", chunks=chunks, average_accuracy=average)
        write_cell(tmp_path, record | costs(share))

    for seed in range(4):
        for budget in (0.25, 0.5):
            write("short", seed, budget, budget)
        write("full", seed, 1.0)
        write("learn-and-drop", seed, 0.5)
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    name = "average_difference_at_equal_flops_points"
    assert row[f"{name}_two_way_low"] < row[f"{name}_mean"] < row[f"{name}_two_way_high"]
    for path in tmp_path.glob("cells/*learn-and-drop*/result.json"):
        record = json.loads(path.read_text())
        record["chunks"][1]["test_correct_base64"] = "?"
        write_cell(tmp_path, {key: value for key, value in record.items() if key != "sha256"})
    row = tabulate(load_results(tmp_path)).lines.set_index("label").loc["learn-and-drop"]
    assert math.isnan(row[f"{name}_two_way_low"])
