"""Energy from samples of power that are late and averaged."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_nvml import Clock, Gpu
from support.metering import seeds

from ldbench.meters import Unavailable
from ldbench.meters.integrals import enclose, integrate

lengths = st.lists(st.floats(0.1, 2.0), min_size=24, max_size=24)


@settings(max_examples=20)
@given(lengths, st.floats(0.1, 0.6), st.sampled_from([0.0, 0.1, 0.6]), seeds)
def test_a_late_sensor_is_followed_where_power_comes_and_goes_with_the_window(lengths, lag, average, seed) -> None:
    """All or nothing at the edges, and a tick small beside the lag: either limit is put to the test by itself."""
    power = [(length, level, level) for length, level in zip(lengths, itertools.cycle((1000.0, 0.0)), strict=False)]
    late = {"mean_power": True, "lag": lag, "average": average}
    gpu = Gpu(Clock(), seed=seed, power=power, tick=0.01, horizon=sum(lengths) + 3, **late)
    samples = list(zip(gpu.ticks, gpu.published, strict=True))
    knots = [t for t in gpu.knots if gpu.ticks[0] < t < gpu.ticks[-1] - lag - average - 0.1]
    tightest = 2000.0
    for start, stop in (*itertools.pairwise(knots), *zip(knots, knots[4:], strict=False)):
        low, _, high = enclose(samples, start, stop, gpu.longest, lag + average)
        true = gpu.energy(stop) - gpu.energy(start)
        assert low - 0.01 <= true <= high + 0.01
        tightest = min(tightest, true - low, high - true)
    assert tightest < 100.0  # two edges' ticks of 10 ms and the samples around, of a kilowatt


def test_samples_that_do_not_reach_over_the_window_give_no_figure() -> None:
    samples = [(0.0, 100.0), (1.0, 100.0), (2.0, 100.0)]
    assert integrate(samples, 0.5, 1.5, 0.1)[1] == pytest.approx(100.0)
    for window in ((-0.5, 1.0), (0.5, 1.95)):
        with pytest.raises(Unavailable, match="do not reach"):
            integrate(samples, *window, 0.1)
