"""Moderated variances: the published estimator on numbers worked by hand, and tests that keep their level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from ldbench.reporting.moderation import Prior, inverse_trigamma, moderated, variance_prior
from ldbench.reporting.stats import t_interval


@pytest.mark.parametrize("x", [1e-4, 0.3, 1.0, 7.5, 400.0])
def test_the_inverse_of_trigamma(x: float) -> None:
    assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_by_hand_the_prior_of_unequal_variances() -> None:
    variances, freedom = [1.0, 4.0, 100.0], 4.0
    e = np.log(variances) - digamma(2.0) + math.log(2.0)
    beyond = np.var(e, ddof=1) - polygamma(1, 2.0)
    prior = variance_prior(variances, [freedom] * 3)
    assert polygamma(1, prior.freedom / 2) == pytest.approx(beyond)
    expected = np.mean(e) + digamma(prior.freedom / 2) - math.log(prior.freedom / 2)
    assert prior.variance == pytest.approx(math.exp(expected))
    assert prior.pooled == 12.0


def test_variances_that_differ_by_chance_alone_are_pooled() -> None:
    assert variance_prior([1.0, 1.1, 0.9], [4.0] * 3) == Prior(pytest.approx(1.0), math.inf, 12.0)


def test_by_hand_a_moderated_interval() -> None:
    # own variance 1 on 2 degrees of freedom, the others' 4 on 4: (4 x 4 + 2 x 1) / 6 = 3 on 6
    found = moderated([1.0, 2.0, 3.0], Prior(4.0, math.inf, 6.0))
    assert (found.mean, found.freedom) == (2.0, 6.0)
    assert found.high - found.mean == pytest.approx(2.44691 * math.sqrt(3 / 3), rel=1e-5)
    further = moderated([1.0, 2.0, 3.0], Prior(4.0, math.inf, 6.0), further_variance=3.0)
    assert further.high - further.mean == pytest.approx(2.44691 * math.sqrt(1 + 3), rel=1e-5)


def test_who_scatters_more_than_the_others_keeps_the_own_variance() -> None:
    values = [0.0, 10.0, 20.0]
    found, plain = moderated(values, Prior(1.0, math.inf, 12.0)), t_interval(values)
    assert (found.low, found.high, found.freedom) == pytest.approx((plain.low, plain.high, plain.freedom))


def test_a_line_alone_is_an_ordinary_t_test() -> None:
    values = [0.3, 0.1, 0.4, 0.2]
    assert moderated(values, variance_prior([np.var(values, ddof=1)], [3.0])) == t_interval(values)
    assert variance_prior([math.nan, 1.0], [3.0, 0.0]).freedom == 0


@pytest.mark.parametrize("scatter", [(1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 1.0, 2.0), (8.0, 1.0, 1.0, 1.0)])
def test_moderated_tests_keep_their_level_whatever_the_scatter_of_the_others(scatter: tuple[float, ...]) -> None:
    random = np.random.default_rng(11)
    false, tests = np.zeros(4), 4000
    for _ in range(tests):
        values = [size * random.normal(size=4) for size in scatter]
        prior = variance_prior([some.var(ddof=1) for some in values], [3.0] * 4)
        false += [moderated(some, prior).low > 0 for some in values]
    assert (false / tests).max() <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / tests)  # three standard errors of such a rate
    assert (false / tests).mean() <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / (4 * tests))
    plain = np.mean([t_interval(random.normal(0.8, 1.0, 4)).low > 0 for _ in range(500)])
    steadied = []
    for _ in range(500):
        values = [random.normal(0.8, 1.0, 4) for _ in range(4)]
        prior = variance_prior([some.var(ddof=1) for some in values], [3.0] * 4)
        steadied.append(np.mean([moderated(some, prior).low > 0 for some in values]))
    assert np.mean(steadied) > plain  # and show more
