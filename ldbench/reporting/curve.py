"""One seed's frontier of shortened training as a curve: monotone cubic interpolation over the logarithm of the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class OffFrontier(ValueError):
    """The cost lies where no control was run; the message says on which side."""


class Curve:
    """Accuracy over the logarithm of the cost, through every control of one seed.

    Piecewise cubic Hermite interpolation with the slopes of Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5, 1984) and
    one-sided three-point slopes at the ends, as ``scipy.interpolate.PchipInterpolator`` has them: monotone where the
    points are. Accuracy bends over the logarithm of the cost, so straight lines between the budgets would lie below
    what training less really reaches, and flatter every method. Two points give a straight line.

    The curve is homogeneous in the accuracies, so its value is a weighted sum of them (Euler's theorem): the weights
    are its partial derivatives, and what they make of right-or-wrong records is the curve image by image.

    Args:
        costs: of each control, above 0; controls of equal cost are averaged.
        accuracies: of each control, in any unit.
        dearest: which of them stands for every cost above the highest; None: there is none.

    Raises:
        OffFrontier: there are not two different costs, or one is not above 0.
    """

    def __init__(self, costs: Sequence[float], accuracies: Sequence[float], dearest: int | None = None) -> None:
        given = np.asarray(costs, dtype=np.float64)
        if len(given) and not bool((given > 0).all() and np.isfinite(given).all()):
            raise OffFrontier("a control without a cost")
        known, place = np.unique(given, return_inverse=True)
        if len(known) < 2:
            raise OffFrontier("no short run to compare with")
        self.dearest = dearest
        self._share = np.zeros((len(known), len(given)))  # what each control gives to its knot
        self._share[place, np.arange(len(given))] = 1.0
        self._share /= self._share.sum(axis=1, keepdims=True)
        self._knots = np.log(known)
        self._slopes = slope_weights(self._knots, self._share @ np.asarray(accuracies, dtype=np.float64))
        self.accuracies = np.asarray(accuracies, dtype=np.float64)
        self.cheapest, self.highest = float(known[0]), float(known[-1])

    def check(self, cost: float) -> None:
        """Raises ``OffFrontier`` where no control can stand for ``cost``."""
        if not math.isfinite(cost):
            raise OffFrontier("its cost is not known")
        if cost < self.cheapest:
            raise OffFrontier("costs less than the cheapest budget")
        if cost > self.highest and self.dearest is None:
            raise OffFrontier("costs more than the most expensive control")

    def weights(self, costs: Floats) -> Floats:
        """Weights ``[costs, controls]`` of the accuracies in the curve at each cost, each row of sum 1.

        Below the cheapest control they are that control's; above the highest those of ``dearest``.
        """
        knots = self._knots
        x = np.clip(np.log(costs), knots[0], knots[-1])
        left = np.minimum(np.searchsorted(knots[1:-1], x, side="right"), len(knots) - 2)
        wide = knots[left + 1] - knots[left]
        t = (x - knots[left]) / wide
        made, rows = np.zeros((len(x), len(knots))), np.arange(len(x))
        made[rows, left] = (1 + 2 * t) * (1 - t) ** 2
        made[rows, left + 1] = t * t * (3 - 2 * t)
        made += (t * (1 - t) ** 2 * wide)[:, None] * self._slopes[left]
        made += (t * t * (t - 1) * wide)[:, None] * self._slopes[left + 1]
        of_controls: Floats = made @ self._share
        if self.dearest is not None:
            beyond = np.log(costs) > knots[-1]
            of_controls[beyond] = 0.0
            of_controls[beyond, self.dearest] = 1.0
        return of_controls

    def values(self, costs: Floats) -> Floats:
        """Accuracy ``[costs]``."""
        found: Floats = self.weights(costs) @ self.accuracies
        return found


def slope_weights(x: Floats, y: Floats) -> Floats:
    """Partial derivatives ``[points, points]`` of the curve's slope at each point by each accuracy.

    Their product with ``y`` is the slope: between two secants a, b of one sign their harmonic mean, weighted by the
    distances; 0 at a turn; at the ends the parabola through three points, held back where it would overshoot.
    """
    count, steps = len(x), np.diff(x)
    secant = np.zeros((count - 1, count))
    places = np.arange(count - 1)
    secant[places, places], secant[places, places + 1] = -1 / steps, 1 / steps
    rise = secant @ y
    slopes = np.zeros((count, count))
    if count == 2:
        slopes[:] = secant[0]
        return slopes
    for k in range(1, count - 1):
        before, after = rise[k - 1], rise[k]
        if before * after > 0:
            first, second = 2 * steps[k] + steps[k - 1], steps[k] + 2 * steps[k - 1]
            both = first * after + second * before  # the mean is (first + second) before after / both
            parts = first * (after / both) ** 2 * secant[k - 1] + second * (before / both) ** 2 * secant[k]
            slopes[k] = (first + second) * parts
    for end, near, far in ((0, 0, 1), (count - 1, count - 2, count - 3)):
        row = ((2 * steps[near] + steps[far]) * secant[near] - steps[near] * secant[far]) / (steps[near] + steps[far])
        slope = float(row @ y)
        if slope * rise[near] <= 0:
            continue
        overshoots = rise[near] * rise[far] <= 0 and abs(slope) > 3 * abs(rise[near])
        slopes[end] = 3 * secant[near] if overshoots else row
    return slopes
