"""Training time and peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch

from ldbench.devices import synchronize
from ldbench.meters.energy import EnergyMeter


class TrainClock:
    """Seconds of training on a monotonic clock, evaluation left out: both edges of a span wait for the device.

    Spans without a ``pause`` between them, such as epochs that are not evaluated, share one energy window: short
    windows have no figure.

    Attributes:
        windows: energy windows that were closed.
        open: whether one is open.
    """

    def __init__(self, device: torch.device, energy: EnergyMeter) -> None:
        self.device, self.energy, self.seconds = device, energy, 0.0
        self.windows, self.open = 0, False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A span of training."""
        synchronize(self.device)
        if not self.open:
            self.energy.start()
            self.open = True
        began = time.perf_counter()
        try:
            yield
        finally:
            try:
                synchronize(self.device)  # raises where the device was lost
            finally:
                self.seconds += time.perf_counter() - began

    def pause(self) -> None:
        """Close the energy window: what comes now is no training."""
        if self.open:
            self.energy.stop()
            self.open = False
            self.windows += 1


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
