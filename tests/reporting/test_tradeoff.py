"""What accuracy costs: the seeds that a plan needs, what reaching a target takes, and the front nothing dominates."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldbench.reporting.stats import mean_over_hits, seeds_needed
from ldbench.reporting.tradeoff import undominated

# --- what a plan and a target need -----------------------------------------------------------------------------------


@given(st.floats(0.01, 20), st.floats(0.05, 2))
def test_the_seeds_needed_are_the_fewest_that_reach_the_width(spread: float, half_width: float) -> None:
    n = int(seeds_needed(spread, half_width))

    def half(count: int) -> float:
        return float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)

    assert half(n) <= half_width * (1 + 1e-9)
    assert n == 2 or half(n - 1) > half_width * (1 - 1e-9)


def test_the_seeds_needed_of_known_cases() -> None:
    assert seeds_needed(0.25, 0.15) == 14  # t(13) = 2.160: half-width 0.1443; thirteen give 0.1511
    assert seeds_needed(0.0, 0.25) == 2
    assert math.isnan(seeds_needed(math.nan, 0.25))


def test_the_expected_cost_counts_misses() -> None:
    assert mean_over_hits([60.0, 60.0, 60.0], [True, True, False]).mean == pytest.approx(90)
    assert math.isnan(mean_over_hits([1.0, 2.0], [False, False]).mean)
    assert math.isnan(mean_over_hits([1.0, math.nan], [True, True]).mean)


def test_with_costs_that_do_not_vary_the_interval_is_that_of_the_hit_rate() -> None:
    wilson = stats.binomtest(3, 5).proportion_ci(0.95, method="wilson")
    found = mean_over_hits([60.0] * 5, [True, True, True, False, False])
    assert (found.low, found.high) == pytest.approx((60 / wilson.high, 60 / wilson.low))
    every = mean_over_hits([60.0] * 5, [True] * 5)
    assert every.low == pytest.approx(60)
    assert every.high == pytest.approx(60 / stats.binomtest(5, 5).proportion_ci(0.95, method="wilson").low)


@given(
    st.lists(st.tuples(st.floats(1, 100), st.booleans()), min_size=2, max_size=15).filter(
        lambda v: any(h for _, h in v)
    )
)
def test_the_interval_of_the_expected_cost_holds_its_estimate(tries: list[tuple[float, bool]]) -> None:
    found = mean_over_hits([cost for cost, _ in tries], [hit for _, hit in tries])
    assert 0 <= found.low <= found.mean * (1 + 1e-9)
    assert found.mean * (1 - 1e-9) <= found.high < math.inf


@pytest.mark.parametrize(("tries", "rate"), [(5, 0.8), (12, 0.7), (20, 0.3)])
def test_the_interval_of_the_expected_cost_covers_the_truth_as_often_as_it_says(tries: int, rate: float) -> None:
    random = np.random.default_rng(11)
    held = []
    while len(held) < 500:
        costs, hits = random.normal(60, 5, tries), random.random(tries) < rate
        if hits.any():
            found = mean_over_hits(costs.tolist(), hits.tolist())
            held.append(found.low <= 60 / rate <= found.high)
    assert np.mean(held) >= 0.93


# --- the front -------------------------------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_dominates() -> None:
    points = [(1.0, 80.0), (2.0, 90.0), (2.0, 90.0), (2.0, 89.0), (3.0, 90.0), (4.0, 91.0), (5.0, 90.5)]
    assert undominated(points) == [True, True, True, False, False, True, False]


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=12))
def test_the_front_is_never_empty_and_rises_with_cost(points: list[tuple[float, float]]) -> None:
    kept = sorted({point for point, stays in zip(points, undominated(points), strict=True) if stays})
    assert kept
    assert all(before[1] < after[1] for before, after in pairwise(kept))
