"""Which meter a device gets, and why it gets none."""

from __future__ import annotations

import time

import pynvml
import pytest
import torch
from support.fake_nvml import Clock, FakeNvml, Gpu, RealTimeNvml

from ldbench.meters import NullEnergyMeter, Unavailable, energy_meter, select
from ldbench.meters.select import gpu_meter


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "does not support"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "driver is too old"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML: "),
    ],
)
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


def test_without_a_driver_the_cuda_meter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise Unavailable("no NVML library (libnvidia-ml.so.1): there is no NVIDIA driver here")

    monkeypatch.setattr(select.gpu, "load", load)
    meter = energy_meter(torch.device("cuda"))
    assert isinstance(meter, NullEnergyMeter)
    assert "no NVML library" in meter.reason
    assert "not metered" in (energy_meter(torch.device("meta")).total().unavailable_reason or "")


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
