"""Energies: a figure or a reason, and their sums over windows, devices and sessions."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from ldbench.meters import Energy, add_devices
from ldbench.meters.energy import Window, add_sessions, add_windows, energy_from


def test_an_energy_has_a_figure_or_a_reason_and_never_both_or_neither() -> None:
    for arguments in ((None, None, None), (1.0, 1.0, "why"), (1.0, None, None)):
        with pytest.raises(ValueError):
            Energy(*arguments)


def test_many_short_windows_do_not_make_a_long_one() -> None:
    short = [Window(1.0, 99.0, 101.0, 100.0)] * 60
    energy = add_windows(short, method="x", tick_seconds=0.1)
    assert energy.joules is None
    assert "too_short" in energy.flags
    assert energy.seconds == 60.0
    assert add_windows([], method="x", tick_seconds=0.1).unavailable_reason == "nothing was measured"


def test_processes_side_by_side_add_energy_and_take_the_longest_time() -> None:
    a = Energy(10.0, 1.0, None, 8.0, 1.5, "nvml counter", 0.1, 7.0, 1, ("throttled",))
    b = Energy(20.0, 2.0, None, 15.0, 2.5, "nvml counter", 0.02, 9.0, 1, ("co_tenant",))
    both = add_devices([a, b])
    assert (both.joules, both.bound_joules, both.net_joules, both.net_bound_joules) == (30.0, 3.0, 23.0, 4.0)
    assert (both.seconds, both.tick_seconds, both.flags) == (9.0, 0.1, ("co_tenant", "throttled"))
    missing = add_devices([a, Energy(None, None, "no driver")])
    assert missing.joules is None
    assert missing.unavailable_reason == "device 1: no driver"


def test_the_lag_goes_with_the_figure_and_records_without_one_are_read() -> None:
    a, b = (Energy(1.0, 0.1, None, flags=("x",), lag_seconds=lag) for lag in (0.1, 0.3))
    unknown = Energy(1.0, 0.1, None)
    assert add_devices([a, b, unknown]).lag_seconds == 0.3
    assert add_devices([unknown]).lag_seconds is None
    assert add_sessions(b, a, trained=True).lag_seconds == 0.3
    stored = asdict(a)
    assert energy_from(stored) == a
    del stored["lag_seconds"]
    assert energy_from(stored).lag_seconds is None
