"""Seconds, joules and bytes of work on a CPU or GPU; without an energy reading, a null meter that says why.

``measure`` meters a block of code. In the package an energy comes with its bound: ``edges`` has the proof for counters,
``integrals`` for power samples, and ``lag`` measures how late either is.
"""

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
