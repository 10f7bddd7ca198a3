"""One setup for all benchmarks of training: narrow networks on random images, on the GPU where there is one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .places import LayerDropper, ModelSpec, NeverDrop, build_model, keep_freed_memory, split_stages, synchronize

MODELS = ["vgg11_bn", "resnet18"]
BATCH, IMAGES, SIDE, CLASSES = 64, 256, 32, 10


def device(threads: int = 1) -> torch.device:
    """The first GPU, else the CPU; with one thread, since two that wait for each other feel every other process."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    torch.set_num_threads(threads)
    keep_freed_memory()
    return torch.device("cpu")


def machine_key() -> str:
    """What results are keyed by beside asv's machine: the GPU model, which its machine file has no field for."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def network(name: str, width: float = 0.25) -> nn.Module:
    """A narrow network with fixed weights."""
    torch.manual_seed(0)
    return build_model(ModelSpec(name, 1, SIDE, CLASSES, width=width)).to(device()).train()


def random_data(count: int) -> tuple[Tensor, Tensor]:
    """So many random images and their classes."""
    images = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return images.to(device()), (torch.arange(count) % CLASSES).to(device())


def dropper(name: str, width: float = 0.25, images: int = IMAGES, batch: int = BATCH) -> LayerDropper:
    """An engine around ``network`` that never drops by itself."""
    model = network(name, width)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return LayerDropper(model, optimizer, random_data(images), batch_size=batch, epochs=1000, policy=NeverDrop())


class Brighter:
    """Random images, every view of them brighter than the one before."""

    def __init__(self, count: int) -> None:
        self.images, self.targets = random_data(count)

    def __len__(self) -> int:
        return len(self.targets)

    def of_view(self, samples: Tensor, view: int) -> int:
        return view

    def batch(self, indices: Tensor, augment: int | None = None) -> tuple[Tensor, Tensor]:
        where = indices.to(self.images.device)
        return self.images[where] + (augment or 0), self.targets[where]


def reads(name: str, views: int, images: int = 1024) -> Callable[[], None]:
    """A read of a minibatch from a store of so many views of each image, behind the first half of the stages."""
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    options = {"views": views} if views > 1 else {}
    engine = LayerDropper(
        model, optimizer, Brighter(images), batch_size=BATCH, epochs=1000, policy=NeverDrop(), **options
    )
    engine._drop((len(engine.stages) - 1) // 2, "benchmark", 0.0, "device")
    batches, number = torch.randperm(images).split(BATCH), 0

    def read() -> None:
        nonlocal number
        engine.activations.batch(batches[number % len(batches)], number=number)
        number += 1
        synchronize(engine.device)

    return read


def plain_step(name: str, cut: int) -> Callable[[], None]:
    """One step by hand of what is left behind ``cut``, over tensors that hold what it reads."""
    stages, (inputs, targets) = split_stages(network(name)), random_data(IMAGES)
    with torch.no_grad():
        inputs = stages[:cut](inputs)
    live = stages[cut:]
    optimizer = torch.optim.SGD(live.parameters(), 0.05, momentum=0.9)

    def step() -> None:
        index = torch.randint(IMAGES, (BATCH,))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(live(inputs[index]), targets[index]).backward()
        optimizer.step()
        synchronize(inputs.device)

    return step


def train_step(engine: LayerDropper) -> None:
    """One whole step, minibatch included, synchronised at the end."""
    x, y, _ = next(engine.loader(0))
    engine.optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(engine(x), y).backward()
    engine.optimizer.step()
    synchronize(engine.device)


def samples(work: Callable[[], object], repeats: int = 9, least_seconds: float = 0.03) -> dict[str, object]:
    """Seconds of ``work`` in the form that gives asv a median and an interval.

    A sample is the fastest of three spans of at least ``least_seconds``: what disturbs a measurement only adds to it.
    """
    work()
    count = max(1, math.ceil(least_seconds / max(_span(work, 1), 1e-6)))
    return {"samples": [min(_span(work, count) for _ in range(3)) / count for _ in range(repeats)], "number": 1}


def ratio_samples(
    pair: Callable[[], tuple[Callable[[], object], Callable[[], object]]], repeats: int = 9, least_seconds: float = 0.03
) -> dict[str, object]:
    """Seconds of a piece of work over those of its peer, in turns: what slows the machine for a while slows both alike.

    ``pair`` makes both anew for every sample, at other addresses: one process is lucky or unlucky with where its
    buffers lie (16 % of a gather), and an interval that holds one process's luck alone calls the next one a change.
    """
    ratios, ballast = [], []
    for sample in range(repeats):
        ballast.append(torch.empty((sample * 40_503) % 65_536 + 1))
        works = pair()
        for work in works:
            work()
        counts = [max(1, math.ceil(least_seconds / max(_span(work, 1), 1e-6))) for work in works]
        spans = [[_span(work, count) / count for work, count in zip(works, counts, strict=True)] for _ in range(3)]
        ratios.append(min(span[0] for span in spans) / min(span[1] for span in spans))
    return {"samples": ratios, "number": 1}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and both ends."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "p25": low, "p75": high, "min": min(values), "max": max(values), "n": len(values)}


def _span(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - began
