"""Timing that the kernel script uses: device events, turns between peers, medians with p20, p80 and n."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], object]
REPEATS = 40  # timed calls per figure


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        versions["triton"] = "none"
    if device.type == "cpu":
        return {"device": f"cpu {platform.machine()}", "threads": torch.get_num_threads(), **versions}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={properties.uuid}"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "device": properties.name, "driver": driver, "cuda": torch.version.cuda, "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory, **versions,
    }  # fmt: skip


def one(call: Call, device: torch.device) -> float:
    """Seconds of one call on the device."""
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


def timed(calls: dict[str, list[Call]], device: torch.device, repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """Seconds of each named call; a call has a variant per set of inputs. Names take turns, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-3, repeats):
        for name, variants in calls.items():
            took = one(variants[turn % len(variants)], device)
            if turn >= 0:
                seconds[name].append(took)
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=10)
    return {"median_seconds": statistics.median(seconds), "p20": cuts[1], "p80": cuts[7], "n": len(seconds)}


def as_graph(call: Call) -> Call:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def rotations(size: int, device: torch.device) -> int:
    """Sets of inputs of ``size`` bytes that together exceed the L2 three times."""
    if device.type == "cpu":
        return 1
    return max(1, math.ceil(3 * torch.cuda.get_device_properties(device).L2_cache_size / max(size, 1)))


def against(times: dict[str, dict[str, float]], ours: str, moved: int, copy: float | None) -> dict[str, Any]:
    """The times, with bandwidth as a share of the copy and each peer's time over ours."""
    mine = times[ours]["median_seconds"]
    return {
        "times": times, "bytes": moved, "bytes_per_second": moved / mine, "share_of_copy": moved / mine / copy if copy else None,
        "times_faster_than": {name: row["median_seconds"] / mine for name, row in times.items() if name != ours},
    }  # fmt: skip
