"""Clock, energy and memory: one shape each, and a null energy meter that says why there is no figure."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from ldbench.costs import synchronize


@dataclass(frozen=True)
class Energy:
    """Energy of one window. ``joules`` is None exactly when ``unavailable_reason`` is set; it is never 0 for "unknown"."""

    joules: float | None
    bound_joules: float | None
    unavailable_reason: str | None


class EnergyMeter(Protocol):
    """Adds up the energy of the windows between ``start`` and ``stop``."""

    def start(self) -> None:
        """Open a window; the device is synchronised."""
        ...

    def stop(self) -> None:
        """Close the window; the device is synchronised."""
        ...

    def total(self) -> Energy:
        """The sum over all closed windows."""
        ...


class NullEnergyMeter:
    """Where energy cannot be read: gives the reason instead of a number."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def start(self) -> None:
        """Nothing to read."""

    def stop(self) -> None:
        """Nothing to read."""

    def total(self) -> Energy:
        """No joules, and why."""
        return Energy(None, None, self.reason)


def energy_meter(device: torch.device) -> EnergyMeter:
    """The meter for a device."""
    if device.type != "cuda":
        return NullEnergyMeter("training ran on the CPU; only GPU energy is metered")
    return NullEnergyMeter("GPU energy metering is not part of this version")


class TrainClock:
    """Seconds of training on a monotonic clock, evaluation left out: the device is synchronised at both edges."""

    def __init__(self, device: torch.device, energy: EnergyMeter) -> None:
        self.device, self.energy, self.seconds = device, energy, 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A span of training."""
        synchronize(self.device)
        self.energy.start()
        began = time.perf_counter()
        try:
            yield
        finally:
            synchronize(self.device)
            self.seconds += time.perf_counter() - began
            self.energy.stop()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")  # resets VmHWM of this process


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Peak bytes since the last reset, and what was counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "CUDA bytes allocated"
    with contextlib.suppress(OSError), open("/proc/self/status") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "resident bytes of the process, libraries included"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "largest resident bytes of the process so far"
