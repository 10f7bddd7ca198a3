"""The frontier as a curve: SciPy's own interpolation, weights that add up, nothing extrapolated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from ldbench.reporting.curve import Curve, OffFrontier

COSTS = st.lists(st.floats(0.1, 1e3), min_size=2, max_size=7, unique_by=lambda cost: round(math.log(cost), 2))


def accuracy_at(curve: Curve, cost: float) -> float:
    return float(curve.values(np.array([cost]))[0])


@given(COSTS, st.data())
def test_it_is_scipys_pchip_over_the_logarithm_of_the_cost(costs: list[float], data: st.DataObject) -> None:
    values = st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=len(costs), max_size=len(costs))
    accuracies = data.draw(values)
    order = np.argsort(costs)
    reference = PchipInterpolator(np.log(costs)[order], np.array(accuracies)[order])
    at = np.geomspace(min(costs), max(costs), 17)[1:-1]
    assert Curve(costs, accuracies).values(at) == pytest.approx(reference(np.log(at)), abs=1e-9)


@given(COSTS, st.data())
def test_weights_sum_to_one_and_give_the_value(costs: list[float], data: st.DataObject) -> None:
    accuracies = data.draw(st.lists(st.floats(0, 1), min_size=len(costs), max_size=len(costs)))
    curve = Curve(costs, accuracies)
    at = np.geomspace(min(costs), max(costs), 9)
    weights = curve.weights(at)
    assert weights.sum(axis=1) == pytest.approx(np.ones(9))
    assert weights @ accuracies == pytest.approx(curve.values(at))
    assert curve.values(np.array(costs)) == pytest.approx(accuracies, abs=1e-6)


def test_weights_are_the_derivatives_by_each_accuracy() -> None:
    costs, accuracies, at = [1.0, 2.0, 3.0, 6.0, 8.0], np.array([0.5, 0.7, 0.78, 0.85, 0.86]), np.array([1.4, 2.5, 5.0])
    weights = Curve(costs, accuracies).weights(at)
    for place in range(5):
        step = 1e-6 * np.eye(5)[place]
        ends = [Curve(costs, accuracies + side * step).values(at) for side in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(weights[:, place], abs=1e-5)


def test_by_hand_two_points_are_a_straight_line_over_the_logarithm() -> None:
    assert accuracy_at(Curve([4.0, 1.0], [0.9, 0.6]), 2.0) == pytest.approx(0.75)


def test_by_hand_three_points() -> None:
    # x = 0, 1, 2 doublings, y = 0, 4, 6: secants 4 and 2, at the middle their harmonic mean 8/3, at the left end
    # (3 x 4 - 2) / 2 = 5. Half a doubling: (0 + 4)/2 + (5 - 8/3)/8
    curve = Curve([1.0, 2.0, 4.0], [0.0, 4.0, 6.0])
    assert accuracy_at(curve, math.sqrt(2)) == pytest.approx(2 + (5 - 8 / 3) / 8)


def test_a_bent_frontier_lies_above_straight_lines_and_meets_the_truth_more_closely() -> None:
    def truth(cost: float) -> float:
        return 0.95 - 0.06 * cost**-1.2 / 8

    budgets = [0.125, 0.25, 0.375, 0.5, 0.75, 1.0]
    curve = Curve(budgets, [truth(b) for b in budgets])
    for cost in (0.18, 0.3, 0.43, 0.6, 0.87):
        straight = np.interp(math.log(cost), np.log(budgets), [truth(b) for b in budgets])
        assert straight < accuracy_at(curve, cost)
        assert abs(accuracy_at(curve, cost) - truth(cost)) < 0.4 * abs(straight - truth(cost))


def test_controls_of_equal_cost_are_averaged() -> None:
    curve = Curve([1.0, 1.0, 4.0], [0.5, 0.7, 0.9])
    assert curve.weights(np.array([1.0, 2.0])) == pytest.approx(np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]))


def test_beyond_its_ends_it_stays_where_it_is_and_a_dearer_run_meets_full_training() -> None:
    curve = Curve([1.0, 2.0, 2.2], [0.5, 0.8, 0.7], dearest=1)  # full training took less time than a shorter run
    assert curve.weights(np.array([0.5, 3.0])) == pytest.approx(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    curve.check(3.0)
    with pytest.raises(OffFrontier, match="more than"):
        Curve([1.0, 2.0], [0.5, 0.8]).check(3.0)


@pytest.mark.parametrize(
    ("costs", "cost", "reason"),
    [
        ([1.0, 2.0], 0.99, "cheapest"),
        ([1.0, 2.0], 2.01, "more than"),
        ([1.0], 1.0, "no short"),
        ([0.0, 1.0], 0.5, "without a cost"),
        ([1.0, math.nan], 0.5, "without a cost"),
        ([], 1.0, "no short"),
        ([1.0, 2.0], math.nan, "not known"),
    ],
)
def test_the_frontier_is_never_extrapolated(costs: list[float], cost: float, reason: str) -> None:
    with pytest.raises(OffFrontier, match=reason):
        Curve(costs, [0.5] * len(costs)).check(cost)
