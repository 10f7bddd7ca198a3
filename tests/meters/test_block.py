"""``measure``: seconds and energy of a block."""

from __future__ import annotations

import time

import pytest

import ldbench


def test_measure_gives_seconds_and_a_figure_or_a_reason() -> None:
    waited = []
    with ldbench.measure("cpu", synchronize=lambda: waited.append(1)) as m:
        time.sleep(0.02)
    assert 0.02 <= m.seconds < 5.0
    assert len(waited) == 2
    assert (m.energy_joules is None) == (m.energy_unavailable_reason is not None) == (m.energy_bound_joules is None)
    with pytest.raises(ZeroDivisionError), ldbench.measure("cpu") as m:
        _ = 1 / 0
    assert m.seconds > 0
    assert len(waited) == 2
