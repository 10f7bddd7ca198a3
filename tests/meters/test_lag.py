"""How late a counter or a sensor is: found, never too short, or assumed."""

from __future__ import annotations

import pytest
import torch
from support.fake_nvml import LOAD, Clock, FakeNvml, Gpu
from support.metering import Step, Watcher, calibrated_counter, calibrated_power, one_window, stepping_gpu

from ldbench.meters import Unavailable
from ldbench.meters.counter import CounterMeter
from ldbench.meters.nvml import NvmlCounter, NvmlDevice

KINDS = [(0.0, 0.0), (0.05, 0.0), (0.2, 0.0), (0.0, 1.0), (0.1, 0.3)]


@pytest.mark.parametrize("reading", ["counter", "polled", "stamped"])
@pytest.mark.parametrize(("lag", "average"), KINDS)
def test_the_lag_is_found_and_never_too_short(lag: float, average: float, reading: str) -> None:
    """Under 3 % of noise, with a power that takes 30 ms to rise.

    Those, and a tick and a half, are what it may be longer by. Noise makes it longer by a fifth at most; samples of
    single moments show all of it, so that it is more for them.
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
        "the load draws next to nothing": {"watts": 80.0},
        "noise hides the step": {"noise": 0.4, "watts": 140.0},
        "out of memory": {"error": torch.OutOfMemoryError("CUDA out of memory")},
        "the counter fails": {"error": Unavailable("the GPU has fallen off the bus")},
    }
    for case, options in cases.items():
        gpu, load = stepping_gpu(1, lag=0.1, tick=0.1, jitter=0.3, **options)  # type: ignore[arg-type]
        for found in (calibrated_counter(gpu, load), calibrated_counter(gpu, None), calibrated_power(gpu, None)):
            assert (found.lag_seconds, found.lag_assumed) == (1.0, True), case
        assert load.finished, case
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    counter = NvmlCounter(NvmlDevice(gpu.uuid, FakeNvml(gpu)))
    energy = one_window(
        CounterMeter([counter], found, clock=clock, sleep=clock.sleep, spawn=Watcher(clock)), clock, 6.0
    )
    assert energy.flags == ("lag_assumed",)
    assert energy.lag_seconds == 1.0


def test_work_done_to_prepare_the_load_does_not_hide_a_lag() -> None:
    """A tenth of a second of it is in an average over a second already when the load begins."""
    gpu, load = stepping_gpu(1, average=1.0, tick=0.02, noise=0.0)
    without = calibrated_counter(gpu, load).lag_seconds
    clock = Clock()
    power = [(10.0, 70.0, 70.0), (2.9, 600.0, 600.0), (9.0, 70.0, 70.0)]
    gpu = Gpu(clock, seed=1, power=power, tick=0.02, average=1.0, horizon=16)
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
