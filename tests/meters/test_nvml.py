"""What NVML tells beside joules: conditions that spoil a figure, and samples with a time."""

from __future__ import annotations

import os

import pynvml
import pytest
from support.fake_nvml import LOAD, Clock, FakeNvml, Gpu
from support.metering import counter_meter, one_window

from ldbench.meters import Unavailable
from ldbench.meters.nvml import BufferedPower, NvmlDevice


def test_co_tenants_and_throttling_are_flagged() -> None:
    clock = Clock()
    gpu = Gpu(clock, power=LOAD)
    assert one_window(counter_meter(gpu, clock)[0], clock).flags == ()
    gpu.pids = [4_000_000]  # this process, as the host of a container counts it
    assert one_window(counter_meter(gpu, clock)[0], clock).flags == ()
    gpu.pids = [os.getpid(), 4_000_000]
    assert one_window(counter_meter(gpu, clock)[0], clock).flags == ("co_tenant",)
    gpu.pids, gpu.throttle = [], pynvml.nvmlClocksEventReasonSwPowerCap
    assert one_window(counter_meter(gpu, clock)[0], clock).flags == ("throttled",)
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
    names = ["MigMode", "VirtualizationMode", "ComputeRunningProcesses", "Temperature", "ClockInfo"]
    names += ["EnforcedPowerLimit", "CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "ViolationStatus"]
    nvml = FakeNvml(gpu, errors={f"nvmlDeviceGet{name}": pynvml.NVML_ERROR_NO_PERMISSION for name in names})
    energy = one_window(counter_meter(gpu, clock, nvml=nvml)[0], clock)
    assert energy.joules is not None
    assert energy.flags == ()
    assert set(energy.conditions[0]["start"].values()) == {gpu.uuid, None}


def test_a_wall_clock_set_during_a_window_spoils_stamped_samples() -> None:
    clock, wall = Clock(), Clock()
    gpu = Gpu(clock, power=LOAD)
    source = BufferedPower(NvmlDevice(gpu.uuid, FakeNvml(gpu)), clock, wall)
    clock.sleep(1.0)
    wall.sleep(3600.0)
    with pytest.raises(Unavailable, match="wall clock"):
        source.poll()
