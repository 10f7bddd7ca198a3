"""What is measured of a counter before it is used."""

from __future__ import annotations

import pytest
from support.fake_nvml import Clock, FakeNvml, Gpu

from ldbench.meters import Unavailable
from ldbench.meters.edges import calibrate
from ldbench.meters.nvml import NvmlCounter, NvmlDevice


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
