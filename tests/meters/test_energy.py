"""The energy meter against devices whose true energy is known."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_nvml import Clock, FakeNvml, Gpu

import ldbench
from ldbench.meters import Energy, NullEnergyMeter, TrainClock, Unavailable, add_devices, energy_meter, load, select
from ldbench.meters.counter import CounterMeter
from ldbench.meters.edges import Calibration, calibrate
from ldbench.meters.energy import Window, add_sessions, add_windows, energy_from
from ldbench.meters.gpu_uuid import device_uuid, visible_uuids
from ldbench.meters.integrals import enclose, integrate
from ldbench.meters.lag import with_counter_lag, with_power_lag
from ldbench.meters.nvml import BufferedPower, NvmlCounter, NvmlDevice, PolledPower
from ldbench.meters.powercap import PowercapCounter, package_counters
from ldbench.meters.sampled import SampledMeter, sample_tick
from ldbench.meters.select import gpu_meter

NO_IDLE = Calibration(0.1, 0.0)
LOAD = [(1.0, 400.0, 400.0)]


class Watcher:
    """Takes the readings after an edge at once, or late as a starved thread would; notes when the edges were.

    Without a delay they are left to the end of the window.
    """

    def __init__(self, clock: Clock, delay: float | None = 0.0) -> None:
        self.clock, self.delay, self.edges = clock, delay, list[float]()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.edges.append(self.clock.now)
        if self.delay is None:
            return work
        self.clock.sleep(self.delay)
        work()
        return lambda: None


def counter_meter(gpu: Gpu, clock: Clock, *, nvml: FakeNvml | None = None, least: float = 0.0, delay: float = 0.0):
    counter = NvmlCounter(NvmlDevice(gpu.uuid, nvml or FakeNvml(gpu)))
    watcher = Watcher(clock, delay)
    calibration = Calibration(gpu.longest, 50.0, lag_seconds=gpu.lag + gpu.average)
    meter = CounterMeter([counter], calibration, minimum_seconds=least, clock=clock, sleep=clock.sleep, spawn=watcher)
    return meter, watcher


# ---- the bound ---------------------------------------------------------------------------------------------------

pieces = st.lists(
    st.tuples(st.floats(0.005, 3.0), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0)), min_size=1, max_size=8
)
# A burst within a tick is what a sensor that publishes means leaves in the dark.
bursts = st.lists(
    st.sampled_from([(0.01, 1000.0, 1000.0), (0.03, 0.0, 0.0), (0.11, 0.0, 0.0), (0.02, 500.0, 1000.0)]),
    min_size=2,
    max_size=8,
)
windows = st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 10.0)), min_size=60, max_size=60)


lags = st.just(0.0) | st.floats(0.0, 0.3)
averages = st.just(0.0) | st.floats(0.05, 1.0)
delays = st.sampled_from([0.0, 0.0, 0.05, 0.3, None])


def misses(
    gpu: Gpu, calibration: Calibration, spans: list[tuple[float, float]], delay: float | None
) -> tuple[int, int]:
    """How many windows there were, (seconds before, seconds), and in how many the true energy lies outside the bound.

    A bound is held not to be wider than what is used in the lag and two ticks at both edges, and late readings add.
    """
    clock, counter, windows, outside = gpu.clock, NvmlCounter(NvmlDevice(gpu.uuid, SimpleFake(gpu))), 0, 0
    for gap, length in spans:
        watcher = Watcher(clock, delay)
        meter = CounterMeter(
            [counter], calibration, minimum_seconds=0.0, clock=clock, sleep=clock.sleep, spawn=watcher
        )  # fmt: skip
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
    @given(
        pieces, windows, st.floats(0.01, 0.15), st.floats(0.0, 0.9), st.integers(0, 10**6), st.floats(0.0, 0.01), delays,
        lags, averages,
    )  # fmt: skip
    def check(power, spans, tick, jitter, seed, latency, delay, lag, average) -> None:  # type: ignore[no-untyped-def]
        horizon = sum(gap + length for gap, length in spans) + 60 * (
            4 * tick + 2 * (delay or 0) + 0.3 + 2 * (lag + average)
        )
        power = [*power, (0.5, 10.0, 10.0)]  # a device never draws nothing for ever
        gpu = Gpu(
            Clock(), seed=seed, power=power, tick=tick, jitter=jitter, horizon=horizon, latency=latency, lag=lag,
            average=average,
        )  # fmt: skip
        found, outside = misses(gpu, Calibration(gpu.longest, 0.0, lag_seconds=lag + average), spans, delay)
        assert outside == 0
        measured[0] += found

    check()
    assert measured[0] >= 5000


def test_the_true_energy_is_always_within_the_bound_when_the_lag_was_measured() -> None:
    measured = [0]

    @settings(max_examples=45)
    @given(
        pieces, windows, st.floats(0.01, 0.15), st.floats(0.0, 0.5), st.integers(0, 10**6), st.floats(0.0, 0.001),
        delays, lags, averages,
    )  # fmt: skip
    def check(power, spans, tick, jitter, seed, latency, delay, lag, average) -> None:  # type: ignore[no-untyped-def]
        horizon = 20 + sum(gap + length for gap, length in spans) + 60 * (4 * tick + 2 * (delay or 0) + 3.5)
        gpu, load = stepping_gpu(
            seed, lag=lag, average=average, tick=tick, jitter=jitter, latency=latency, horizon=horizon,
            then=[*power, (0.5, 10.0, 10.0)] * 40,
        )  # fmt: skip
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


def noisy(watts: float, seconds: float, share: float, rng: random.Random) -> list[tuple[float, float, float]]:
    """About ``watts``, each 5 to 50 ms something else."""
    lengths = [rng.uniform(0.005, 0.05) for _ in range(round(seconds / 0.0275))]
    return [(length, level, level) for length in lengths for level in [watts * max(0.0, rng.gauss(1.0, share))]]


class Step:
    """A load that begins where the power of a GPU steps up."""

    def __init__(self, clock: Clock, begins: float, error: Exception | None = None) -> None:
        self.clock, self.begins, self.error, self.finished = clock, begins, error, False
        self.warm_seconds = 0.0

    def prepare(self) -> float:
        self.clock.now = self.begins
        return self.warm_seconds

    def feed(self) -> None:
        if self.error is not None and self.clock.now > self.begins + 1:
            raise self.error

    def finish(self) -> None:
        self.finished = True


def stepping_gpu(
    seed: int, *, watts: float = 600.0, noise: float = 0.03, ramp: float = 0.03, horizon: float = 16.0,
    then: list[tuple[float, float, float]] | None = None, error: Exception | None = None, **kind: float,
) -> tuple[Gpu, Step]:  # fmt: skip
    """A GPU that idles at 70 W, is at work for about 2.7 s at ``watts`` and then does ``then``; and the work."""
    rng, clock = random.Random(seed), Clock()
    idle, busy = noisy(70.0, 10.0, noise, rng), noisy(watts, 2.7, noise, rng)
    after = noisy(70.0, 10.0, noise, rng) if then is None else then
    clock.now = 100.0
    gpu = Gpu(clock, seed=seed, power=[*idle, (ramp, 70.0, watts), *busy, *after], horizon=horizon, **kind)  # type: ignore[arg-type]
    begins = gpu.knots[len(idle)]
    clock.now = begins - 2.5
    return gpu, Step(clock, begins, error)


def calibrated_counter(gpu: Gpu, load: Step | None) -> Calibration:
    clock, counter = gpu.clock, NvmlCounter(NvmlDevice(gpu.uuid, SimpleFake(gpu)))
    known = calibrate([counter], clock=clock, sleep=clock.sleep)
    return with_counter_lag(known, counter, load, clock=clock, sleep=clock.sleep)


def calibrated_power(gpu: Gpu, load: Step | None, *, stamped: bool = False) -> Calibration:
    clock, device = gpu.clock, NvmlDevice(gpu.uuid, SimpleFake(gpu))
    source = BufferedPower(device, clock, clock) if stamped else PolledPower(device, clock)
    known = sample_tick(source, clock=clock, sleep=clock.sleep)
    return with_power_lag(known, source, load, clock=clock, sleep=clock.sleep)


class SimpleFake(FakeNvml):
    """The same without the cost of a mock a call, for thousands of windows."""

    def __init__(self, *gpus: Gpu) -> None:
        super().__init__(*gpus)
        self.nvmlDeviceGetTotalEnergyConsumption = lambda handle: handle.counter()
        self.nvmlDeviceGetFieldValues = self._fields


def test_the_true_energy_is_always_within_the_bound_of_power_samples() -> None:
    """Late ones too, and means over several ticks of one length."""
    measured = [0]

    @settings(max_examples=80)
    @given(
        st.booleans(), st.booleans(), pieces | bursts,
        st.lists(st.floats(0.0, 4.0) | st.floats(0.0, 0.2), min_size=12, max_size=12),
        st.floats(0.02, 0.15), st.floats(0.0, 0.4), st.integers(0, 10**6), lags, st.just(0.0) | st.floats(0.05, 1.0),
    )  # fmt: skip
    def check(stamped, mean_power, power, lengths, tick, jitter, seed, lag, average) -> None:  # type: ignore[no-untyped-def]
        clock = Clock()
        average = round(average / tick) * tick if mean_power else 0.0
        jitter = 0.0 if average else jitter
        known = lag + average
        horizon = sum(lengths) + 12 * (8 * tick + known) + 5
        gpu = Gpu(
            clock, seed=seed, power=power if mean_power else None, tick=tick, jitter=jitter, horizon=horizon,
            mean_power=mean_power, lag=lag, average=average,
        )  # fmt: skip
        device = NvmlDevice(gpu.uuid, SimpleFake(gpu))
        source = BufferedPower(device, clock, clock) if stamped else PolledPower(device, clock)
        period = tick * (1 - jitter) * 0.5
        clock.sleep(2 * gpu.longest)
        calibration = Calibration(gpu.longest, 0.0, lag_seconds=known)
        for length in lengths:
            meter = SampledMeter(source, device, calibration, minimum_seconds=0.0, clock=clock, spawn=None)
            meter.poll()
            clock.sleep(2 * gpu.longest)
            meter.start()
            start, end = clock.now, clock.now + length
            while clock.now < end:
                clock.sleep(min(period, end - clock.now))
                meter.poll()
            meter.stop()
            stop = clock.now
            while clock.now < stop + known + 3 * gpu.longest:
                clock.sleep(period)
                meter.poll()
            energy = meter.total()
            assert energy.joules is not None, energy
            assert energy.bound_joules is not None
            true = gpu.energy(stop) - gpu.energy(start)
            # Samples are published in whole milliwatts, and stamped in whole microseconds.
            rounding = 0.001 * (length + known) + 0.01
            assert abs(energy.joules - true) <= energy.bound_joules + rounding
            (window,) = meter._windows  # the bound is the larger distance: each limit by itself says more
            assert window.low_joules - rounding <= true <= window.high_joules + rounding
            assert energy.method == ("nvml power samples" if stamped else "nvml power polled")
            assert energy.lag_seconds == known
            measured[0] += 1

    check()
    assert measured[0] >= 700


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.1, 2.0), min_size=24, max_size=24), st.floats(0.1, 0.6), st.sampled_from([0.0, 0.1, 0.6]),
    st.integers(0, 10**6),
)  # fmt: skip
def test_a_late_sensor_is_followed_where_power_comes_and_goes_with_the_window(lengths, lag, average, seed) -> None:
    """All or nothing at the edges, and a tick that is small beside the lag: either limit by itself is put to the test."""
    power = [(length, level, level) for length, level in zip(lengths, itertools.cycle((1000.0, 0.0)), strict=False)]
    gpu = Gpu(
        Clock(), seed=seed, power=power, tick=0.01, horizon=sum(lengths) + 3, mean_power=True, lag=lag, average=average
    )  # fmt: skip
    samples = list(zip(gpu.ticks, gpu.published, strict=True))
    knots = [t for t in gpu.knots if gpu.ticks[0] < t < gpu.ticks[-1] - lag - average - 0.1]
    tightest = 2000.0
    for start, stop in (*itertools.pairwise(knots), *zip(knots, knots[4:], strict=False)):
        low, _, high = enclose(samples, start, stop, gpu.longest, lag + average)
        true = gpu.energy(stop) - gpu.energy(start)
        assert low - 0.01 <= true <= high + 0.01
        tightest = min(tightest, true - low, high - true)
    assert tightest < 100.0  # two edges' ticks of 10 ms and the samples around, of a kilowatt


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


# ---- no figure, and why ------------------------------------------------------------------------------------------


def run(meter, clock: Clock, seconds: float = 10.0) -> Energy:
    meter.start()
    clock.sleep(seconds)
    meter.stop()
    return meter.total()


def test_a_short_window_has_no_figure_but_its_length() -> None:
    clock = Clock()
    meter, _ = counter_meter(Gpu(clock, power=LOAD), clock, least=5.0)
    energy = run(meter, clock, 1.0)
    assert energy.joules is None
    assert "too_short" in energy.flags
    assert "shorter than the 5 s" in (energy.unavailable_reason or "")
    assert energy.seconds == pytest.approx(1.0, abs=0.2)


def test_many_short_windows_do_not_make_a_long_one() -> None:
    short = [Window(1.0, 99.0, 101.0, 100.0)] * 60
    energy = add_windows(short, method="x", tick_seconds=0.1)
    assert energy.joules is None
    assert "too_short" in energy.flags
    assert energy.seconds == 60.0
    assert add_windows([], method="x", tick_seconds=0.1).unavailable_reason == "nothing was measured"


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
    energy = run(meter, clock)
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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"), (pynvml.NVML_ERROR_NOT_SUPPORTED, "does not support"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "driver is too old"), (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML: "),
    ],
)  # fmt: skip
def test_without_counter_and_power_the_reason_is_given(error: int, words: str) -> None:
    names = ("TotalEnergyConsumption", "PowerUsage", "FieldValues", "Samples")
    gpu = Gpu(Clock())
    nvml = FakeNvml(gpu, errors={f"nvmlDeviceGet{name}": error for name in names})
    with pytest.raises(Unavailable, match=words):
        gpu_meter(gpu.uuid, nvml=nvml)


def test_functions_missing_from_old_bindings_are_a_reason_and_no_crash() -> None:
    gpu = Gpu(Clock())
    missing = ("TotalEnergyConsumption", "PowerUsage", "FieldValues", "Samples", "MigMode", "VirtualizationMode")
    with pytest.raises(Unavailable, match="too old"):
        gpu_meter(gpu.uuid, nvml=FakeNvml(gpu, missing=tuple(f"nvmlDeviceGet{name}" for name in missing)))


def test_a_mig_slice_and_a_vgpu_have_no_figure() -> None:
    gpu = Gpu(Clock())
    with pytest.raises(Unavailable, match="MIG slice"):
        gpu_meter("MIG-1", nvml=FakeNvml(gpu))
    gpu.mig = 1
    with pytest.raises(Unavailable, match="split by MIG"):
        gpu_meter(gpu.uuid, nvml=FakeNvml(gpu))
    gpu.mig, gpu.virtual = 0, pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
    with pytest.raises(Unavailable, match="vGPU"):
        gpu_meter(gpu.uuid, nvml=FakeNvml(gpu))


def test_a_counter_that_is_there_and_dead_gives_way_to_power_samples() -> None:
    nvml = RealTimeNvml()
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 0
    nvml.errors["nvmlDeviceGetSamples"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    meter = gpu_meter(nvml.gpus[0].uuid, 0.2, nvml=nvml)
    meter.start()
    time.sleep(0.3)
    meter.stop()
    energy = meter.total()
    assert energy.method == "nvml power polled"
    assert energy.joules == pytest.approx(400 * energy.seconds, rel=0.01)
    assert energy.bound_joules is not None
    assert energy.flags == ("lag_assumed",)  # nobody's bindings but the driver's are told to work


def test_an_energy_has_a_figure_or_a_reason_and_never_both_or_neither() -> None:
    for arguments in ((None, None, None), (1.0, 1.0, "why"), (1.0, None, None)):
        with pytest.raises(ValueError):
            Energy(*arguments)


def test_without_a_driver_the_cuda_meter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise Unavailable("no NVML library (libnvidia-ml.so.1): there is no NVIDIA driver here")

    monkeypatch.setattr(select.gpu, "load", load)
    meter = energy_meter(torch.device("cuda"))
    assert isinstance(meter, NullEnergyMeter)
    assert "no NVML library" in meter.reason
    assert "not metered" in (energy_meter(torch.device("meta")).total().unavailable_reason or "")


# ---- start-up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tick", [0.02, 0.1, 0.25])
def test_tick_and_idle_power_are_measured_within_a_bounded_wait(tick: float) -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(1.0, 72.0, 72.0)], tick=tick)
    began = clock.now
    found = calibrate([NvmlCounter(NvmlDevice(gpu.uuid, FakeNvml(gpu)))], clock=clock, sleep=clock.sleep)
    assert found.tick_seconds == pytest.approx(tick, abs=0.002)
    assert found.idle_watts == pytest.approx(72.0, rel=0.02)
    assert clock.now - began <= 2.01


def test_a_counter_that_does_not_move_at_start_up_is_no_counter() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(1e9, 0.0, 0.0)])
    with pytest.raises(Unavailable, match="did not move"):
        calibrate([NvmlCounter(NvmlDevice(gpu.uuid, FakeNvml(gpu)))], clock=clock, sleep=clock.sleep)


def test_the_tick_of_an_idle_power_sensor_is_taken_for_slow_not_for_fast() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=[(1e9, 60.0, 60.0)])
    source = PolledPower(NvmlDevice(gpu.uuid, FakeNvml(gpu)), clock)
    found = sample_tick(source, clock=clock, sleep=clock.sleep)
    assert found.tick_seconds == pytest.approx(1.0, abs=0.02)
    assert found.idle_watts == pytest.approx(60.0)


def test_power_averaged_by_the_driver_is_flagged_and_widens_the_bound() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    nvml = FakeNvml(gpu, errors={"nvmlDeviceGetFieldValues": pynvml.NVML_ERROR_NOT_SUPPORTED})
    device = NvmlDevice(gpu.uuid, nvml)
    # An average over a second lags by a second; a lag that is only assumed comes on top of it.
    for lag, assumed, counts in ((0.0, False, 1.0), (1.2, False, 1.2), (1.0, True, 2.0)):
        calibration = Calibration(0.1, 50.0, lag_seconds=lag, lag_assumed=assumed)
        meter = SampledMeter(PolledPower(device, clock), device, calibration, clock=clock, spawn=None)
        meter.start()
        for _ in range(600):
            clock.sleep(0.01)
            meter.poll()
        meter.stop()
        for _ in range(20 + round(100 * counts)):
            clock.sleep(0.01)
            meter.poll()
        energy = meter.total()
        assert "averaged_power" in energy.flags
        assert ("lag_assumed" in energy.flags) == assumed
        assert energy.lag_seconds == counts
        assert energy.bound_joules is not None
        assert energy.joules == pytest.approx(2400, rel=0.01)
        assert 400 * counts < energy.bound_joules < 400 * (counts + 0.3)
        assert energy.net_joules == pytest.approx(2100, rel=0.01)


def test_samples_that_do_not_reach_over_the_window_give_no_figure() -> None:
    samples = [(0.0, 100.0), (1.0, 100.0), (2.0, 100.0)]
    assert integrate(samples, 0.5, 1.5, 0.1)[1] == pytest.approx(100.0)
    for window in ((-0.5, 1.0), (0.5, 1.95)):
        with pytest.raises(Unavailable, match="do not reach"):
            integrate(samples, *window, 0.1)


def test_a_wall_clock_set_during_a_window_spoils_stamped_samples() -> None:
    clock, wall = Clock(), Clock()
    gpu = Gpu(clock, power=LOAD)
    source = BufferedPower(NvmlDevice(gpu.uuid, FakeNvml(gpu)), clock, wall)
    clock.sleep(1.0)
    wall.sleep(3600.0)
    with pytest.raises(Unavailable, match="wall clock"):
        source.poll()


# ---- the lag -----------------------------------------------------------------------------------------------------

KINDS = [(0.0, 0.0), (0.05, 0.0), (0.2, 0.0), (0.0, 1.0), (0.1, 0.3)]


@pytest.mark.parametrize("reading", ["counter", "polled", "stamped"])
@pytest.mark.parametrize(("lag", "average"), KINDS)
def test_the_lag_is_found_and_never_too_short(lag: float, average: float, reading: str) -> None:
    """Under 3 % of noise, with a power that takes 30 ms to rise: those, and a tick and a half, are what it may be longer by.

    Noise makes it longer by a fifth at most; samples of single moments show all of it, so that it is more for them.
    """
    for seed in range(5):
        gpu, load = stepping_gpu(seed, lag=lag, average=average, tick=0.05, jitter=0.3, latency=0.001)
        if reading == "counter":
            found = calibrated_counter(gpu, load)
        else:
            found = calibrated_power(gpu, load, stamped=reading == "stamped")
        noise = 1.35 if reading == "stamped" else 1.2
        assert not found.lag_assumed
        assert lag + average <= found.lag_seconds <= noise * (lag + average + 0.03 + 1.5 * gpu.longest)
        assert found.idle_watts == pytest.approx(70.0, rel=0.05)
        assert load.finished


def test_a_lag_that_cannot_be_made_out_is_assumed_and_flagged() -> None:
    cases: dict[str, dict[str, object]] = {
        "the load draws next to nothing": {"watts": 80.0}, "noise hides the step": {"noise": 0.4, "watts": 140.0},
        "out of memory": {"error": torch.OutOfMemoryError("CUDA out of memory")},
        "the counter fails": {"error": Unavailable("the GPU has fallen off the bus")},
    }  # fmt: skip
    for case, options in cases.items():
        gpu, load = stepping_gpu(1, lag=0.1, tick=0.1, jitter=0.3, **options)  # type: ignore[arg-type]
        for found in (calibrated_counter(gpu, load), calibrated_counter(gpu, None), calibrated_power(gpu, None)):
            assert (found.lag_seconds, found.lag_assumed) == (1.0, True), case
        assert load.finished, case
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    counter = NvmlCounter(NvmlDevice(gpu.uuid, FakeNvml(gpu)))
    energy = run(CounterMeter([counter], found, clock=clock, sleep=clock.sleep, spawn=Watcher(clock)), clock, 6.0)
    assert energy.flags == ("lag_assumed",)
    assert energy.lag_seconds == 1.0


def test_work_done_to_prepare_the_load_does_not_hide_a_lag() -> None:
    """A tenth of a second of it is in an average over a second already when the load begins."""
    gpu, load = stepping_gpu(1, average=1.0, tick=0.02, noise=0.0)
    without = calibrated_counter(gpu, load).lag_seconds
    clock = Clock()
    gpu = Gpu(
        clock, seed=1, power=[(10.0, 70.0, 70.0), (2.9, 600.0, 600.0), (9.0, 70.0, 70.0)], tick=0.02, average=1.0,
        horizon=16,
    )  # fmt: skip
    step = Step(clock, gpu.knots[1] + 0.1)
    step.warm_seconds = 0.1
    clock.now = gpu.knots[1] - 2.4
    assert 1.0 <= calibrated_counter(gpu, step).lag_seconds <= without


def test_a_counter_that_never_settles_or_hardly_ticks_has_no_measured_lag() -> None:
    gpu, load = stepping_gpu(1, average=4.0, tick=0.1)
    assert calibrated_counter(gpu, load).lag_assumed
    gpu, load = stepping_gpu(1, tick=0.5)
    assert calibrated_counter(gpu, load).lag_assumed


def test_a_throttled_device_makes_the_lag_look_longer_not_shorter() -> None:
    load = [(1.2, 600.0, 600.0), (0.2, 600.0, 450.0), (1.5, 450.0, 450.0)]
    rising = [(0.8, 70.0, 600.0), (2.0, 600.0, 600.0)]
    for course in (load, rising):
        gpu = Gpu(Clock(), power=[(10.0, 70.0, 70.0), *course, (10.0, 70.0, 70.0)], horizon=16, tick=0.05, lag=0.2)
        begins = gpu.knots[1]
        gpu.clock.now = begins - 2.5
        found = calibrated_counter(gpu, Step(gpu.clock, begins))
        assert found.lag_assumed or found.lag_seconds >= 0.2


def test_the_load_keeps_two_pieces_queued_and_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: torch's parts for CUDA are played."""
    recorded: list[SimpleNamespace] = []

    def event() -> SimpleNamespace:
        piece = SimpleNamespace(done=False, record=lambda stream: recorded.append(piece), query=lambda: piece.done)
        return piece

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(load, "SIDE", 64)
    before = torch.get_rng_state()
    work = load.MatrixProducts(torch.device("cpu"))
    assert work.prepare() > 0
    for _ in range(5):
        work.feed()
    assert len(recorded) == 2
    recorded[0].done = True
    work.feed()
    assert len(recorded) == 3
    work.finish()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_lag_goes_with_the_figure_and_records_without_one_are_read() -> None:
    a, b = (Energy(1.0, 0.1, None, flags=("x",), lag_seconds=lag) for lag in (0.1, 0.3))
    unknown = Energy(1.0, 0.1, None)
    assert add_devices([a, b, unknown]).lag_seconds == 0.3
    assert add_devices([unknown]).lag_seconds is None
    assert add_sessions(b, a, trained=True).lag_seconds == 0.3
    stored = asdict(a)
    assert energy_from(stored) == a
    del stored["lag_seconds"]
    assert energy_from(stored).lag_seconds is None


# ---- what spoils a figure ----------------------------------------------------------------------------------------


def test_co_tenants_and_throttling_are_flagged() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    assert run(counter_meter(gpu, clock)[0], clock).flags == ()
    gpu.pids = [4_000_000]  # this process, as the host of a container counts it
    assert run(counter_meter(gpu, clock)[0], clock).flags == ()
    gpu.pids = [os.getpid(), 4_000_000]
    assert run(counter_meter(gpu, clock)[0], clock).flags == ("co_tenant",)
    gpu.pids, gpu.throttle = [], pynvml.nvmlClocksEventReasonSwPowerCap
    assert run(counter_meter(gpu, clock)[0], clock).flags == ("throttled",)
    gpu.throttle = pynvml.nvmlClocksEventReasonGpuIdle
    meter, _ = counter_meter(gpu, clock)
    meter.start()
    gpu.violation_ns = 3 * 10**9
    clock.sleep(10)
    meter.stop()
    energy = meter.total()
    assert energy.flags == ("throttled",)
    assert energy.conditions[0]["stop"]["power_violation_seconds"] == 3.0
    assert energy.conditions[0]["start"]["power_limit_watts"] == 700.0


def test_conditions_that_cannot_be_read_are_null_and_harmless() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    names = (
        "MigMode", "VirtualizationMode", "ComputeRunningProcesses", "Temperature", "ClockInfo", "EnforcedPowerLimit",
        "CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "ViolationStatus",
    )  # fmt: skip
    nvml = FakeNvml(gpu, errors={f"nvmlDeviceGet{name}": pynvml.NVML_ERROR_NO_PERMISSION for name in names})
    energy = run(counter_meter(gpu, clock, nvml=nvml)[0], clock)
    assert energy.joules is not None
    assert energy.flags == ()
    assert set(energy.conditions[0]["start"].values()) == {gpu.uuid, None}


# ---- several devices ---------------------------------------------------------------------------------------------

ONE, TWO = "GPU-11111111-aaaa-0000-0000-000000000000", "GPU-22222222-bbbb-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("visible", "order", "expected"),
    [
        (None, "PCI_BUS_ID", [ONE, TWO]), ("1,0", "PCI_BUS_ID", [TWO, ONE]), ("1", "PCI_BUS_ID", [TWO]),
        (f"{TWO},{ONE}", None, [TWO, ONE]), ("GPU-22", None, [TWO]), ("gpu-2,GPU-1", None, [TWO, ONE]),
        ("0,-1,1", "PCI_BUS_ID", [ONE]), ("", "PCI_BUS_ID", []), ("GPU-", None, []), ("0,0", "PCI_BUS_ID", [ONE]),
        ("7", "PCI_BUS_ID", []), ("MIG-5", None, ["MIG-5"]),
    ],
)  # fmt: skip
def test_visible_devices_are_matched_by_uuid(visible: str | None, order: str | None, expected: list[str]) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    assert visible_uuids([ONE, TWO], {k: v for k, v in environ.items() if v is not None}) == expected


def test_numbers_in_cudas_own_order_are_not_guessed_at() -> None:
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "1,0"}):
        with pytest.raises(Unavailable, match="CUDA_DEVICE_ORDER"):
            visible_uuids([ONE, TWO], environ)
        assert visible_uuids([ONE], {}) == [ONE]


def test_the_uuid_that_torch_tells_decides_even_where_cuda_and_pci_order_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    nvml = FakeNvml(Gpu(clock, ONE), Gpu(clock, TWO))
    cuda_order = [TWO, ONE]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=cuda_order[i].removeprefix("GPU-"))
    )
    assert device_uuid(torch.device("cuda:0"), nvml, {}) == TWO
    assert device_uuid(torch.device("cuda:1"), nvml, {}) == ONE
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace())
    assert device_uuid(torch.device("cuda:0"), nvml, {"CUDA_VISIBLE_DEVICES": "GPU-22"}) == TWO
    with pytest.raises(Unavailable, match="not among"):
        device_uuid(torch.device("cuda:1"), nvml, {"CUDA_VISIBLE_DEVICES": "GPU-22"})


def test_two_gpus_in_one_window_add_up_and_each_edge_waits_for_both() -> None:
    clock = Clock()
    first = Gpu(clock, ONE, power=[(0.3, 100.0, 500.0)], tick=0.02, jitter=0.2, seed=1)
    second = Gpu(clock, TWO, power=[(0.7, 200.0, 300.0)], tick=0.1, jitter=0.2, seed=2)
    nvml, watcher = FakeNvml(first, second), Watcher(clock)
    counters = [NvmlCounter(NvmlDevice(uuid, nvml)) for uuid in (TWO, ONE)]
    meter = CounterMeter(counters, Calibration(0.12, 100.0), clock=clock, sleep=clock.sleep, spawn=watcher)
    energy = run(meter, clock)
    start, stop = watcher.edges
    true = sum(gpu.energy(stop) - gpu.energy(start) for gpu in (first, second))
    assert energy.joules is not None
    assert energy.bound_joules is not None
    assert abs(energy.joules - true) <= energy.bound_joules < 0.03 * true
    assert [c["start"]["gpu"] for c in energy.conditions] == [TWO, ONE]


def test_processes_side_by_side_add_energy_and_take_the_longest_time() -> None:
    a = Energy(10.0, 1.0, None, 8.0, 1.5, "nvml counter", 0.1, 7.0, 1, ("throttled",))
    b = Energy(20.0, 2.0, None, 15.0, 2.5, "nvml counter", 0.02, 9.0, 1, ("co_tenant",))
    both = add_devices([a, b])
    assert (both.joules, both.bound_joules, both.net_joules, both.net_bound_joules) == (30.0, 3.0, 23.0, 4.0)
    assert (both.seconds, both.tick_seconds, both.flags) == (9.0, 0.1, ("co_tenant", "throttled"))
    missing = add_devices([a, Energy(None, None, "no driver")])
    assert missing.joules is None
    assert missing.unavailable_reason == "device 1: no driver"


# ---- CPU packages ------------------------------------------------------------------------------------------------


def powercap_tree(root: Path, *, packages: int = 2, most: int = 262_143_328_850) -> list[Path]:
    zones = []
    for i in range(packages):
        for name, label in ((f"intel-rapl:{i}", f"package-{i}"), (f"intel-rapl:{i}:0", "core")):
            zone = root / name
            zone.mkdir(parents=True)
            (zone / "name").write_text(label + "\n")
            (zone / "energy_uj").write_text("1000000\n")
            (zone / "max_energy_range_uj").write_text(f"{most}\n")
        zones.append(root / f"intel-rapl:{i}")
    (root / "intel-rapl").mkdir()
    (root / "intel-rapl-mmio:0").mkdir()
    (root / "intel-rapl-mmio:0" / "name").write_text("package-0\n")
    return zones


def test_packages_are_counted_once_and_without_their_parts(tmp_path: Path) -> None:
    zones = powercap_tree(tmp_path)
    counters = package_counters(tmp_path)
    assert [counter.zone for counter in counters] == zones
    (zones[0] / "energy_uj").write_text("3500000")
    assert [counter.read() for counter in counters] == [2.5, 0.0]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 899_999), min_size=1, max_size=20))
def test_a_wrapping_counter_is_unwrapped(steps: list[int]) -> None:
    most, value = 900_000, 850_000
    zone = SimpleNamespace(name="intel-rapl:0")
    shown = {"max_energy_range_uj": most, "energy_uj": value}

    class Shown(PowercapCounter):
        def _number(self, name: str) -> int:
            return shown[name]

    counter = Shown(zone, clock=lambda: 0.0)  # type: ignore[arg-type]
    for step in steps:
        shown["energy_uj"] = (shown["energy_uj"] + step) % most
        counter.read()
    assert counter.read() == pytest.approx(sum(steps) / 1e6)


def test_a_package_not_read_for_too_long_gives_no_figure(tmp_path: Path) -> None:
    powercap_tree(tmp_path, packages=1, most=1_000_000_000)  # 1 kJ: half a second at the most watts there are
    clock = Clock()
    (counter,) = package_counters(tmp_path, clock=clock)
    assert counter.heartbeat_seconds == 0.5
    clock.sleep(100.0)
    counter.open_window()
    assert counter.read() == 0.0
    clock.sleep(100.0)
    with pytest.raises(Unavailable, match="wrap"):
        counter.read()


def test_no_powercap_no_package_and_no_permission_are_told_apart(tmp_path: Path) -> None:
    def reason(root: Path) -> str:
        return energy_meter(torch.device("cpu"), powercap=root).total().unavailable_reason or ""

    assert "there is no" in reason(tmp_path / "absent")
    assert "no CPU package" in reason(tmp_path)
    zone = powercap_tree(tmp_path, packages=1)[0]
    assert "did not move" in reason(tmp_path)

    class Closed(type(zone)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            raise PermissionError(13, "Permission denied")

    with pytest.raises(Unavailable, match="root only"):
        PowercapCounter(Closed(zone))


# ---- in use ------------------------------------------------------------------------------------------------------


class RealTimeNvml(FakeNvml):
    """A GPU at 400 W with a tick of 20 ms, on the real clock; ``work`` adds 300 W to that."""

    def __init__(self) -> None:
        super().__init__(Gpu(Clock(), power=LOAD))
        self.nvmlDeviceGetTotalEnergyConsumption = self._watched("counter", self._joules)
        self.work: list[float] = []  # begins and ends
        self.loads = 0

    def _joules(self, handle: Gpu) -> int:
        now = time.perf_counter() // 0.02 * 0.02
        worked = sum(sign * max(0.0, now - t) for t, sign in zip(self.work, itertools.cycle((1, -1)), strict=False))
        return int(1000 * (400 * now + 300 * worked))

    def prepare(self) -> float:
        """As a load, of which ``load`` counts how many were made."""
        return 0.0

    def feed(self) -> None:
        if len(self.work) % 2 == 0:
            self.work.append(time.perf_counter())

    def finish(self) -> None:
        self.work.append(time.perf_counter())

    def load(self, device: torch.device) -> RealTimeNvml:
        self.loads += 1
        return self


def real_time_meter(nvml: RealTimeNvml, least: float) -> CounterMeter:
    counter = NvmlCounter(NvmlDevice(nvml.gpus[0].uuid, nvml))
    calibration = replace(calibrate([counter]), lag_seconds=0.01)
    return CounterMeter([counter], calibration, minimum_seconds=least, idle_after=lambda: calibrate([counter]))


def test_the_lag_of_a_real_device_is_measured_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = RealTimeNvml()
    monkeypatch.setattr(select.gpu, "load", lambda: nvml)
    monkeypatch.setattr(select, "MatrixProducts", nvml.load)
    monkeypatch.setattr(select, "device_uuid", lambda device, library, environ: nvml.gpus[0].uuid)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    select._calibrate_gpu.cache_clear()
    try:
        for name in ("cuda", "cuda:0", "cuda"):
            energy = energy_meter(torch.device(name)).total()
            assert energy.lag_seconds is not None
            assert 0 < energy.lag_seconds < 0.5  # about two ticks of 20 ms, if this process is let run
            assert energy.flags == ()
        assert nvml.loads == 1
    finally:
        select._calibrate_gpu.cache_clear()


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


def test_two_cpu_packages_are_metered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap_tree(tmp_path)

    def number(counter: PowercapCounter, name: str) -> int:
        """50 W a package, a tick of 1 ms."""
        return 10**10 if name.startswith("max") else int(time.perf_counter() // 0.001 * 50_000) % 10**10

    monkeypatch.setattr(PowercapCounter, "_number", number)
    meter = energy_meter(torch.device("cpu"), minimum_seconds=0.2, powercap=tmp_path)
    meter.start()
    time.sleep(0.3)
    meter.stop()
    energy = meter.total()
    assert energy.joules is not None, energy.unavailable_reason
    assert energy.bound_joules is not None
    assert abs(energy.joules - 100 * energy.seconds) <= energy.bound_joules
    assert energy.net_bound_joules is not None
    assert abs(energy.net_joules or 0.0) <= energy.net_bound_joules
    assert energy.method == "powercap"


def test_measure_gives_seconds_and_a_figure_or_a_reason() -> None:
    waited = []
    with ldbench.measure("cpu", synchronize=lambda: waited.append(1)) as m:
        time.sleep(0.02)
    assert 0.02 <= m.seconds < 5.0
    assert len(waited) == 2
    assert (m.energy_joules is None) == (m.energy_unavailable_reason is not None) == (m.energy_bound_joules is None)
    with pytest.raises(ZeroDivisionError), ldbench.measure("cpu") as m:
        _ = 1 / 0
    assert m.seconds > 0
    assert len(waited) == 2


def test_spans_of_training_share_a_window_until_something_else_comes() -> None:
    nvml = RealTimeNvml()
    clock = TrainClock(torch.device("cpu"), real_time_meter(nvml, 0.0))
    for span in range(4):
        with clock.running():
            time.sleep(0.05)
        if span % 2:
            clock.pause()
    energy = clock.energy.total()
    assert energy.windows == 2
    assert energy.seconds == pytest.approx(clock.seconds, abs=0.2)
