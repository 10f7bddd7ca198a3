"""Intervals against SciPy and against simulation, the frontier at its edges, and what pairing must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldbench.reporting.frontier import (
    OffFrontier,
    Run,
    frontier_difference,
    frontier_slope,
    interpolation_weights,
    two_way_difference,
)
from ldbench.reporting.stats import (
    Estimate,
    paired_difference,
    paired_ratio,
    ratio_of_sums,
    t_interval,
    two_way_interval,
)

VALUES = st.dictionaries(st.integers(0, 50), st.floats(-100, 100), min_size=2, max_size=12)


def test_t_interval_equals_scipys() -> None:
    sample = [0.91, 0.93, 0.905, 0.92]
    low, high = stats.t.interval(0.95, 3, np.mean(sample), stats.sem(sample))
    ours = t_interval(sample)
    assert (ours.mean, ours.n) == pytest.approx((np.mean(sample), 4))
    assert (ours.low, ours.high) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = t_interval([0.5]), t_interval([math.nan])
    assert (one.mean, one.n, one.sign) == (0.5, 1, 0)
    assert math.isnan(one.low)
    assert "one seed" in one.reason
    assert math.isnan(none.mean)
    assert none.n == 0


def test_missing_values_do_not_count() -> None:
    assert t_interval([1.0, math.nan, 3.0]) == t_interval([1.0, 3.0])


def test_paired_difference_equals_scipys_paired_test() -> None:
    a, b = [0.9, 0.92, 0.91, 0.95], [0.88, 0.93, 0.90, 0.91]
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    ours = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


@given(VALUES, VALUES)
def test_pairing_uses_exactly_the_seeds_in_common(a: dict[int, float], b: dict[int, float]) -> None:
    common = sorted(a.keys() & b.keys())
    ours = paired_difference(a, b)
    assert ours.n == len(common)
    if common:
        assert ours.mean == pytest.approx(np.mean([a[s] - b[s] for s in common]), abs=1e-9)


@given(VALUES, st.floats(-50, 50), st.randoms(use_true_random=False))
def test_a_shift_of_the_seeds_leaves_paired_differences_alone(
    a: dict[int, float], shift: float, random: object
) -> None:
    control = {seed: float(seed) for seed in a}
    moved = paired_difference({s: v + shift for s, v in a.items()}, {s: v + shift for s, v in control.items()})
    still = paired_difference(dict(reversed(a.items())), control)
    assert moved.mean == pytest.approx(still.mean, abs=1e-6)
    assert moved.high == pytest.approx(still.high, abs=1e-6)


@given(st.dictionaries(st.integers(0, 20), st.floats(0.1, 100), min_size=2, max_size=8), st.floats(0.1, 10))
def test_ratio_of_a_scaled_copy_is_the_scale_with_no_width(times: dict[int, float], factor: float) -> None:
    ratio = paired_ratio({seed: factor * value for seed, value in times.items()}, times)
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((factor, factor, factor))


def test_ratio_is_geometric() -> None:
    assert paired_ratio({0: 2.0, 1: 8.0}, {0: 1.0, 1: 1.0}).mean == pytest.approx(4.0)


def test_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    ratio = ratio_of_sums([(1.0, 0.1), (9.0, 9.9)])
    assert ratio.mean == pytest.approx(1.0)
    assert ratio.low < 1.0 < ratio.high
    assert ratio_of_sums([(1.0, 0.0), (2.0, 0.0)]).n == 0


def test_interpolation_goes_through_its_points_and_between_them() -> None:
    costs, accuracies = [4.0, 1.0, 2.0], np.array([0.9, 0.6, 0.8])
    assert interpolation_weights(costs, 2.0) @ accuracies == pytest.approx(0.8)
    assert interpolation_weights(costs, 2.0**1.5) @ accuracies == pytest.approx(0.85)  # half a doubling
    assert interpolation_weights(costs, 3.0) @ accuracies > 0.85  # and a straight line over the cost would say 0.85
    assert interpolation_weights(costs, 1.0) @ accuracies == pytest.approx(0.6)
    assert interpolation_weights(costs, 4.0) @ accuracies == pytest.approx(0.9)


def test_points_of_equal_cost_are_averaged() -> None:
    assert interpolation_weights([1.0, 1.0, 3.0], 1.0) == pytest.approx([0.5, 0.5, 0.0])
    assert interpolation_weights([1.0, 4.0, 4.0], 2.0) == pytest.approx([0.5, 0.25, 0.25])


@given(st.lists(st.floats(0.1, 1e6), min_size=2, max_size=6, unique=True), st.floats(0, 1))
def test_interpolation_weights_sum_to_one_and_reproduce_the_cost(costs: list[float], share: float) -> None:
    cost = min(costs) + share * (max(costs) - min(costs))
    weights = interpolation_weights(costs, min(cost, max(costs)))
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    assert weights @ np.log(costs) == pytest.approx(math.log(min(cost, max(costs))), abs=1e-6)


@pytest.mark.parametrize(
    ("costs", "cost", "reason"),
    [
        ([1.0, 2.0], 0.99, "cheapest"),
        ([1.0, 2.0], 2.01, "more than"),
        ([1.0], 1.0, "no short"),
        ([0.0, 1.0], 0.5, "without a cost"),
        ([], 1.0, "no short"),
        ([1.0, 2.0], math.nan, "not known"),
    ],
)
def test_the_frontier_is_never_extrapolated(costs: list[float], cost: float, reason: str) -> None:
    with pytest.raises(OffFrontier, match=reason):
        interpolation_weights(costs, cost)


def test_frontier_difference_is_taken_per_seed_at_each_runs_own_cost() -> None:
    frontier = {0: [Run(1, 0.5), Run(2, 0.7)], 1: [Run(2, 0.6), Run(4, 0.8)]}
    estimate, both = frontier_difference({0: Run(2**0.5, 0.65), 1: Run(2**1.5, 0.8)}, frontier)
    assert estimate.mean == pytest.approx((0.05 + 0.1) / 2)
    assert (estimate.n, estimate.reason, both.n) == (2, "", 0)


def test_seeds_off_the_frontier_are_counted_with_the_reason() -> None:
    frontier = {seed: [Run(1, 0.5), Run(2, 0.7)] for seed in range(3)}
    some, _ = frontier_difference({0: Run(1.5, 0.6), 1: Run(0.5, 0.6), 2: Run(1.2, 0.6)}, frontier)
    assert (some.n, some.reason) == (2, "1 of 3 seeds: costs less than the cheapest budget")
    none, _ = frontier_difference({0: Run(9, 0.9)}, frontier)
    assert (none.n, none.reason) == (0, "costs more than the most expensive control")
    missing, _ = frontier_difference({7: Run(1.5, 0.9)}, frontier)
    assert missing.reason == "no short run to compare with"


def test_slope_is_points_per_doubling() -> None:
    frontier = {seed: {b: 0.9 + 0.02 * math.log2(b) + 0.01 * seed for b in (0.25, 0.5, 1.0)} for seed in range(3)}
    slope = frontier_slope(frontier)
    assert (slope.mean, slope.n, slope.sign) == pytest.approx((0.02, 3, 1))


def test_a_flat_noisy_frontier_has_a_slope_that_holds_zero() -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, (6, 3))
    frontier = {seed: dict(zip((0.25, 0.5, 1.0), 0.99 + noise[seed], strict=True)) for seed in range(6)}
    assert frontier_slope(frontier).sign == 0
    assert frontier_slope({0: {1.0: 0.9}}).n == 0


def test_two_way_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        truth = random.normal(0, 0.02, (5, 1)) + random.normal(0, 0.3, (1, 400)) + random.normal(0, 0.3, (5, 400))
        interval = two_way_interval(0.01 + truth)
        hits += interval.low <= 0.01 <= interval.high
    assert 0.92 <= hits / 300 <= 0.99


def test_two_way_interval_of_identical_seeds_is_that_of_the_images() -> None:
    images = np.random.default_rng(1).normal(size=500)
    same, one = two_way_interval(np.tile(images, (4, 1))), two_way_interval(images[None])
    assert same.high - same.mean == pytest.approx(one.high - one.mean, rel=0.01)
    assert two_way_interval(np.zeros((3, 10))) == Estimate(0.0, 0.0, 0.0, 3)


def test_lucky_seeds_do_not_make_a_two_way_interval_of_no_width() -> None:
    method, control = np.zeros((2, 50), dtype=bool), np.zeros((2, 50), dtype=bool)
    method[0, 3] = method[1, 17] = True  # one image more is right for each seed: no spread over seeds at all
    runs = [{s: Run(1.0, float(bits.mean()), bits) for s, bits in enumerate(rows)} for rows in (method, control)]
    assert t_interval([0.02, 0.02]).sign == 1
    assert two_way_difference(runs[0], runs[1]).sign == 0


def test_two_way_needs_the_same_images() -> None:
    long, short = Run(1, 0.5, np.ones(8, dtype=bool)), Run(1, 0.5, np.ones(4, dtype=bool))
    frontier = {0: [Run(0.5, 0.1, np.zeros(8, dtype=bool)), Run(2, 0.2, np.zeros(8, dtype=bool))]}
    assert frontier_difference({0: short}, frontier)[1].n == 0
    assert frontier_difference({0: long}, frontier)[1].mean == pytest.approx(1.0)
    assert two_way_difference({0: long}, {1: long}).n == 0
    assert two_way_difference({0: long}, {0: short}).n == 0
