"""A meter on power samples, against devices whose true energy is known."""

from __future__ import annotations

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_nvml import LOAD, Clock, FakeNvml, Gpu, QuickNvml
from support.metering import lags, pieces, seeds

from ldbench.meters.edges import Calibration
from ldbench.meters.nvml import BufferedPower, NvmlDevice, PolledPower
from ldbench.meters.sampled import SampledMeter, sample_tick

# A burst within a tick is what a sensor that publishes means leaves in the dark.
kinds = st.sampled_from([(0.01, 1000.0, 1000.0), (0.03, 0.0, 0.0), (0.11, 0.0, 0.0), (0.02, 500.0, 1000.0)])
bursts = st.lists(kinds, min_size=2, max_size=8)
lengths = st.lists(st.floats(0.0, 4.0) | st.floats(0.0, 0.2), min_size=12, max_size=12)
averages = st.just(0.0) | st.floats(0.05, 1.0)


def test_the_true_energy_is_always_within_the_bound_of_power_samples() -> None:
    """Late ones too, and means over several ticks of one length."""
    measured = [0]

    @settings(max_examples=80)
    @given(
        st.booleans(),
        st.booleans(),
        pieces | bursts,
        lengths,
        st.floats(0.02, 0.15),
        st.floats(0.0, 0.4),
        seeds,
        lags,
        averages,
    )
    def check(stamped, mean_power, power, lengths, tick, jitter, seed, lag, average):  # type: ignore[no-untyped-def]
        clock = Clock()
        average = round(average / tick) * tick if mean_power else 0.0
        jitter = 0.0 if average else jitter
        known = lag + average
        kind = {"tick": tick, "jitter": jitter, "horizon": sum(lengths) + 12 * (8 * tick + known) + 5}
        kind |= {"mean_power": mean_power, "lag": lag, "average": average}
        gpu = Gpu(clock, seed=seed, power=power if mean_power else None, **kind)
        device = NvmlDevice(gpu.uuid, QuickNvml(gpu))
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
