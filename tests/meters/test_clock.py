"""The clock of training."""

from __future__ import annotations

import time

import pytest
import torch
from support.fake_nvml import RealTimeNvml
from support.metering import real_time_meter

from ldbench.meters import TrainClock


def test_spans_of_training_share_a_window_until_something_else_comes() -> None:
    nvml = RealTimeNvml()
    clock = TrainClock(torch.device("cpu"), real_time_meter(nvml, 0.0))
    for span in range(4):
        with clock.running():
            time.sleep(0.05)
        if span % 2:
            clock.pause()
    energy = clock.energy.total()
    assert energy.windows == 2
    assert energy.seconds == pytest.approx(clock.seconds, abs=0.2)
