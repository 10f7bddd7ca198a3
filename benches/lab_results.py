"""What a part of the lab's run has found so far, in one JSON file that is whole at any time, and its seconds left."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from ldbench.devices import resolve_device
from ldbench.meters import Unavailable
from ldbench.meters import nvml as gpu
from ldbench.records.cell_files import write_json
from ldbench.records.environment import environment

STARTING = 9.0  # seconds from the start of a process until torch is there and this module counts


class Results:
    """Findings by name, written as they come.

    Args:
        path: the file; None keeps them in memory. What an earlier, unfinished try left there is ``earlier``.
        seconds: bound of the process, its start included.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path, self.ends = path, time.monotonic() + seconds - STARTING
        self.found: dict[str, Any] = {}
        self.earlier: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    @property
    def left(self) -> float:
        """Seconds left; below 0 where the bound has passed."""
        return self.ends - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        """Add a finding and write the file."""
        self.found[name] = value
        if self.path is not None:
            write_json(self.path, self.found)

    def cannot(self, reason: str) -> None:
        """This machine has nothing to find here, and why."""
        self.put("unavailable_reason", reason)


def surroundings(device: torch.device) -> dict[str, Any]:
    """Hardware and versions as the records have them; the driver's version from NVML where the system lacks it."""
    found = environment(device)
    if device.type == "cuda" and found["driver"] is None:
        with contextlib.suppress(Unavailable):
            found["driver"] = gpu.driver_version(gpu.load())
    return found


def device_of(name: str) -> torch.device:
    """The device of this name, current from now on: events, streams and graphs belong to the current one.

    Raises ``UserError``.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line that all parts have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of the findings; printed alone otherwise")
    parser.add_argument("--seconds", type=float, default=120.0, help="bound; what does not fit is left out")
    parser.add_argument("--device", default="auto", help="auto, cuda:0 or cpu; a CPU gets small sizes")
    return parser
