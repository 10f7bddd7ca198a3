"""The best meter a device has, or the reason why it has none."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

from ldbench.meters import nvml as gpu
from ldbench.meters.counter import CounterMeter
from ldbench.meters.edges import Calibration, calibrate
from ldbench.meters.energy import MINIMUM_SECONDS, EnergyMeter, NullEnergyMeter, Unavailable
from ldbench.meters.gpu_uuid import device_uuid
from ldbench.meters.lag import Load, with_counter_lag, with_power_lag
from ldbench.meters.load import MatrixProducts
from ldbench.meters.powercap import POWERCAP, package_counters
from ldbench.meters.sampled import SampledMeter, sample_tick


def energy_meter(
    device: torch.device, *, minimum_seconds: float = MINIMUM_SECONDS, nvml: Any = None, powercap: Path = POWERCAP
) -> EnergyMeter:
    """The meter for a device: a GPU's energy counter, its power samples where it has none, a CPU's powercap packages.

    The first call for a device watches it for up to 2 s, and should find it idle: the tick and the idle power are
    measured then and kept for the process. A GPU is then made to work for 2.5 s, which needs 64 MiB of its memory, to
    measure its meter's lag, and rests for as long as that lag. A CPU's counters are renewed every millisecond; their
    lag is taken for 0. Where nothing can be read the meter gives no figure but the reason.

    Args:
        minimum_seconds: mean length of a window below which there is no figure.
        nvml: bindings to use instead of pynvml. Their GPU is not made to work: its lag is assumed.
        powercap: root of the powercap tree.
    """
    try:
        if device.type == "cuda":
            library = gpu.load() if nvml is None else nvml
            torch.cuda.synchronize(device)
            index = torch.cuda.current_device() if device.index is None else device.index
            return gpu_meter(device_uuid(device, library, os.environ), minimum_seconds, nvml=nvml, index=index)
        if device.type == "cpu":
            counters = package_counters(powercap)
            before = _calibrate_cpu(powercap)
            return CounterMeter(
                counters, before, minimum_seconds=minimum_seconds, idle_after=lambda: calibrate(counters)
            )
    except Unavailable as reason:
        return NullEnergyMeter(str(reason))
    return NullEnergyMeter(f"energy of a {device.type} device is not metered")


def gpu_meter(
    uuid: str, minimum_seconds: float = MINIMUM_SECONDS, *, nvml: Any = None, index: int | None = None
) -> EnergyMeter:
    """The meter of a GPU by its UUID. Raises ``Unavailable``.

    Args:
        nvml: bindings to use instead of pynvml; their GPU is calibrated afresh by every call, and its lag assumed.
        index: CUDA's number of the GPU, which is made to work to measure the lag; None leaves the lag to be assumed.
    """
    device = gpu.NvmlDevice(uuid, nvml)
    kind, found = _calibrate_gpu(uuid, index) if nvml is None else _best_reading(device, None)
    if kind is gpu.NvmlCounter:
        counter = gpu.NvmlCounter(device)
        return CounterMeter([counter], found, minimum_seconds=minimum_seconds, idle_after=lambda: calibrate([counter]))
    source = gpu.BufferedPower(device) if kind is gpu.BufferedPower else gpu.PolledPower(device)
    return SampledMeter(source, device, found, minimum_seconds=minimum_seconds)


def _best_reading(device: gpu.NvmlDevice, load: Load | None) -> tuple[type, Calibration]:
    """The best that can be read of a GPU, and what was measured of it. Raises ``Unavailable`` where that is nothing."""
    try:
        counter = gpu.NvmlCounter(device)
        return gpu.NvmlCounter, with_counter_lag(calibrate([counter]), counter, load)
    except Unavailable as reason:
        no_counter = str(reason)
    try:
        buffered = gpu.BufferedPower(device)
        return gpu.BufferedPower, with_power_lag(sample_tick(buffered), buffered, load)
    except Unavailable:
        pass  # polling needs less
    try:
        polled = gpu.PolledPower(device)
        return gpu.PolledPower, with_power_lag(sample_tick(polled), polled, load)
    except Unavailable as no_power:
        raise Unavailable(f"no energy counter ({no_counter}) and no power reading ({no_power})") from None


@functools.lru_cache
def _calibrate_gpu(uuid: str, index: int | None) -> tuple[type, Calibration]:
    load = None if index is None else MatrixProducts(torch.device("cuda", index))
    return _best_reading(gpu.NvmlDevice(uuid), load)


@functools.lru_cache
def _calibrate_cpu(powercap: Path) -> Calibration:
    return calibrate(package_counters(powercap))
