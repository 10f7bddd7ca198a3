"""Intervals against SciPy and against simulation, and what pairing must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldbench.reporting.stats import (
    Estimate,
    image_variance,
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


def test_the_images_share_of_the_variance_by_hand() -> None:
    # two seeds, two images: means of images 1 and 3, of seeds 2 and 2, no remainder: image mean square 2 x (1 + 1) = 4
    assert image_variance(np.array([[1.0, 3.0], [1.0, 3.0]])) == pytest.approx(4 / 4)
    assert image_variance(np.array([[1.0, 3.0]])) == 0.0
    assert image_variance(np.random.default_rng(0).normal(size=(5, 400))) < 0.01
