"""Seconds and joules of a training step with none, half and all but one of the stages dropped, through the engine.

    python -m benches.lab_steps [--out FILE.json] [--seconds 60] [--device cuda:0]

VGG-11-BN and ResNet-18 at full width on 32 x 32 images, batch 128, bfloat16 autocast, channels last, the store in
bfloat16 on the device; eager, SGD with momentum. Steps are not synchronised one by one, as in training: a figure is the
median over spans of 20 steps. Joules are those of a window of more than 5 s, divided by its steps. Images are random:
zeros would draw less power.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldbench.devices import synchronize
from ldbench.dropping.engine import LayerDropper
from ldbench.meters import NullEnergyMeter, energy_meter, measure
from ldbench.models.fit import ModelSpec
from ldbench.models.zoo import build_model
from ldbench.policies.base import NeverDrop
from ldbench.store.budget import StoreOptions
from ldbench.training.optim import autocast_for

from .kernel_timing import summary
from .lab_results import Results, device_of, options, surroundings

DROPPED = ("none", "half", "all but one")
SPAN = 20  # steps
CLOSING = 2.5  # seconds that a window's last tick, its lag and the idle power behind it take at most


class Sizes(NamedTuple):
    """How large everything is."""

    width: float
    batch: int
    images: int
    precision: str
    spans: int
    window_seconds: float
    least_steps: int  # of a span


GPU = Sizes(1.0, 128, 4096, "bf16", 9, 5.3, SPAN)
CPU = Sizes(0.125, 32, 128, "fp32", 3, 5.3, 4)
MODELS = ("vgg11_bn", "resnet18")


class Steps:
    """An engine that never drops by itself, with ``dropped`` of its stages gone."""

    def __init__(self, model: str, dropped: str, device: torch.device, sizes: Sizes) -> None:
        torch.manual_seed(0)
        network = build_model(ModelSpec(model, 1, 32, 10, width=sizes.width)).to(device).train()
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        images = torch.randn(sizes.images, 1, 32, 32).to(device).contiguous(memory_format=torch.channels_last)
        targets = (torch.arange(sizes.images) % 10).to(device)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
        self.device = device
        self.engine = LayerDropper(
            network,
            optimizer,
            (images, targets),
            batch_size=sizes.batch,
            epochs=10_000,
            policy=NeverDrop(),
            autocast=autocast_for(sizes.precision, device),
            channels_last=True,
            store=StoreOptions(dtype=sizes.precision),
        )
        last = len(self.engine.stages) - 1
        cut = {"none": 0, "half": last // 2, "all but one": last}[dropped]
        if cut:
            self.engine._drop(cut, "measured by hand", 0.0, "device")
        self._batches = self._minibatches()

    def _minibatches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from self.engine.loader(epoch)
            epoch += 1

    def run(self, count: int) -> None:
        """So many steps, without waiting for the device in between."""
        engine = self.engine
        for _ in range(count):
            x, y, _ = next(self._batches)
            engine.optimizer.zero_grad(set_to_none=True)
            with engine.autocast():
                loss = nn.functional.cross_entropy(engine(x), y)
            loss.backward()
            engine.optimizer.step()

    def seconds(self, spans: int, span: int) -> dict[str, Any]:
        """Seconds of a step."""
        self.run(span)
        found = []
        for _ in range(spans):
            synchronize(self.device)
            began = time.perf_counter()
            self.run(span)
            synchronize(self.device)
            found.append((time.perf_counter() - began) / span)
        return summary(found)

    def joules(self, seconds: float, span: int) -> dict[str, Any]:
        """Joules of a step over a window of at least ``seconds``, or why there are none."""
        done = 0
        with measure(self.device) as window:
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                self.run(span)
                synchronize(self.device)  # once a span: the window must not end long after its steps were queued
                done += span
        energy = window.energy
        found: dict[str, Any] = {"steps": done, "seconds": window.seconds}
        found["unavailable_reason"] = energy.unavailable_reason
        if energy.joules is not None and energy.bound_joules is not None:
            found |= {"joules_per_step": energy.joules / done, "bound_joules_per_step": energy.bound_joules / done}
            found |= {"watts": energy.joules / window.seconds, "method": energy.method, "flags": list(energy.flags)}
            found |= {"net_joules_per_step": None if energy.net_joules is None else energy.net_joules / done}
        return found


def described(steps: Steps, model: str, dropped: str) -> dict[str, Any]:
    """What a row is of."""
    engine = steps.engine
    store = 0 if engine.store is None else engine.store.nbytes
    return {"model": model, "dropped": dropped, "stages": len(engine.stages), "cut": engine.cut, "store_bytes": store}


def main() -> None:
    """Measure and write."""
    chosen = options(__doc__).parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    sizes = GPU if device.type == "cuda" else CPU
    results.put("environment", surroundings(device))
    results.put("sizes", sizes._asdict())
    meter = energy_meter(device)
    rows: list[dict[str, Any]] = []
    made: list[Steps] = []
    for model in MODELS:
        for dropped in DROPPED:
            made.append(Steps(model, dropped, device, sizes))
            rows.append(described(made[-1], model, dropped) | made[-1].seconds(sizes.spans, sizes.least_steps))
            results.put("steps", rows)
    for steps, row in zip(made, rows, strict=True):
        if isinstance(meter, NullEnergyMeter):
            row["energy"] = {"unavailable_reason": meter.reason}
        elif results.left < sizes.window_seconds + CLOSING:
            row["energy"] = {"unavailable_reason": f"{max(results.left, 0):.0f} s were left"}
        else:
            steps.run(sizes.least_steps)
            row["energy"] = steps.joules(sizes.window_seconds, sizes.least_steps)
        steps.engine.close()
        results.put("steps", rows)
    for row in rows:
        whole = next(r for r in rows if r["model"] == row["model"] and r["dropped"] == "none")
        row["of_a_whole_step"] = row["median_seconds"] / whole["median_seconds"]
    results.put("steps", rows)
    print(json.dumps(results.found, indent=1))


if __name__ == "__main__":
    main()
