"""Clock, energy and memory: one shape each, and a null energy meter that says why there is no figure."""

from ldbench.meters.block import measure
from ldbench.meters.clock import TrainClock, peak_memory, reset_peak_memory
from ldbench.meters.energy import Energy, EnergyMeter, NullEnergyMeter, Unavailable, add_devices
from ldbench.meters.phases import PhaseMeters
from ldbench.meters.select import energy_meter

__all__ = [
    "Energy",
    "EnergyMeter",
    "NullEnergyMeter",
    "PhaseMeters",
    "TrainClock",
    "Unavailable",
    "add_devices",
    "energy_meter",
    "measure",
    "peak_memory",
    "reset_peak_memory",
]
