"""One NVIDIA GPU as NVML shows it: energy, power, what may spoil a figure. The only module that knows pynvml."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ldbench.meters.energy import Unavailable

Clock = Callable[[], float]
# Clocks held back by power or heat; bits for an idle GPU and for clocks set by hand do not count.
THROTTLE_BITS = {0x4: "power cap", 0x8: "slowdown", 0x20: "thermal", 0x40: "thermal (hardware)", 0x80: "power brake"}
# Shorter violations are the rule when a load begins.
THROTTLED_SHARE = 0.01
POWER_INSTANT_FIELD = 186


@functools.cache
def load() -> Any:
    """The NVML bindings, initialised. Raises ``Unavailable`` without the package, the library or the driver."""
    try:
        import pynvml
    except ImportError:
        raise Unavailable("the Python package nvidia-ml-py is not installed") from None
    with reasons(pynvml):
        pynvml.nvmlInit()
    return pynvml


@contextlib.contextmanager
def reasons(nvml: Any) -> Iterator[None]:
    """Turn errors of NVML into ``Unavailable`` with a reason a user understands."""
    try:
        yield
    except nvml.NVMLError as error:
        known = {
            nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVML library (libnvidia-ml.so.1): there is no NVIDIA driver here",
            nvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
            nvml.NVML_ERROR_NO_PERMISSION: "this user has no permission to read it from the NVIDIA driver",
            nvml.NVML_ERROR_NOT_SUPPORTED: "this GPU or its driver does not support it",
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver is too old for it",
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVML and driver differ in version (reboot after an update?)",
            nvml.NVML_ERROR_NOT_FOUND: "NVML does not show this GPU (a MIG slice, or hidden from this container?)",
            nvml.NVML_ERROR_GPU_IS_LOST: "the GPU has fallen off the bus",
        }
        raise Unavailable(known.get(error.value, f"NVML: {error}")) from None
    except AttributeError as missing:
        raise Unavailable(f"the installed nvidia-ml-py is too old: {missing}") from None


def driver_version(nvml: Any) -> str:
    """Version of the driver. Raises ``Unavailable``."""
    with reasons(nvml):
        return str(nvml.nvmlSystemGetDriverVersion())


class NvmlDevice:
    """A GPU by its UUID. Raises ``Unavailable`` for a MIG slice, a vGPU, and a GPU that NVML does not show."""

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self.uuid, self.nvml = uuid, load() if nvml is None else nvml
        if uuid.startswith("MIG-"):
            raise Unavailable("the device is a MIG slice: the GPU's power is metered as a whole, not by slice")
        with reasons(self.nvml):
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        if (self.optional(lambda: self.nvml.nvmlDeviceGetMigMode(self.handle)) or [0])[0]:
            raise Unavailable("the GPU is split by MIG: its power is metered as a whole, not by slice")
        mode = self.optional(lambda: self.nvml.nvmlDeviceGetVirtualizationMode(self.handle))
        if mode == self.nvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
            raise Unavailable("the device is a vGPU: its power is that of a card shared with other guests")

    def optional(self, get: Callable[[], Any]) -> Any:
        """What ``get`` reads, or None where this GPU, driver or user cannot read it."""
        try:
            with reasons(self.nvml):
                return get()
        except Unavailable:
            return None

    def counter_joules(self) -> float:
        """Energy since the driver was loaded. Raises ``Unavailable``."""
        with reasons(self.nvml):
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1000

    def watts(self) -> tuple[float, bool]:
        """Power now, and whether that is the driver's average over a second. Raises ``Unavailable``."""
        fields = self.optional(lambda: self.nvml.nvmlDeviceGetFieldValues(self.handle, [POWER_INSTANT_FIELD]))
        if fields is not None and fields[0].nvmlReturn == self.nvml.NVML_SUCCESS:
            return fields[0].value.uiVal / 1000, False
        with reasons(self.nvml):
            return self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000, True

    def power_samples(self, since_microseconds: int) -> list[tuple[int, float]]:
        """The driver's own samples later than ``since_microseconds``: (microseconds of the wall clock, watts)."""
        with reasons(self.nvml):
            try:
                kind, samples = self.nvml.nvmlDeviceGetSamples(
                    self.handle, self.nvml.NVML_TOTAL_POWER_SAMPLES, since_microseconds
                )
            except self.nvml.NVMLError as error:
                if error.value == self.nvml.NVML_ERROR_NOT_FOUND:  # nothing new
                    return []
                raise
        member = "uiVal" if kind == self.nvml.NVML_VALUE_TYPE_UNSIGNED_INT else "ullVal"
        return [(int(s.timeStamp), getattr(s.sampleValue, member) / 1000) for s in samples]

    def co_tenants(self, *, computing: bool) -> int | None:
        """How many other processes compute on the GPU; None where that is not shown.

        In a container the ids are those of the host, so this process may be listed under another number: where it is
        ``computing`` there and its own id is missing, one of the others is taken for it.
        """
        found = self.optional(lambda: [p.pid for p in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)])
        if found is None:
            return None
        return max(0, len(found) - (os.getpid() in found or computing))

    def throttle_reasons(self) -> int | None:
        """Bit mask of why clocks are held back at this moment."""
        mask = self.optional(lambda: self.nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle))
        if mask is None:  # drivers before 535 know the function by its former name only
            mask = self.optional(lambda: self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))
        return None if mask is None else int(mask)

    def conditions(self) -> dict[str, Any]:
        """What is recorded at the edges of a window; a value that cannot be read is None."""
        nvml, handle, read = self.nvml, self.handle, self.optional
        return {
            "gpu": self.uuid,
            "temperature_celsius": read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "sm_clock_mhz": read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "power_limit_watts": read(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "throttle_reasons": self.throttle_reasons(),
            "power_violation_seconds": read(lambda: _violation(nvml, handle, nvml.NVML_PERF_POLICY_POWER)),
            "thermal_violation_seconds": read(lambda: _violation(nvml, handle, nvml.NVML_PERF_POLICY_THERMAL)),
            "co_tenants": self.co_tenants(computing=True),
        }

    def spoilt(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> set[str]:
        """Flags that follow from the conditions at the edges of a window."""
        flags = set()
        if any(at["co_tenants"] for at in (before, after)):
            flags.add("co_tenant")
        for name in ("power_violation_seconds", "thermal_violation_seconds"):
            first, last = before[name], after[name]
            if first is not None and last is not None and last - first > THROTTLED_SHARE * seconds:
                flags.add("throttled")
        if any((at["throttle_reasons"] or 0) & sum(THROTTLE_BITS) for at in (before, after)):
            flags.add("throttled")
        return flags


def _violation(nvml: Any, handle: Any, policy: int) -> float:
    return float(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e9


class NvmlCounter:
    """The energy counter of a GPU (Volta and later), in steps of a millijoule."""

    method = "nvml counter"
    resolution_joules = 0.001
    heartbeat_seconds: float | None = None  # 64 bits of millijoules do not wrap

    def __init__(self, device: NvmlDevice) -> None:
        self.device = device
        self.read = device.counter_joules
        self.conditions, self.spoilt = device.conditions, device.spoilt
        self.read()

    def open_window(self) -> None:
        """Nothing to prepare."""


class BufferedPower:
    """Power samples that the driver keeps, with its own time stamps."""

    method = "nvml power samples"
    averaged = False
    stamped = True
    period_seconds = 0.5  # the driver keeps some seconds of them

    def __init__(self, device: NvmlDevice, clock: Clock = time.perf_counter, wall: Clock = time.time) -> None:
        self.device, self._clock, self._wall = device, clock, wall
        self.offset = wall() - clock()
        self._since = int(wall() * 1e6)
        device.power_samples(self._since)

    def poll(self) -> list[tuple[float, float]]:
        """New samples: (seconds of the monotonic clock, watts). Raises ``Unavailable`` when the wall clock was set."""
        if abs(self._wall() - self._clock() - self.offset) > 0.05:
            raise Unavailable("the wall clock, by which the driver stamps its power samples, was set during the window")
        new = [(stamp, watts) for stamp, watts in self.device.power_samples(self._since) if stamp > self._since]
        self._since = max([self._since, *(stamp for stamp, _ in new)])
        return [(stamp / 1e6 - self.offset, watts) for stamp, watts in new]


class PolledPower:
    """Power read now and again, stamped here."""

    method = "nvml power polled"
    stamped = False
    period_seconds = 0.02

    def __init__(self, device: NvmlDevice, clock: Clock = time.perf_counter) -> None:
        self.device, self._clock = device, clock
        self.averaged = device.watts()[1]

    def poll(self) -> list[tuple[float, float]]:
        """One sample: (seconds of the monotonic clock, watts)."""
        watts = self.device.watts()[0]
        return [(self._clock(), watts)]
