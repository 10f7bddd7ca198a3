"""The typical time of a run's steps, against values worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from ldbench.meters.step_times import CudaMarks, HostMarks, StepKind, StepTimes

CPU = torch.device("cpu")
STEP, CHECK, FIRST = StepKind(0, "step", 0), StepKind(0, "check", 0), StepKind(0, "first", 0)


class FakeMarks(HostMarks):
    """A host's clock that stands still until ``now`` is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def take(self) -> float:  # type: ignore[override]
        return self.now


class Watch:
    """Step times under a clock that a test moves."""

    def __init__(self) -> None:
        self.marks = FakeMarks()
        self.times = StepTimes(CPU, self.marks)

    def begin(self, wait: float = 0.0) -> None:
        self.marks.now += wait
        self.times.begin()

    def steps(self, kind: StepKind, *seconds: float, apart: float = 0.0) -> None:
        for each in seconds:
            self.marks.now += each
            self.times.lap(kind, apart)

    def counted(self) -> dict[tuple[int, str, int, int], tuple[int, float]]:
        told = self.times.record()
        return {
            (row["dropped"], row["kind"], row["left_out"], row["image_side"] or 0): (
                row["steps"],
                row["counted_seconds"],
            )
            for row in told
        }


def test_a_step_that_took_long_counts_as_the_others_do() -> None:
    watch = Watch()
    watch.begin()
    watch.steps(STEP, 1.0, 1.0, 50.0, 1.0, 1.0)
    assert watch.counted() == {STEP: (5, 5.0)}
    assert watch.times.typical_seconds(2.5) == 7.5
    watch.steps(STEP, 2.0, 2.0, 2.0)
    [row] = watch.times.record()  # 1 1 1 1 2 2 2 50
    assert (row["p20_seconds"], row["median_seconds"], row["counted_seconds"]) == (1.0, 1.5, 12.0)
    assert row["p80_seconds"] == pytest.approx(2.0)


def test_each_kind_of_step_has_a_median_of_its_own() -> None:
    watch = Watch()
    watch.begin()
    for _ in range(3):
        watch.steps(STEP, 1.0, 1.0, 1.25)
        watch.steps(CHECK, 3.0)
        watch.steps(StepKind(0, "step", 2), 0.5)
        watch.steps(StepKind(4, "step", 0), 0.25)
        watch.steps(StepKind(0, "step", 0, 16), 0.125)
    assert watch.counted() == {
        STEP: (9, 9.0),
        CHECK: (3, 9.0),
        StepKind(0, "step", 2): (3, 1.5),
        StepKind(4, "step", 0): (3, 0.75),
        StepKind(0, "step", 0, 16): (3, 0.375),
    }
    assert watch.times.typical_seconds(0.0) == 20.625


def test_first_steps_and_kinds_of_one_or_two_count_as_they_were() -> None:
    watch = Watch()
    for first in (7.0, 1.0, 2.0, 1.0):
        watch.begin(wait=1000.0)  # between two spans no step runs
        watch.steps(FIRST, first)
    watch.steps(CHECK, 1.0, 9.0)
    watch.steps(StepKind(3, "check", 0), 30.0)
    assert watch.counted() == {FIRST: (4, 11.0), CHECK: (2, 10.0), StepKind(3, "check", 0): (1, 30.0)}
    watch.steps(CHECK, 1.0)
    assert watch.counted()[CHECK] == (3, 3.0)


def test_what_is_accounted_for_elsewhere_is_taken_off() -> None:
    watch = Watch()
    watch.begin()
    watch.steps(CHECK, 1.5)
    watch.steps(CHECK, 61.5, apart=60.0)
    watch.steps(STEP, 1.0, apart=1.0 + 1e-9)  # two clocks never quite agree
    assert watch.counted() == {CHECK: (2, 3.0), STEP: (1, 0.0)}
    assert watch.times.typical_seconds(60.0) == 63.0


def test_a_run_without_a_step_has_no_typical_time() -> None:
    watch = Watch()
    assert watch.times.typical_seconds(3.0) is None
    watch.begin()
    assert watch.times.record() == []
    assert watch.times.typical_seconds(3.0) is None


def test_the_next_step_is_a_first_one_until_it_was_made() -> None:
    watch = Watch()
    watch.begin()
    assert watch.times.fresh
    watch.steps(FIRST, 1.0)
    assert not watch.times.fresh
    watch.begin()
    assert watch.times.fresh


def test_a_resumed_run_has_the_figures_of_one_that_was_not_interrupted() -> None:
    def first_half(watch: Watch) -> None:
        watch.begin()
        watch.steps(FIRST, 4.0)
        watch.steps(STEP, 1.0, 1.25, 1.5, 50.0)
        watch.steps(StepKind(2, "check", 1), 3.0, 0.125)

    def second_half(watch: Watch) -> None:
        watch.begin()
        watch.steps(FIRST, 2.0)
        watch.steps(STEP, 1.75, 0.5)
        watch.steps(StepKind(2, "check", 1), 3.0)

    whole, interrupted, resumed = Watch(), Watch(), Watch()
    for half in (first_half, second_half):
        half(whole)
    first_half(interrupted)
    state = interrupted.times.state_dict()
    assert all(seconds.dtype == torch.float64 for seconds in state["seconds"])
    interrupted.steps(STEP, 77.0)  # made again by the resumed run
    state["kinds"] = [list(kind) for kind in state["kinds"]]  # as a checkpoint gives them back
    resumed.marks.now = -5.0
    resumed.times.load_state_dict(state)
    second_half(resumed)
    assert resumed.counted() == whole.counted()
    assert resumed.times.typical_seconds(0.0) == 4.0 + 2.0 + 6 * 1.375 + 3 * 3.0
    assert sum(steps for steps, _ in resumed.counted().values()) == 11


# --- CUDA's events ---------------------------------------------------------------------------------------------------


class FakeDevice:
    """Works through what was put on its stream when it is waited for, as a GPU does."""

    def __init__(self) -> None:
        self.now, self.queue, self.made = 0.0, list[object](), 0

    def launch(self, seconds: float) -> None:
        self.queue.append(seconds)

    def wait(self) -> None:
        for entry in self.queue:
            if isinstance(entry, FakeEvent):
                entry.milliseconds = self.now * 1000
            elif isinstance(entry, float):
                self.now += entry
        self.queue.clear()

    def event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent()


class FakeEvent:
    """Knows its time once the device has come to it."""

    milliseconds: float | None = None

    def record(self, stream: FakeDevice) -> None:
        self.milliseconds = None
        stream.queue.append(self)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.milliseconds is not None, "the device has not come to it"
        assert end.milliseconds is not None, "the device has not come to it"
        return end.milliseconds - self.milliseconds


def test_events_are_read_when_the_device_has_come_past_them_and_used_again() -> None:
    device = FakeDevice()
    times = StepTimes(CPU, CudaMarks(lambda: device, device.event))
    lengths = itertools.cycle([4.0, 1.0, 1.0, 0.5, 90.0, 1.0])
    for _ in range(5):
        device.launch(1000.0)  # of the evaluation between two spans
        device.wait()
        times.begin()
        for kind in (FIRST, STEP, STEP, CHECK, STEP, STEP):
            device.launch(next(lengths))
            times.lap(kind)
        assert len(device.queue) == 13  # nothing has waited
        device.wait()
    told = {row["kind"]: (row["steps"], row["median_seconds"], row["counted_seconds"]) for row in times.record()}
    assert told["first"] == (5, pytest.approx(4.0), pytest.approx(20.0))
    assert told["step"] == (20, pytest.approx(1.0), pytest.approx(20.0))
    assert told["check"] == (5, pytest.approx(0.5), pytest.approx(2.5))
    assert device.made <= 7 + 4  # those of one span, and the one that each span ends with
