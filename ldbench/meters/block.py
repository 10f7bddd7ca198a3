"""``with ldbench.measure() as m:`` -- time and energy of any piece of code."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import torch

from ldbench.devices import synchronize as wait_for
from ldbench.meters.energy import MINIMUM_SECONDS, Energy, EnergyMeter, add_devices
from ldbench.meters.select import energy_meter


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

    Entering it for the first time in a process takes up to 7 s a GPU: up to 2 s to watch the idle device for the tick
    of its counter and its idle power, 2.5 s of matrix products to measure how far the counter lags behind, some tenths
    of a second to prepare those, and a rest as long as the lag. A CPU takes up to 2 s. Leaving it takes the lag, a tick
    and about half a second for the idle power. None of this is part of ``seconds``.

    The true energy is within ``energy_joules`` +- ``energy_bound_joules`` whatever the power did in the block, before
    and after it. The bound covers that a counter moves only at ticks and by steps, and that it lags behind by up to
    ``energy.lag_seconds`` (a delay, or an average over that time); for a GPU without a counter it covers sampling, see
    `ldbench.meters.integrals`. It does not cover

    * the accuracy of the sensor, a few per cent by its maker, with all that it overlooks (some look at the power for
      part of the time only);
    * a lag longer than the one measured, such as the tail of an exponential filter. Where it could not be measured, the
      flag "lag_assumed" says so, and a second is taken for it;
    * energy of anything but the devices named: the host of a GPU, fans, power supplies.
    """

    def __init__(
        self,
        *devices: torch.device | str,
        synchronize: Callable[[], None] | None = None,
        minimum_seconds: float = MINIMUM_SECONDS,
    ) -> None:
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
        """The true energy is within ``energy_joules`` +- this, as far as said above; None with it."""
        return self.energy.bound_joules

    @property
    def energy_unavailable_reason(self) -> str | None:
        """Why there is no energy figure, or None."""
        return self.energy.unavailable_reason
