"""CPU package energy from the kernel's powercap tree (RAPL). It counts whole packages: every process of the machine.

A zone's ``energy_uj`` is a counter of microjoules that starts again at 0 above ``max_energy_range_uj``. It is read
often enough to miss no wrap: at least twice in the time a package of 1,000 W, more than any, needs for the range.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldbench.meters.energy import Unavailable

POWERCAP = Path("/sys/class/powercap")
MOST_WATTS = 1000.0
# The share of the packages' busy time that other processes may take before they are said to spoil the figure.
CO_TENANT_SHARE = 0.05


class PowercapCounter:
    """One package: joules since this object was made, wraps undone."""

    method = "powercap"
    resolution_joules = 0.0005  # steps of 61 microjoules are usual; a wrap may lose one more

    def __init__(
        self, zone: Path, *, clock: Callable[[], float] = time.perf_counter, proc: Path = Path("/proc")
    ) -> None:
        self.zone, self._clock, self._proc, self._lock = zone, clock, proc, threading.Lock()
        self._range = self._number("max_energy_range_uj")
        if self._range <= 0:
            raise Unavailable(f"{zone}/max_energy_range_uj holds {self._range}")
        self.heartbeat_seconds: float | None = self._range / 1e6 / MOST_WATTS / 2
        self._last, self._read_at, self._total = self._number("energy_uj"), clock(), 0

    def open_window(self) -> None:
        """Forget how long ago the counter was read: wraps between windows do not matter."""
        with self._lock:
            self._last, self._read_at = self._number("energy_uj"), self._clock()

    def read(self) -> float:
        """Joules since this object was made. Raises ``Unavailable`` when a wrap may have been missed."""
        with self._lock:
            value, now = self._number("energy_uj"), self._clock()
            assert self.heartbeat_seconds is not None
            if now - self._read_at > 2 * self.heartbeat_seconds:
                raise Unavailable("the CPU's energy counter was not read for so long that a wrap may have been missed")
            self._total += value - self._last if value >= self._last else value + self._range - self._last
            self._last, self._read_at = value, now
            return self._total / 1e6

    def conditions(self) -> dict[str, Any]:
        """Busy CPU seconds of the machine and of this process with its children."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        try:
            fields = [int(f) for f in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return {}
        busy = sum(fields) - fields[3] - fields[4]  # all but idle and iowait
        return {"zone": self.zone.name, "busy_seconds": busy / os.sysconf("SC_CLK_TCK"), "own_seconds": own}

    def spoilt(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> set[str]:
        """Whether other processes used the CPU too."""
        if not before or not after:
            return set()
        busy = after["busy_seconds"] - before["busy_seconds"]
        others = busy - (after["own_seconds"] - before["own_seconds"])
        return {"co_tenant"} if others > CO_TENANT_SHARE * max(busy, seconds) else set()

    def _number(self, name: str) -> int:
        path = self.zone / name
        try:
            return int(path.read_text())
        except PermissionError:
            raise Unavailable(f"{path} is not readable by this user (root only on most systems)") from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"{path} cannot be read: {error}") from None


def package_counters(root: Path = POWERCAP, *, clock: Callable[[], float] = time.perf_counter) -> list[PowercapCounter]:
    """One counter per CPU package. Raises ``Unavailable`` with the reason where there is none to be read."""
    try:
        zones = sorted((z for z in root.iterdir() if z.name.count(":") == 1), key=lambda z: (len(z.name), z.name))
    except FileNotFoundError:
        raise Unavailable(
            f"this machine shows no CPU energy: there is no {root} (virtual machine, container or old kernel)"
        ) from None
    except OSError as error:
        raise Unavailable(f"{root} is not readable: {error.strerror}") from None
    packages: dict[str, Path] = {}
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        # The same package may be offered twice (intel-rapl and intel-rapl-mmio): one of them counts.
        if name.startswith("package"):
            packages.setdefault(name, zone)
    if not packages:
        raise Unavailable(f"{root} holds no CPU package")
    return [PowercapCounter(zone, clock=clock) for zone in packages.values()]
