"""The best meter a device has, or the reason why it has none."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

from ldbench.meters import nvml as gpu
from ldbench.meters.counter import CounterMeter
from ldbench.meters.devices import device_uuid
from ldbench.meters.edges import Calibration, calibrate
from ldbench.meters.energy import MINIMUM_SECONDS, EnergyMeter, NullEnergyMeter, Unavailable
from ldbench.meters.powercap import POWERCAP, package_counters
from ldbench.meters.sampled import PowerSource, SampledMeter, sample_tick


def energy_meter(
    device: torch.device, *, minimum_seconds: float = MINIMUM_SECONDS, nvml: Any = None, powercap: Path = POWERCAP
) -> EnergyMeter:
    """The meter for a device: a GPU's energy counter, its power samples where it has none, a CPU's powercap packages.

    The first call for a device watches it for up to 2 s, and should find it idle: the tick and the idle power are
    measured then and kept for the process. Where nothing can be read the meter gives no figure but the reason.

    Args:
        minimum_seconds: mean length of a window below which there is no figure.
        nvml: bindings to use instead of pynvml.
        powercap: root of the powercap tree.
    """
    try:
        if device.type == "cuda":
            library = gpu.load() if nvml is None else nvml
            torch.cuda.synchronize(device)
            uuid = device_uuid(device, library, os.environ)
            return gpu_meter(uuid, minimum_seconds, nvml=nvml)
        if device.type == "cpu":
            counters = package_counters(powercap)
            before = _calibrate_cpu(powercap)
            return CounterMeter(
                counters, before, minimum_seconds=minimum_seconds, idle_after=lambda: calibrate(counters)
            )
    except Unavailable as reason:
        return NullEnergyMeter(str(reason))
    return NullEnergyMeter(f"energy of a {device.type} device is not metered")


def gpu_meter(uuid: str, minimum_seconds: float = MINIMUM_SECONDS, *, nvml: Any = None) -> EnergyMeter:
    """The meter of a GPU by its UUID. Raises ``Unavailable``."""
    device = gpu.NvmlDevice(uuid, nvml)
    try:
        counter = gpu.NvmlCounter(device)
        # Bindings of the caller's are calibrated afresh: what is kept belongs to the real GPU.
        before = _calibrate_gpu(uuid) if nvml is None else calibrate([counter])
    except Unavailable as no_counter:
        return _sampled(device, str(no_counter), minimum_seconds)
    return CounterMeter([counter], before, minimum_seconds=minimum_seconds, idle_after=lambda: calibrate([counter]))


def _sampled(device: gpu.NvmlDevice, no_counter: str, minimum_seconds: float) -> EnergyMeter:
    source: PowerSource
    try:
        try:
            source = gpu.BufferedPower(device)
            tick, idle = sample_tick(source)
        except Unavailable:
            source = gpu.PolledPower(device)
            tick, idle = sample_tick(source)
    except Unavailable as no_power:
        raise Unavailable(f"no energy counter ({no_counter}) and no power reading ({no_power})") from None
    return SampledMeter(source, device, tick, idle, minimum_seconds=minimum_seconds)


@functools.lru_cache
def _calibrate_gpu(uuid: str) -> Calibration:
    return calibrate([gpu.NvmlCounter(gpu.NvmlDevice(uuid))])


@functools.lru_cache
def _calibrate_cpu(powercap: Path) -> Calibration:
    return calibrate(package_counters(powercap))
