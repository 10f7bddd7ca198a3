"""A meter on an energy counter, against devices whose true energy is known."""

from __future__ import annotations

import time

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_nvml import LOAD, ONE, TWO, Clock, FakeNvml, Gpu, QuickNvml, RealTimeNvml
from support.metering import (
    Watcher,
    calibrated_counter,
    counter_meter,
    lags,
    one_window,
    pieces,
    real_time_meter,
    seeds,
    stepping_gpu,
)

from ldbench.meters.counter import CounterMeter
from ldbench.meters.edges import Calibration
from ldbench.meters.nvml import NvmlCounter, NvmlDevice

windows = st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 10.0)), min_size=60, max_size=60)
ticks = st.floats(0.01, 0.15)
averages = st.just(0.0) | st.floats(0.05, 1.0)
delays = st.sampled_from([0.0, 0.0, 0.05, 0.3, None])


def misses(
    gpu: Gpu, calibration: Calibration, spans: list[tuple[float, float]], delay: float | None
) -> tuple[int, int]:
    """How many windows there were, (seconds before, seconds), and in how many the true energy lies outside the bound.

    A bound is held not to be wider than what is used in the lag and two ticks at both edges, and late readings add.
    """
    clock, counter, windows, outside = gpu.clock, NvmlCounter(NvmlDevice(gpu.uuid, QuickNvml(gpu))), 0, 0
    for gap, length in spans:
        watcher = Watcher(clock, delay)
        meter = CounterMeter([counter], calibration, minimum_seconds=0.0, clock=clock, sleep=clock.sleep, spawn=watcher)
        clock.sleep(gap)
        meter.start()
        clock.sleep(length)
        meter.stop()
        energy = meter.total()
        if "counter_stalled" in energy.flags:  # no power for a second: no figure rather than a wrong one
            assert energy.joules is None
            continue
        start, stop = watcher.edges
        assert energy.joules is not None
        assert energy.bound_joules is not None
        assert energy.seconds == stop - start
        windows += 1
        outside += abs(energy.joules - (gpu.energy(stop) - gpu.energy(start))) > energy.bound_joules
        if delay is not None:
            poll = min(max(gpu.longest / 10, 0.0005), 0.01)
            width = calibration.lag_seconds + 2 * gpu.longest + delay + 2 * (poll + gpu.latency) + 0.001
            assert energy.bound_joules <= 1000.0 * width + 0.01
    return windows, outside


def test_the_true_energy_is_always_within_the_bound_of_a_counter() -> None:
    """However late and averaged, by as much as the calibration says."""
    measured = [0]

    @settings(max_examples=100)
    @given(pieces, windows, ticks, st.floats(0.0, 0.9), seeds, st.floats(0.0, 0.01), delays, lags, averages)
    def check(power, spans, tick, jitter, seed, latency, delay, lag, average) -> None:  # type: ignore[no-untyped-def]
        closing = 4 * tick + 2 * (delay or 0) + 0.3 + 2 * (lag + average)
        kind = {"tick": tick, "jitter": jitter, "latency": latency, "lag": lag, "average": average}
        kind |= {"horizon": sum(gap + length for gap, length in spans) + 60 * closing}
        power = [*power, (0.5, 10.0, 10.0)]  # a device never draws nothing for ever
        gpu = Gpu(Clock(), seed=seed, power=power, **kind)
        found, outside = misses(gpu, Calibration(gpu.longest, 0.0, lag_seconds=lag + average), spans, delay)
        assert outside == 0
        measured[0] += found

    check()
    assert measured[0] >= 5000


def test_the_true_energy_is_always_within_the_bound_when_the_lag_was_measured() -> None:
    measured = [0]

    @settings(max_examples=45)
    @given(pieces, windows, ticks, st.floats(0.0, 0.5), seeds, st.floats(0.0, 0.001), delays, lags, averages)
    def check(power, spans, tick, jitter, seed, latency, delay, lag, average) -> None:  # type: ignore[no-untyped-def]
        kind = {"tick": tick, "jitter": jitter, "latency": latency, "lag": lag, "average": average}
        kind |= {"horizon": 20 + sum(gap + length for gap, length in spans) + 60 * (4 * tick + 2 * (delay or 0) + 3.5)}
        gpu, load = stepping_gpu(seed, then=[*power, (0.5, 10.0, 10.0)] * 40, **kind)
        calibration = calibrated_counter(gpu, load)
        assert not calibration.lag_assumed
        assert calibration.lag_seconds >= lag + average
        found, outside = misses(gpu, calibration, spans, delay)
        assert outside == 0
        measured[0] += found

    check()
    assert measured[0] >= 2000


def test_a_lag_that_is_not_known_of_is_what_the_bound_does_not_cover() -> None:
    """So the tests of lagging counters can fail."""
    for lag, average in ((0.05, 0.0), (0.2, 0.0), (0.0, 1.0)):
        power = [(0.37, 100.0, 600.0), (1.21, 90.0, 90.0), (0.83, 700.0, 200.0)]
        gpu = Gpu(Clock(), power=power, tick=0.05, jitter=0.3, horizon=700, lag=lag, average=average)
        found, outside = misses(gpu, Calibration(gpu.longest, 0.0), [(0.21, 5.0)] * 100, 0.0)
        assert outside > 0.1 * found


def test_the_sum_of_many_windows_is_within_the_sum_of_their_bounds() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(0.37, 300.0, 600.0), (0.21, 90.0, 90.0)], jitter=0.3, horizon=400)
    meter, watcher = counter_meter(gpu, clock, least=5.0)
    for length in (6.0, 2.0, 8.0, 5.0):
        meter.start()
        clock.sleep(length)
        meter.stop()
        clock.sleep(1.5)
    energy = meter.total()
    edges = watcher.edges
    true = sum(gpu.energy(b) - gpu.energy(a) for a, b in zip(edges[::2], edges[1::2], strict=True))
    assert energy.joules is not None
    assert energy.bound_joules is not None
    assert abs(energy.joules - true) <= energy.bound_joules < 0.1 * true
    assert energy.windows == 4
    assert energy.flags == ("summed_windows",)
    assert energy.net_joules == pytest.approx(energy.joules - 50 * energy.seconds)


def test_a_short_window_has_no_figure_but_its_length() -> None:
    clock = Clock()
    meter, _ = counter_meter(Gpu(clock, power=LOAD), clock, least=5.0)
    energy = one_window(meter, clock, 1.0)
    assert energy.joules is None
    assert "too_short" in energy.flags
    assert "shorter than the 5 s" in (energy.unavailable_reason or "")
    assert energy.seconds == pytest.approx(1.0, abs=0.2)


def test_a_counter_that_runs_backwards_spoils_the_window() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    meter, _ = counter_meter(gpu, clock)
    meter.start()
    clock.sleep(8.0)
    gpu.offset = -gpu.millijoules[-1]
    meter.stop()
    energy = meter.total()
    assert energy.joules is None
    assert "counter_reset" in energy.flags
    assert "backwards" in (energy.unavailable_reason or "")


def test_a_counter_that_stands_still_gives_no_figure() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(1e9, 0.0, 0.0)])
    meter, _ = counter_meter(gpu, clock)
    energy = one_window(meter, clock)
    assert energy.joules is None
    assert "counter_stalled" in energy.flags


def test_a_reading_that_fails_in_a_run_does_not_stop_the_run() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    nvml = FakeNvml(gpu)
    meter, _ = counter_meter(gpu, clock, nvml=nvml)
    meter.start()
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = pynvml.NVML_ERROR_GPU_IS_LOST
    meter.stop()
    assert meter.total().unavailable_reason == "the GPU has fallen off the bus"


def test_two_gpus_in_one_window_add_up_and_each_edge_waits_for_both() -> None:
    clock = Clock()
    first = Gpu(clock, ONE, power=[(0.3, 100.0, 500.0)], tick=0.02, jitter=0.2, seed=1)
    second = Gpu(clock, TWO, power=[(0.7, 200.0, 300.0)], tick=0.1, jitter=0.2, seed=2)
    nvml, watcher = FakeNvml(first, second), Watcher(clock)
    counters = [NvmlCounter(NvmlDevice(uuid, nvml)) for uuid in (TWO, ONE)]
    meter = CounterMeter(counters, Calibration(0.12, 100.0), clock=clock, sleep=clock.sleep, spawn=watcher)
    energy = one_window(meter, clock)
    start, stop = watcher.edges
    true = sum(gpu.energy(stop) - gpu.energy(start) for gpu in (first, second))
    assert energy.joules is not None
    assert energy.bound_joules is not None
    assert abs(energy.joules - true) <= energy.bound_joules < 0.03 * true
    assert [c["start"]["gpu"] for c in energy.conditions] == [TWO, ONE]


def test_threads_read_the_edges_while_the_work_goes_on() -> None:
    nvml = RealTimeNvml()
    meter = real_time_meter(nvml, 0.2)
    for _ in range(2):
        meter.start()
        time.sleep(0.3)
        meter.stop()
    energy = meter.total()
    assert energy.joules is not None
    assert energy.bound_joules is not None
    assert energy.net_joules is not None
    assert abs(energy.joules - 400 * energy.seconds) <= energy.bound_joules
    assert energy.net_bound_joules is not None
    assert abs(energy.net_joules) <= energy.net_bound_joules  # working and idling draw the same
    assert energy.method == "nvml counter"
    assert energy.tick_seconds is not None
    assert energy.tick_seconds >= 0.015


def test_metering_costs_less_than_half_a_per_cent_of_the_shortest_window() -> None:
    """Processor time of this process for one window, the threads' included; NVML's own calls are not in it."""
    nvml = RealTimeNvml()
    meter = real_time_meter(nvml, 0.0)
    before, calls = time.process_time(), nvml.calls
    for _ in range(5):
        meter.start()
        time.sleep(0.05)
        meter.stop()
        time.sleep(0.05)
    seconds, calls = (time.process_time() - before) / 5, (nvml.calls - calls) / 5
    assert calls <= 50
    assert seconds <= 0.005 * 5.0  # of a window of 5 s; seen: about 0.005 s
