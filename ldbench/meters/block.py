"""``with ldbench.measure() as m:`` -- time and energy of any piece of code."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import torch

from ldbench.costs import synchronize as wait_for
from ldbench.meters.choose import energy_meter
from ldbench.meters.energy import MINIMUM_SECONDS, Energy, EnergyMeter, add_devices


class measure:
    """Seconds and joules of the block it encloses.

    ::

        with ldbench.measure() as m:
            train()
        print(m.seconds, m.energy_joules, m.energy_bound_joules, m.energy_unavailable_reason)

    Args:
        devices: torch devices or their names; without any, the current CUDA device, or the CPU where there is none.
            Several are metered together: joules add up.
        synchronize: called before both readings, to wait until the device has nothing left to do; by default CUDA's
            own for every device.
        minimum_seconds: a shorter block has no energy figure: it would be mostly error. Repeat the work instead.

    Entering it takes up to 2 s the first time a process meters a device: it measures the counter's tick and the idle
    power. Leaving it takes about half a second for the idle power. Neither is part of ``seconds``.
    """

    def __init__(
        self, *devices: torch.device | str, synchronize: Callable[[], None] | None = None,
        minimum_seconds: float = MINIMUM_SECONDS,
    ) -> None:  # fmt: skip
        named = devices or ("cuda" if torch.cuda.is_available() else "cpu",)
        self.devices = [torch.device(device) for device in named]
        self._synchronize = synchronize
        self._minimum_seconds = minimum_seconds
        self._meters: list[EnergyMeter] = []
        self._began = 0.0
        self.seconds: float = 0.0
        self.energy = Energy(None, None, "the block has not ended")

    def __enter__(self) -> measure:
        """Synchronise and take the first readings."""
        self._meters = [energy_meter(device, minimum_seconds=self._minimum_seconds) for device in self.devices]
        self._wait()
        for meter in self._meters:
            meter.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Synchronise and take the last readings."""
        if error is None:  # a device that has failed cannot be waited for
            self._wait()
        self.seconds = time.perf_counter() - self._began
        for meter in self._meters:
            meter.stop()
        self.energy = (
            add_devices([meter.total() for meter in self._meters]) if len(self._meters) > 1 else self._meters[0].total()
        )

    def _wait(self) -> None:
        if self._synchronize is not None:
            self._synchronize()
            return
        for device in self.devices:
            wait_for(device)

    @property
    def energy_joules(self) -> float | None:
        """Gross energy, or None."""
        return self.energy.joules

    @property
    def energy_net_joules(self) -> float | None:
        """Energy without idle power x seconds, or None."""
        return self.energy.net_joules

    @property
    def energy_bound_joules(self) -> float | None:
        """The true energy is within ``energy_joules`` +- this; None with it."""
        return self.energy.bound_joules

    @property
    def energy_unavailable_reason(self) -> str | None:
        """Why there is no energy figure, or None."""
        return self.energy.unavailable_reason
