"""What the energy meter of this machine is worth: its tick, idle power, and how far short windows are off.

    python -m benches.meter_check --out FILE.json [--device cuda:0]

A constant load runs in windows of 0.2 to 30 s. The longest window gives the power that the others are held against, beside
the bound that each window states for itself. Where Zeus (the package ``zeus``) is installed, it meters the longest window
together with ours. About 90 seconds; where nothing can be metered, the file says why.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ldbench.costs import synchronize
from ldbench.meters import Energy, NullEnergyMeter, energy_meter
from ldbench.record import environment, write_json
from ldbench.runner import resolve_device

WINDOWS = {0.2: 5, 0.5: 5, 1.0: 5, 2.0: 5, 5.0: 3, 10.0: 2, 30.0: 1}  # seconds: how many


class Load:
    """Matrix products, queued a little ahead of the device."""

    def __init__(self, device: torch.device) -> None:
        side = 8192 if device.type == "cuda" else 512
        self.device = device
        self.x = torch.randn(
            side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
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


def check(device: torch.device) -> dict[str, Any]:
    """Everything that goes into the file."""
    found: dict[str, Any] = {"environment": environment(device)}
    meter = energy_meter(device)
    if isinstance(meter, NullEnergyMeter):
        return found | {"unavailable_reason": meter.reason}
    load = Load(device)
    load.run(3.0)
    longest = max(WINDOWS)
    reference, found["zeus"] = with_zeus(device, load, longest)
    if reference.joules is None:
        return found | {"unavailable_reason": reference.unavailable_reason}
    watts = reference.joules / reference.seconds
    idle = None if reference.net_joules is None else (reference.joules - reference.net_joules) / reference.seconds
    found |= {
        "method": reference.method, "tick_seconds": reference.tick_seconds, "idle_watts": idle, "load_watts": watts,
        "flags": list(reference.flags), "windows": [],
    }  # fmt: skip
    for seconds, count in WINDOWS.items():
        rows = [window(device, load, seconds) for _ in range(count)] if seconds < longest else [reference]
        known = [row for row in rows if row.joules is not None and row.bound_joules is not None]
        errors = [abs(row.joules / row.seconds / watts - 1) for row in known if row.joules is not None]
        bounds = [row.bound_joules / row.joules for row in known if row.joules and row.bound_joules is not None]
        found["windows"].append(
            {
                "seconds": seconds, "n": len(known),
                "median_error": statistics.median(errors) if errors else None,
                "largest_error": max(errors, default=None), "median_bound": statistics.median(bounds) if bounds else None,
                "unavailable_reason": None if known else rows[0].unavailable_reason,
            }
        )  # fmt: skip
    return found


def main() -> None:
    """Check and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    found = check(resolve_device(options.device))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, found)
    print(json.dumps({key: value for key, value in found.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
