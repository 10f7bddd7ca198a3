"""What the energy meter of this machine is worth: its tick and lag, idle power, and how far short windows are off.

    python -m benches.meter_check [--out FILE.json] [--seconds 50] [--device cuda:0]

A constant load runs in windows of 1 to 12 s. The longest window gives the power that the others are held against,
beside the bound that each window states for itself: its error should lie within its own bound and the reference's
together. Each begins and ends on an idle device, as a training does; that a device takes a moment to reach its power is
part of the error. Where Zeus (the package ``zeus``) is installed, it meters the longest window together with ours.
Where nothing can be metered, the file says why.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch

from ldbench.devices import synchronize
from ldbench.meters import Energy, NullEnergyMeter, energy_meter

from .lab_results import Results, device_of, options, surroundings

LONGEST = 12.0
WINDOWS = (1.0, 2.0, 5.0)  # seconds
ROUNDS = 2
CLOSING = 2.5  # seconds that a window's last tick, its lag and the idle power behind it take


class Load:
    """Matrix products, queued a little ahead of the device."""

    def __init__(self, device: torch.device) -> None:
        side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
        self.device = device
        self.x = torch.randn(side, side, device=device, dtype=dtype)
        self.out = torch.empty_like(self.x)

    def run(self, seconds: float) -> None:
        """Keep the device busy for about so long."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(4):
                torch.mm(self.x, self.x, out=self.out)
            synchronize(self.device)


def window(device: torch.device, load: Load, seconds: float) -> Energy:
    """The energy of one window, however short."""
    meter = energy_meter(device, minimum_seconds=0.0)
    synchronize(device)
    meter.start()
    load.run(seconds)
    synchronize(device)
    meter.stop()
    return meter.total()


def with_zeus(device: torch.device, load: Load, seconds: float) -> tuple[Energy, dict[str, Any]]:
    """The longest window, metered by Zeus too if it is there."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return window(device, load, seconds), {"unavailable_reason": "the package zeus is not installed"}
    zeus = ZeusMonitor(gpu_indices=[device.index or 0])
    zeus.begin_window("check")
    ours = window(device, load, seconds)
    theirs = zeus.end_window("check")
    joules = sum(theirs.gpu_energy.values())
    # Zeus's window also holds our meter's two edges, so power is what compares.
    answer: dict[str, Any] = {"joules": joules, "seconds": theirs.time, "watts": joules / theirs.time}
    if ours.joules is not None:
        answer["ours / zeus"] = (ours.joules / ours.seconds) / answer["watts"]
    return ours, answer


def check(device: torch.device, results: Results) -> None:
    """Put everything into the results."""
    results.put("environment", surroundings(device))
    meter = energy_meter(device)
    if isinstance(meter, NullEnergyMeter):
        results.cannot(meter.reason)
        return
    load = Load(device)
    load.run(2.0)
    reference, zeus = with_zeus(device, load, LONGEST)
    results.put("zeus", zeus)
    if reference.joules is None:
        results.cannot(str(reference.unavailable_reason))
        return
    results.put("meter", described(reference))
    rows: list[dict[str, Any]] = []
    left_out = []
    for seconds in WINDOWS * ROUNDS:  # every length once, then once more
        if results.left < seconds + CLOSING:
            left_out.append(seconds)
            continue
        rows.append(held_against(window(device, load, seconds), reference))
        results.put("windows", rows)
    results.put("windows_left_out", left_out)
    results.put("by_length", by_length(rows))


def described(reference: Energy) -> dict[str, Any]:
    """What the longest window tells of meter and load."""
    assert reference.joules is not None
    same = ("method", "tick_seconds", "lag_seconds", "seconds", "joules", "bound_joules")
    idle = None if reference.net_joules is None else (reference.joules - reference.net_joules) / reference.seconds
    found = {name: getattr(reference, name) for name in same} | {"flags": list(reference.flags)}
    return found | {"idle_watts": idle, "load_watts": reference.joules / reference.seconds}


def held_against(row: Energy, reference: Energy) -> dict[str, Any]:
    """One window: relative error of its power, what it states as its bound, and whether both bounds cover the error."""
    assert reference.joules is not None
    assert reference.bound_joules is not None
    found: dict[str, Any] = {"seconds": row.seconds, "joules": row.joules, "bound_joules": row.bound_joules}
    found |= {"flags": list(row.flags), "unavailable_reason": row.unavailable_reason}
    if row.joules and row.bound_joules is not None:
        watts = reference.joules / reference.seconds
        error, bound = row.joules / row.seconds / watts - 1, row.bound_joules / row.joules
        covered = abs(error) <= bound + reference.bound_joules / reference.joules
        found |= {"error": error, "bound": bound, "covered": covered}
    return found


def by_length(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and largest error for each nominal length, beside the median of the stated bounds."""
    found = []
    for seconds in WINDOWS:
        known = [row for row in rows if "error" in row and abs(row["seconds"] - seconds) < 0.25 * seconds]
        errors, bounds = [abs(row["error"]) for row in known], [row["bound"] for row in known]
        medians = (statistics.median(values) if values else None for values in (errors, bounds))
        entry = {"seconds": seconds, "n": len(known), "covered": sum(row["covered"] for row in known)}
        entry |= dict(zip(("median_error", "median_bound"), medians, strict=True))
        found.append(entry | {"largest_error": max(errors, default=None)})
    return found


def main() -> None:
    """Check and write."""
    chosen = options(__doc__).parse_args()
    results = Results(chosen.out, chosen.seconds)
    check(device_of(chosen.device), results)
    print(json.dumps({key: value for key, value in results.found.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
