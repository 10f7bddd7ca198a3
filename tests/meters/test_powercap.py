"""CPU packages metered through powercap."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_nvml import Clock

from ldbench.meters import Unavailable, energy_meter
from ldbench.meters.powercap import PowercapCounter, package_counters


def powercap_tree(root: Path, *, packages: int = 2, most: int = 262_143_328_850) -> list[Path]:
    zones = []
    for i in range(packages):
        for name, label in ((f"intel-rapl:{i}", f"package-{i}"), (f"intel-rapl:{i}:0", "core")):
            zone = root / name
            zone.mkdir(parents=True)
            (zone / "name").write_text(label + "\n")
            (zone / "energy_uj").write_text("1000000\n")
            (zone / "max_energy_range_uj").write_text(f"{most}\n")
        zones.append(root / f"intel-rapl:{i}")
    (root / "intel-rapl").mkdir()
    (root / "intel-rapl-mmio:0").mkdir()
    (root / "intel-rapl-mmio:0" / "name").write_text("package-0\n")
    return zones


def test_packages_are_counted_once_and_without_their_parts(tmp_path: Path) -> None:
    zones = powercap_tree(tmp_path)
    counters = package_counters(tmp_path)
    assert [counter.zone for counter in counters] == zones
    (zones[0] / "energy_uj").write_text("3500000")
    assert [counter.read() for counter in counters] == [2.5, 0.0]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 899_999), min_size=1, max_size=20))
def test_a_wrapping_counter_is_unwrapped(steps: list[int]) -> None:
    most, value = 900_000, 850_000
    zone = SimpleNamespace(name="intel-rapl:0")
    shown = {"max_energy_range_uj": most, "energy_uj": value}

    class Shown(PowercapCounter):
        def _number(self, name: str) -> int:
            return shown[name]

    counter = Shown(zone, clock=lambda: 0.0)  # type: ignore[arg-type]
    for step in steps:
        shown["energy_uj"] = (shown["energy_uj"] + step) % most
        counter.read()
    assert counter.read() == pytest.approx(sum(steps) / 1e6)


def test_a_package_not_read_for_too_long_gives_no_figure(tmp_path: Path) -> None:
    powercap_tree(tmp_path, packages=1, most=1_000_000_000)  # 1 kJ: half a second at the most watts there are
    clock = Clock()
    (counter,) = package_counters(tmp_path, clock=clock)
    assert counter.heartbeat_seconds == 0.5
    clock.sleep(100.0)
    counter.open_window()
    assert counter.read() == 0.0
    clock.sleep(100.0)
    with pytest.raises(Unavailable, match="wrap"):
        counter.read()


def test_no_powercap_no_package_and_no_permission_are_told_apart(tmp_path: Path) -> None:
    def reason(root: Path) -> str:
        return energy_meter(torch.device("cpu"), powercap=root).total().unavailable_reason or ""

    assert "there is no" in reason(tmp_path / "absent")
    assert "no CPU package" in reason(tmp_path)
    zone = powercap_tree(tmp_path, packages=1)[0]
    assert "did not move" in reason(tmp_path)

    class Closed(type(zone)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            raise PermissionError(13, "Permission denied")

    with pytest.raises(Unavailable, match="root only"):
        PowercapCounter(Closed(zone))


def test_two_cpu_packages_are_metered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap_tree(tmp_path)

    def number(counter: PowercapCounter, name: str) -> int:
        """50 W a package, a tick of 1 ms."""
        return 10**10 if name.startswith("max") else int(time.perf_counter() // 0.001 * 50_000) % 10**10

    monkeypatch.setattr(PowercapCounter, "_number", number)
    meter = energy_meter(torch.device("cpu"), minimum_seconds=0.2, powercap=tmp_path)
    meter.start()
    time.sleep(0.3)
    meter.stop()
    energy = meter.total()
    assert energy.joules is not None, energy.unavailable_reason
    assert energy.bound_joules is not None
    assert abs(energy.joules - 100 * energy.seconds) <= energy.bound_joules
    assert energy.net_bound_joules is not None
    assert abs(energy.net_joules or 0.0) <= energy.net_bound_joules
    assert energy.method == "powercap"
