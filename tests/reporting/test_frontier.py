"""Leads over the frontier: per seed at the run's own cost, image by image, over groups; and the frontier's own check."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldbench.reporting.equal_accuracy import SpeedUp, speed_up
from ldbench.reporting.frontier import (
    FULL,
    Leads,
    Run,
    frontier_check,
    frontier_slope,
    leads,
    pooled,
    two_way_difference,
    way_of,
)
from ldbench.reporting.moderation import Prior
from ldbench.reporting.stats import t_interval

BUDGETS = (0.25, 0.5, FULL)


def controls(accuracies: tuple[float, ...] = (0.5, 0.6, 0.7), shift: float = 0.0) -> list[Run]:
    """One seed's controls: 0.1 per doubling."""
    return [Run(b, a + shift, None, b) for b, a in zip(BUDGETS, accuracies, strict=True)]


def test_a_lead_is_taken_per_seed_at_each_runs_own_cost() -> None:
    frontier = {0: [Run(1, 0.5), Run(2, 0.7)], 1: [Run(2, 0.6), Run(4, 0.8)]}
    found = leads({0: Run(2**0.5, 0.65), 1: Run(2**1.5, 0.8)}, {"short": way_of(frontier)})
    assert found.differences == pytest.approx([0.05, 0.1])
    assert (found.seeds, found.reason, found.control) == ((0, 1), "", "short")
    over_seeds, both = found.pair()
    assert (over_seeds.mean, over_seeds.n, both.n) == (pytest.approx(0.075), 2, 0)


def test_seeds_off_the_frontier_are_counted_with_the_reason() -> None:
    ways = {"short": way_of({seed: [Run(1, 0.5), Run(2, 0.7)] for seed in range(3)})}
    some = leads({0: Run(1.5, 0.6), 1: Run(0.5, 0.6), 2: Run(1.2, 0.6)}, ways)
    assert (some.seeds, some.reason) == ((0, 2), "1 of 3 seeds: costs less than the cheapest budget")
    assert leads({0: Run(9, 0.9)}, ways).reason == "costs more than the most expensive control"
    assert leads({7: Run(1.5, 0.9)}, ways).reason == "no short run to compare with"
    assert leads({0: Run(1.0, 0.9)}, {}).pair()[0].reason == "no short run to compare with"


def test_a_run_dearer_than_full_is_compared_with_full_and_counts() -> None:
    found = leads({0: Run(1.5, 0.72), 1: Run(0.5, 0.6)}, {"short": way_of({0: controls(), 1: controls()})})
    assert found.differences == pytest.approx([0.02, 0.0])
    assert found.reason == "1 of 2 seeds cost more than full training and are compared with it"


def test_the_harder_way_of_training_less_is_the_control() -> None:
    ways = {
        "short": way_of({0: controls(), 1: controls()}),
        "short-early": way_of({s: controls(shift=0.01) for s in (0, 1)}),
    }
    found = leads({0: Run(0.5, 0.62), 1: Run(0.5, 0.63)}, ways)
    assert (found.control, found.differences.tolist()) == ("short-early", pytest.approx([0.01, 0.02]))
    ways["short-early"] = way_of({0: controls(shift=0.01)})  # reaches one seed alone
    assert leads({0: Run(0.5, 0.62), 1: Run(0.5, 0.63)}, ways).control == "short"


def test_images_are_interpolated_with_the_weights_of_the_curve() -> None:
    bits = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    runs = [Run(b, float(some.mean()), some, b) for b, some in zip((1.0, 2.0, 4.0), bits, strict=True)]
    ours = Run(2**0.5, 0.75, np.array([1, 1, 0, 1], dtype=bool))
    found = leads({0: ours}, {"short": way_of({0: runs})})
    assert found.images is not None
    # half-way between the first two of three in a row: (y0 + y1) / 2 + (2 y1 - y0 - y2) / 8, weights 3/8, 3/4, -1/8
    assert found.images[0] == pytest.approx([0.0, 0.375, 0.125, 1.0])
    assert found.images.mean() == pytest.approx(found.differences[0])
    unknown = [run._replace(correct=None) for run in runs]
    assert leads({0: ours}, {"short": way_of({0: unknown})}).images is None
    assert leads({0: ours._replace(correct=np.ones(3, dtype=bool))}, {"short": way_of({0: runs})}).images is None


def test_a_group_is_the_mean_over_its_comparisons_of_the_seeds_that_have_them_all() -> None:
    ones = Leads((0, 1, 2), np.array([0.1, 0.2, 0.3]), np.full((3, 4), 0.2), None, 0.5, 2.0, "", "short")
    twos = Leads((1, 2, 3), np.array([0.0, 0.1, 9.0]), np.full((3, 4), 0.4), None, 0.4, 1.5, "why", "short-early")
    both = pooled([ones, twos])
    assert (both.seeds, both.differences.tolist()) == ((1, 2), pytest.approx([0.1, 0.2]))
    assert both.images is not None
    assert both.images.shape == (2, 4)
    assert both.images.mean() == pytest.approx(0.3)
    assert (both.lowest, both.highest, both.reason, both.control) == (0.5, 1.5, "why", "short; short-early")
    apart = pooled([ones, Leads(twos.seeds, twos.differences, np.full((3, 12), 0.4), None, 0.4, 1.5)])
    assert apart.images is not None
    assert apart.images.shape == (2, 16)  # other images: side by side, each comparison with the same weight
    assert apart.images.mean() == pytest.approx(0.3)
    assert pooled([ones, Leads((7,), np.array([0.0]))]).reason == "no seed in common"


def test_leaving_a_budget_out_shows_what_straight_runs_do_not_need_and_bent_ones_do() -> None:
    straight = {
        seed: [Run(b, 0.9 + 0.02 * math.log2(b), None, b) for b in (0.125, 0.25, 0.5, FULL)] for seed in range(3)
    }
    found = frontier_check(straight)
    assert list(found) == [0.25, 0.5]
    assert [estimate.mean for estimate in found.values()] == pytest.approx([0.0, 0.0], abs=1e-12)
    # by hand: 0, 4, 6 at 0, 1, 2 doublings; without the middle a straight line gives 3
    bent = {0: [Run(1.0, 0.0, None, 0.25), Run(2.0, 4.0, None, 0.5), Run(4.0, 6.0, None, FULL)]}
    assert frontier_check(bent)[0.5].mean == pytest.approx(1.0)


def test_slope_is_points_per_doubling() -> None:
    frontier = {seed: {b: 0.9 + 0.02 * math.log2(b) + 0.01 * seed for b in (0.25, 0.5, 1.0)} for seed in range(3)}
    slope = frontier_slope(frontier)
    assert (slope.mean, slope.n, slope.sign) == pytest.approx((0.02, 3, 1))


def test_a_flat_noisy_frontier_has_a_slope_that_holds_zero() -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, (6, 3))
    frontier = {seed: dict(zip((0.25, 0.5, 1.0), 0.99 + noise[seed], strict=True)) for seed in range(6)}
    assert frontier_slope(frontier).sign == 0
    assert frontier_slope({0: {1.0: 0.9}}).n == 0


def test_lucky_seeds_do_not_make_a_two_way_interval_of_no_width() -> None:
    method, control = np.zeros((2, 50), dtype=bool), np.zeros((2, 50), dtype=bool)
    method[0, 3] = method[1, 17] = True  # one image more is right for each seed: no spread over seeds at all
    runs = [{s: Run(1.0, float(bits.mean()), bits) for s, bits in enumerate(rows)} for rows in (method, control)]
    assert t_interval([0.02, 0.02]).sign == 1
    assert two_way_difference(runs[0], runs[1]).sign == 0


def test_two_way_needs_the_same_images() -> None:
    long, short = Run(1, 0.5, np.ones(8, dtype=bool)), Run(1, 0.5, np.ones(4, dtype=bool))
    assert two_way_difference({0: long}, {1: long}).n == 0
    assert two_way_difference({0: long}, {0: short}).n == 0


# --- equal accuracy --------------------------------------------------------------------------------------------------


def found_at(runs: dict[int, Run], **shifts: float) -> SpeedUp:
    ways = {"short": way_of({seed: controls(shift=shifts.get(f"seed{seed}", 0.0)) for seed in runs})}
    return speed_up(leads(runs, ways, ratios=True))


def test_by_hand_the_control_pays_half_a_doubling_more() -> None:
    # 0.1 per doubling: a lead of 0.05 is half a doubling
    found = found_at({0: Run(0.5, 0.65), 1: Run(0.5, 0.65)})
    assert found.ratio == pytest.approx(math.sqrt(2), rel=1e-3)
    assert (found.low, found.high) == pytest.approx((math.sqrt(2), math.sqrt(2)), rel=1e-3)
    assert (found.n, found.bound, found.lowest, found.highest) == (2, "", pytest.approx(0.5), pytest.approx(2.0))


def test_by_hand_its_interval_is_the_tests_on_the_log_scale() -> None:
    # leads 0.03, 0.05, 0.07: mean 0.05, t interval 0.05 +- 4.3027 x 0.02 / sqrt(3); 0.1 per doubling all along
    found = found_at({seed: Run(0.5, 0.6 + lead) for seed, lead in enumerate((0.03, 0.05, 0.07))})
    half = 4.30265 * 0.02 / math.sqrt(3) / 0.1
    assert found.ratio == pytest.approx(2**0.5, rel=1e-3)
    assert found.low == pytest.approx(2 ** (0.5 - half), rel=2e-3)
    assert found.high == pytest.approx(2 ** (0.5 + half), rel=2e-3)


def test_it_lies_above_one_just_where_the_lead_at_equal_cost_is_sure() -> None:
    random = np.random.default_rng(2)
    both = 0
    for _ in range(60):
        runs = {seed: Run(0.5, 0.6 + random.normal(0.02, 0.02)) for seed in range(4)}
        shifts = {f"seed{seed}": random.normal(0, 0.01) for seed in range(4)}
        ways = {"short": way_of({seed: controls(shift=shifts[f"seed{seed}"]) for seed in range(4)})}
        some = leads(runs, ways, ratios=True)
        sure = some.pair()[0].low > 0
        assert (speed_up(some).low > 1) == sure
        both += sure
    assert 5 < both < 55


def test_what_the_control_never_reaches_is_a_bound() -> None:
    above = found_at({0: Run(0.5, 0.75), 1: Run(0.5, 0.75)})  # full training has 0.7
    assert (above.bound, above.ratio, above.high) == ("at least", pytest.approx(2.0), math.inf)
    assert above.low == pytest.approx(2.0)  # surely so much, and nothing is known beyond
    below = found_at({0: Run(0.5, 0.4), 1: Run(0.5, 0.4)})  # the cheapest budget has 0.5
    assert (below.bound, below.ratio, below.low) == ("at most", pytest.approx(0.5), 0.0)
    assert below.high == pytest.approx(0.5)
    unsure = found_at({0: Run(0.5, 0.64), 1: Run(0.5, 0.68)})
    assert unsure.bound == ""
    assert (unsure.low, unsure.high) == (0.0, math.inf)


def test_one_seed_has_no_interval_and_no_frontier_no_figure() -> None:
    one = found_at({0: Run(0.5, 0.65)})
    assert one.ratio == pytest.approx(math.sqrt(2), rel=1e-3)
    assert math.isnan(one.low)
    assert one.reason == "one seed: no interval"
    assert speed_up(leads({0: Run(0.1, 0.6)}, {"short": way_of({0: controls()})}, ratios=True)).reason.startswith(
        "costs"
    )
    assert math.isnan(speed_up(Leads(reason="why")).ratio)


def test_lines_whose_costs_overlap_nowhere_are_not_pooled_into_a_number() -> None:
    ways = {"short": way_of({s: controls() for s in range(2)})}
    cheap, dear = (leads({s: Run(cost, 0.6) for s in range(2)}, ways, ratios=True) for cost in (0.25, 0.9))
    meet = speed_up(pooled([cheap, dear]))
    assert (meet.lowest, meet.highest) == pytest.approx((1.0, 1 / 0.9))
    far = Leads(dear.seeds, dear.differences, None, dear.over_ratios, 5.0, 6.0)
    assert "no range of costs" in speed_up(pooled([cheap, far])).reason


def test_a_prior_widens_what_happens_to_scatter_little() -> None:
    some = leads(
        {s: Run(0.5, 0.65 + 0.001 * s) for s in range(3)},
        {"short": way_of({s: controls() for s in range(3)})},
        ratios=True,
    )
    alone, steadied = speed_up(some), speed_up(some, Prior(0.03**2, math.inf, 12.0))
    assert steadied.ratio == alone.ratio
    assert steadied.low < alone.low < alone.high < steadied.high


def test_the_best_way_is_chosen_anew_at_every_cost() -> None:
    # evenly is better up to half the cost, early beyond: against either alone the speed-up would be larger
    early = {s: [Run(0.25, 0.3, None, 0.25), Run(0.5, 0.6, None, 0.5), Run(1.0, 0.8, None, FULL)] for s in range(2)}
    runs = {s: Run(0.5, 0.64) for s in range(2)}
    ways = {"short": way_of({s: controls() for s in range(2)}), "short-early": way_of(early)}
    found = speed_up(leads(runs, ways, ratios=True)).ratio
    alone = [speed_up(leads(runs, {name: way}, ratios=True)).ratio for name, way in ways.items()]
    assert found == pytest.approx(min(alone), rel=1e-3)
