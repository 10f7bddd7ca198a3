"""Meters on GPUs that exist on paper, loads whose power is known, and windows over them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st
from support.fake_nvml import Clock, FakeNvml, Gpu, QuickNvml, RealTimeNvml

from ldbench.meters import Energy, EnergyMeter
from ldbench.meters.counter import CounterMeter
from ldbench.meters.edges import Calibration, calibrate
from ldbench.meters.lag import with_counter_lag, with_power_lag
from ldbench.meters.nvml import BufferedPower, NvmlCounter, NvmlDevice, PolledPower
from ldbench.meters.sampled import sample_tick

pieces = st.lists(
    st.tuples(st.floats(0.005, 3.0), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0)), min_size=1, max_size=8
)
seeds = st.integers(0, 10**6)
lags = st.just(0.0) | st.floats(0.0, 0.3)


class Watcher:
    """Takes the readings after an edge at once, or late as a starved thread would; notes when the edges were.

    Without a delay they are left to the end of the window.
    """

    def __init__(self, clock: Clock, delay: float | None = 0.0) -> None:
        self.clock, self.delay, self.edges = clock, delay, list[float]()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.edges.append(self.clock.now)
        if self.delay is None:
            return work
        self.clock.sleep(self.delay)
        work()
        return lambda: None


def counter_meter(
    gpu: Gpu, clock: Clock, *, nvml: FakeNvml | None = None, least: float = 0.0
) -> tuple[CounterMeter, Watcher]:
    """A meter on the GPU's counter, its lag known, and when its edges are."""
    counter = NvmlCounter(NvmlDevice(gpu.uuid, nvml or FakeNvml(gpu)))
    watcher = Watcher(clock)
    calibration = Calibration(gpu.longest, 50.0, lag_seconds=gpu.lag + gpu.average)
    meter = CounterMeter([counter], calibration, minimum_seconds=least, clock=clock, sleep=clock.sleep, spawn=watcher)
    return meter, watcher


def one_window(meter: EnergyMeter, clock: Clock, seconds: float = 10.0) -> Energy:
    """The energy of a window of the length."""
    meter.start()
    clock.sleep(seconds)
    meter.stop()
    return meter.total()


def real_time_meter(nvml: RealTimeNvml, least: float) -> CounterMeter:
    """A meter on a GPU on the real clock."""
    counter = NvmlCounter(NvmlDevice(nvml.gpus[0].uuid, nvml))
    calibration = replace(calibrate([counter]), lag_seconds=0.01)
    return CounterMeter([counter], calibration, minimum_seconds=least, idle_after=lambda: calibrate([counter]))


def noisy(watts: float, seconds: float, share: float, rng: random.Random) -> list[tuple[float, float, float]]:
    """About ``watts``, each 5 to 50 ms something else."""
    lengths = [rng.uniform(0.005, 0.05) for _ in range(round(seconds / 0.0275))]
    return [(length, level, level) for length in lengths for level in [watts * max(0.0, rng.gauss(1.0, share))]]


class Step:
    """A load that begins where the power of a GPU steps up."""

    def __init__(self, clock: Clock, begins: float, error: Exception | None = None) -> None:
        self.clock, self.begins, self.error, self.finished = clock, begins, error, False
        self.warm_seconds = 0.0

    def prepare(self) -> float:
        self.clock.now = self.begins
        return self.warm_seconds

    def feed(self) -> None:
        if self.error is not None and self.clock.now > self.begins + 1:
            raise self.error

    def finish(self) -> None:
        self.finished = True


def stepping_gpu(
    seed: int,
    *,
    watts: float = 600.0,
    noise: float = 0.03,
    horizon: float = 16.0,
    then: list[tuple[float, float, float]] | None = None,
    error: Exception | None = None,
    **kind: float,
) -> tuple[Gpu, Step]:
    """A GPU that idles at 70 W, is at work for about 2.7 s at ``watts`` and then does ``then``; and the work."""
    rng, clock = random.Random(seed), Clock()
    idle, busy = noisy(70.0, 10.0, noise, rng), noisy(watts, 2.7, noise, rng)
    after = noisy(70.0, 10.0, noise, rng) if then is None else then
    clock.now = 100.0
    power = [*idle, (0.03, 70.0, watts), *busy, *after]
    gpu = Gpu(clock, seed=seed, power=power, horizon=horizon, **kind)  # type: ignore[arg-type]
    begins = gpu.knots[len(idle)]
    clock.now = begins - 2.5
    return gpu, Step(clock, begins, error)


def calibrated_counter(gpu: Gpu, load: Step | None) -> Calibration:
    """What is found out about the GPU's counter before it is used."""
    clock, counter = gpu.clock, NvmlCounter(NvmlDevice(gpu.uuid, QuickNvml(gpu)))
    known = calibrate([counter], clock=clock, sleep=clock.sleep)
    return with_counter_lag(known, counter, load, clock=clock, sleep=clock.sleep)


def calibrated_power(gpu: Gpu, load: Step | None, *, stamped: bool = False) -> Calibration:
    """What is found out about the GPU's power sensor before it is used."""
    clock, device = gpu.clock, NvmlDevice(gpu.uuid, QuickNvml(gpu))
    source = BufferedPower(device, clock, clock) if stamped else PolledPower(device, clock)
    known = sample_tick(source, clock=clock, sleep=clock.sleep)
    return with_power_lag(known, source, load, clock=clock, sleep=clock.sleep)
