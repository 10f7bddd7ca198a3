"""Energy of a run by phase: training, and within it the building of stores; evaluation; and training epoch by epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from ldbench.devices import synchronize
from ldbench.meters.energy import Energy, EnergyMeter, NullEnergyMeter
from ldbench.meters.select import energy_meter

PHASES = ("training", "cache_building", "evaluation")
OF_AN_EPOCH = ("joules", "bound_joules", "unavailable_reason")


class PhaseMeters:
    """One meter per phase of a run on ``device``. Cache building lies within training and is counted in both."""

    def __init__(self, device: torch.device, meter: Callable[[torch.device], EnergyMeter] = energy_meter) -> None:
        self.device = device
        self.meters = {phase: meter(device) for phase in PHASES}

    @contextlib.contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """A window of ``phase``; the device is synchronised at both edges."""
        synchronize(self.device)
        self.meters[phase].start()
        try:
            yield
        finally:
            synchronize(self.device)
            self.meters[phase].stop()

    def record(self, training: Energy) -> dict[str, Any]:
        """``energy_...`` fields of the record.

        Args:
            training: of the whole run, earlier processes included; ``energy_phases`` tells of this process alone.
        """
        kept = (*OF_AN_EPOCH, "net_joules", "method", "tick_seconds", "lag_seconds")
        return {
            **{f"energy_{name}": getattr(training, name) for name in kept},
            "energy_flags": list(training.flags),
            "energy_phases": {phase: summary(meter.total()) for phase, meter in self.meters.items()},
        }

    def epochs(
        self, rows: Sequence[dict[str, Any]], spans: Mapping[int, tuple[int, int]], shared: Collection[int] = ()
    ) -> None:
        """Put the energy of every epoch into its row.

        Args:
            spans: by epoch the numbers of its training windows, (first, end); an epoch that is missing was trained, at
                least in part, by an earlier process, or is one of ``shared``.
            shared: epochs that share a window with others.
        """
        meter = self.meters["training"]
        for row in rows:
            reason = "trained in part before an interruption"
            if row["epoch"] in shared:
                reason = "no window of its own: energy was metered over several epochs without a break"
            if isinstance(meter, NullEnergyMeter):
                reason = meter.reason
            row |= {"energy_joules": None, "energy_bound_joules": None, "energy_unavailable_reason": reason}
        metered = [row for row in rows if row["epoch"] in spans]
        windows = meter.sums([spans[row["epoch"]] for row in metered])
        for row, energy in zip(metered, windows, strict=True):
            row |= {f"energy_{name}": getattr(energy, name) for name in OF_AN_EPOCH}


def summary(energy: Energy) -> dict[str, Any]:
    """What the record keeps of a phase."""
    kept = ("joules", "bound_joules", "net_joules", "unavailable_reason", "seconds", "windows")
    return {name: getattr(energy, name) for name in kept} | {"flags": list(energy.flags)}
