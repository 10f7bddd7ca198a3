"""A GPU that exists on paper, and an NVML that plays it: every function is autospecced against the real bindings."""

from __future__ import annotations

import itertools
import os
import random
import time
from bisect import bisect_right
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pynvml
import torch

ONE, TWO = "GPU-11111111-aaaa-0000-0000-000000000000", "GPU-22222222-bbbb-0000-0000-000000000000"
LOAD = [(1.0, 400.0, 400.0)]  # power that stays


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Gpu:
    """Piecewise linear power; a counter and a power sensor that publish at jittered ticks of any phase.

    Args:
        power: (seconds, watts at the begin, watts at the end) again and again; None makes power bend only where ticks
            show it.
        mean_power: the sensor publishes the mean since its last tick instead of the power at the tick.
        latency: seconds a reading takes, at most.
        lag: what is published is that many seconds old.
        average: and the mean of that many seconds before: nothing older than ``lag`` + ``average`` is in it.
    """

    def __init__(
        self,
        clock: Clock,
        uuid: str = ONE,
        *,
        seed: int = 0,
        power: list[tuple[float, float, float]] | None = None,
        tick: float = 0.1,
        jitter: float = 0.0,
        horizon: float = 120.0,
        mean_power: bool = False,
        latency: float = 0.0,
        lag: float = 0.0,
        average: float = 0.0,
    ) -> None:
        self.clock, self.uuid, self.latency, self.random = clock, uuid, latency, random.Random(seed)
        self.lag, self.average = lag, average
        end = clock.now + horizon
        self.ticks = [clock.now - 3 * tick * (1 + self.random.random())]
        while self.ticks[-1] < end:
            self.ticks.append(self.ticks[-1] + tick * (1 + jitter * self.random.uniform(-1, 1)))
        self.longest = max(b - a for a, b in itertools.pairwise(self.ticks))
        self.knots, self.watts, self.joules, self.areas = [self.ticks[0] - lag - average], [], [0.0], [0.0]
        if power is None:
            levels = [self.random.uniform(30, 700) for _ in self.ticks]
            pieces = (
                (b - a, p, q)
                for (a, b), (p, q) in zip(itertools.pairwise(self.ticks), itertools.pairwise(levels), strict=False)
            )
        else:
            pieces = itertools.cycle(power)
        for seconds, first, last in pieces:
            self.knots.append(self.knots[-1] + seconds)
            self.watts.append((first, last))
            self.areas.append(self.areas[-1] + seconds * (self.joules[-1] + seconds * (2 * first + last) / 6))
            self.joules.append(self.joules[-1] + seconds * (first + last) / 2)
            if self.knots[-1] > self.ticks[-1]:
                break
        self.millijoules = [int(self.shown(t) * 1000) for t in self.ticks]
        if mean_power:
            means = [(self.shown(b) - self.shown(a)) / (b - a) for a, b in itertools.pairwise(self.ticks)]
            self.published = [means[0], *means]
        elif average:
            self.published = [(self.energy(t - lag) - self.energy(t - lag - average)) / average for t in self.ticks]
        else:
            self.published = [self.power(t - lag) for t in self.ticks]
        self.mig, self.virtual, self.offset = 0, pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE, 0
        self.pids = [os.getpid()]
        self.violation_ns, self.throttle = 0, 0

    def _piece(self, t: float) -> int:
        return max(0, min(bisect_right(self.knots, t) - 1, len(self.watts) - 1))

    def power(self, t: float) -> float:
        i = self._piece(t)
        first, last = self.watts[i]
        return first + (last - first) * (t - self.knots[i]) / (self.knots[i + 1] - self.knots[i])

    def energy(self, t: float) -> float:
        """The truth: joules up to ``t``."""
        i = self._piece(t)
        return self.joules[i] + (t - self.knots[i]) * (self.watts[i][0] + self.power(t)) / 2

    def _area(self, t: float) -> float:
        """Integral of the energy up to ``t``."""
        i, x = self._piece(t), t - self.knots[self._piece(t)]
        return self.areas[i] + x * (self.joules[i] + x * (2 * self.watts[i][0] + self.power(t)) / 6)

    def shown(self, t: float) -> float:
        """The energy that a tick at ``t`` publishes."""
        late = t - self.lag
        if not self.average:
            return self.energy(late)
        return (self._area(late) - self._area(late - self.average)) / self.average

    def _look(self) -> int:
        """The last tick, as seen somewhere within a reading that takes its time."""
        self.clock.now += self.random.uniform(0, self.latency / 2)
        seen = bisect_right(self.ticks, self.clock.now) - 1
        self.clock.now += self.random.uniform(0, self.latency / 2)
        return seen

    def counter(self) -> int:
        return self.millijoules[self._look()] + self.offset

    def milliwatts(self) -> int:
        return round(self.published[self._look()] * 1000)

    def samples(self, since: float) -> list[tuple[float, float]]:
        """What was published after ``since``: (seconds, watts)."""
        first, last = bisect_right(self.ticks, since), bisect_right(self.ticks, self.clock.now)
        return list(zip(self.ticks[first:last], self.published[first:last], strict=True))


class FakeNvml:
    """The bindings as ldbench uses them; ``errors`` maps a function's name to the NVML error it raises."""

    def __init__(self, *gpus: Gpu, errors: dict[str, int] | None = None, missing: tuple[str, ...] = ()) -> None:
        self.gpus, self.errors, self.missing, self.calls = gpus, errors or {}, missing, 0
        played = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
            "nvmlDeviceGetHandleByUUID": self._by_uuid,
            "nvmlDeviceGetUUID": lambda handle: handle.uuid,
            "nvmlDeviceGetName": lambda handle: "Paper GPU",
            "nvmlSystemGetDriverVersion": lambda: "999.1",
            "nvmlDeviceGetMigMode": lambda device: [device.mig, device.mig],
            "nvmlDeviceGetVirtualizationMode": lambda handle: handle.virtual,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: handle.counter(),
            "nvmlDeviceGetPowerUsage": lambda handle: handle.milliwatts(),
            "nvmlDeviceGetFieldValues": self._fields,
            "nvmlDeviceGetSamples": self._samples,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=pid) for pid in handle.pids],
            "nvmlDeviceGetTemperature": lambda handle, sensor: 55,
            "nvmlDeviceGetClockInfo": lambda handle, type: 1980,
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: handle.throttle,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: handle.throttle,
            "nvmlDeviceGetViolationStatus": lambda device, perfPolicyType: SimpleNamespace(
                violationTime=device.violation_ns
            ),
        }
        for name, play in played.items():
            setattr(self, name, mock.create_autospec(getattr(pynvml, name), side_effect=self._watched(name, play)))
        for name in missing:
            delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """Constants and errors are the real ones; a function that is not played here does not exist."""
        if name.startswith("nvml"):
            raise AttributeError(f"fake NVML has no {name}")
        return getattr(pynvml, name)

    def _watched(self, name: str, play: Any) -> Any:
        def call(*args: Any) -> Any:
            self.calls += 1
            if name in self.errors:
                raise pynvml.NVMLError(self.errors[name])
            return play(*args)

        return call

    def _by_uuid(self, uuid: str) -> Gpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _fields(self, handle: Gpu, fieldIds: list[int]) -> list[Any]:
        assert fieldIds == [pynvml.NVML_FI_DEV_POWER_INSTANT]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=handle.milliwatts()))]

    def _samples(self, device: Gpu, sampling_type: int, timeStamp: int) -> tuple[int, list[Any]]:
        assert sampling_type == pynvml.NVML_TOTAL_POWER_SAMPLES
        new = device.samples(timeStamp / 1e6)
        if not new:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, [
            SimpleNamespace(timeStamp=round(t * 1e6), sampleValue=SimpleNamespace(uiVal=round(w * 1000)))
            for t, w in new
        ]


class QuickNvml(FakeNvml):
    """The same without the cost of a mock a call, for thousands of windows."""

    def __init__(self, *gpus: Gpu) -> None:
        super().__init__(*gpus)
        self.nvmlDeviceGetTotalEnergyConsumption = lambda handle: handle.counter()
        self.nvmlDeviceGetFieldValues = self._fields


class RealTimeNvml(FakeNvml):
    """A GPU at 400 W with a tick of 20 ms, on the real clock; ``work`` adds 300 W to that."""

    def __init__(self) -> None:
        super().__init__(Gpu(Clock(), power=LOAD))
        self.nvmlDeviceGetTotalEnergyConsumption = self._watched("counter", self._joules)
        self.work: list[float] = []  # begins and ends
        self.loads = 0

    def _joules(self, handle: Gpu) -> int:
        now = time.perf_counter() // 0.02 * 0.02
        worked = sum(sign * max(0.0, now - t) for t, sign in zip(self.work, itertools.cycle((1, -1)), strict=False))
        return int(1000 * (400 * now + 300 * worked))

    def prepare(self) -> float:
        """As a load, of which ``load`` counts how many were made."""
        return 0.0

    def feed(self) -> None:
        if len(self.work) % 2 == 0:
            self.work.append(time.perf_counter())

    def finish(self) -> None:
        self.work.append(time.perf_counter())

    def load(self, device: torch.device) -> RealTimeNvml:
        self.loads += 1
        return self
