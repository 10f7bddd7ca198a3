"""Timing for the kernel scripts: many launches in one CUDA graph, turns between peers, medians with p20, p80 and n."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Call = Callable[..., object]
LAUNCHES = 20  # at least so many in one graph: a launch on an idle GPU costs 10 us, which would hide in a single one
REPEATS = 30  # timed replays per figure


def one(call: Call, device: torch.device) -> float:
    """Seconds of one call on the device; on a GPU between two events, the host's launch included."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def as_graph(calls: Sequence[Call]) -> Call:
    """The calls, one after another, as one CUDA graph; each is made once outside of it first.

    Raises what capture raises.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def repeated(variants: Sequence[Call], launches: int = LAUNCHES) -> list[Call]:
    """At least ``launches`` calls that go through all variants equally often."""
    return list(variants) * math.ceil(launches / len(variants))


def timed(
    calls: Mapping[str, Sequence[Call]],
    device: torch.device,
    repeats: int = REPEATS,
    launches: int = LAUNCHES,
    graphs: bool = True,
) -> dict[str, dict[str, Any]]:
    """Seconds of one call of each name; a name has a variant per set of inputs, used in rotation.

    On a GPU ``launches`` calls are captured in one CUDA graph, whose replays are timed by events and divided; "in" says
    so. What cannot be captured, and everything without ``graphs``, is timed call by call, launch included. Names take
    turns, so that drift hits all alike.
    """
    works: dict[str, tuple[Call, int, str]] = {}
    for name, variants in calls.items():
        batch = repeated(variants, launches if device.type == "cuda" else 1)
        work, kind = _in_turn(batch), "a loop" if device.type == "cpu" else "calls one by one"
        if device.type == "cuda" and graphs:
            with contextlib.suppress(RuntimeError):
                work, kind = as_graph(batch), "a graph"
                torch.cuda.synchronize(device)
        works[name] = work, len(batch), kind
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, repeats):
        for name, (work, count, _) in works.items():
            took = one(work, device) / count
            if turn >= 0:
                seconds[name].append(took)
    return {name: summary(values) | {"in": works[name][2]} for name, values in seconds.items()}


def _in_turn(calls: Sequence[Call]) -> Call:
    def work() -> None:
        for call in calls:
            call()

    return work


def host_seconds(call: Call, device: torch.device, repeats: int = 7, span: float = 0.15) -> dict[str, Any]:
    """What a call costs the host: wall clock over many calls that nobody waits for.

    Its inputs are to be so small that the GPU keeps up. ``span`` seconds of calls, 3 to 300, make one of ``repeats``
    samples.
    """
    _several(call, 3, device)  # compiles
    calls = min(300, max(3, int(span / _several(call, 3, device))))
    return summary([_several(call, calls, device) for _ in range(repeats)]) | {"calls": calls}


def _several(call: Call, count: int, device: torch.device) -> float:
    """Host seconds of one of ``count`` calls."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    took = (time.perf_counter() - began) / count
    _wait(device)
    return took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, p20, p80 and n."""
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"median_seconds": statistics.median(seconds), "p20": cuts[1], "p80": cuts[7], "n": len(seconds)}


def rotations(size: int, device: torch.device) -> int:
    """Sets of inputs of ``size`` bytes that together exceed the L2 three times."""
    if device.type == "cpu":
        return 1
    return max(1, math.ceil(3 * torch.cuda.get_device_properties(device).L2_cache_size / max(size, 1)))


def against(times: dict[str, dict[str, Any]], ours: str, moved: int, copy: float | None) -> dict[str, Any]:
    """The times, with bandwidth as a share of the copy and each peer's time over ours."""
    mine = times[ours]["median_seconds"]
    rate = moved / mine
    found = {"times": times, "bytes": moved, "bytes_per_second": rate, "share_of_copy": rate / copy if copy else None}
    peers = {name: row["median_seconds"] / mine for name, row in times.items() if name != ours}
    return found | {"times_faster_than": peers}


class TookTooLong(Exception):
    """Work was broken off at its bound."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Break the block off after ``seconds``, in the main thread, where ``TookTooLong`` is raised in it."""

    def ring(number: int, frame: object) -> None:
        raise TookTooLong(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def add_compiled(calls: dict[str, list[Call]], lines: Call, inputs: Sequence[tuple[Any, ...]], seconds: float) -> str:
    """Add compiled ``lines`` to the calls, a variant per inputs; why not, where that fails or takes longer."""
    if not seconds:
        return ""
    compiled = torch.compile(lines, dynamic=False)
    try:
        with bounded(seconds):
            for each in inputs:
                compiled(*each)
    except Exception as error:  # a peer that does not compile is a finding, not the end of the run
        torch._dynamo.reset()
        return " ".join(repr(error).split())[:200]
    calls["compiled"] = [functools.partial(compiled, *each) for each in inputs]
    return ""
