"""What the engine itself costs, and whether predicted savings are realised: ratios from interleaved runs.

    python -m benches.engine_overhead [--pairs 7] [--out FILE.json]

Three questions, each answered side by side in one process:

* ``full`` through the engine against a hand-written minimal loop over the same resident tensors, with that loop against
  itself as the noise floor;
* the same against an ordinary ``DataLoader`` with torchvision transforms;
* the share of ``full``'s time that a run with store saves, over the share that the cost table predicts for its drops.

Random images: contents do not change the time of a step. Narrow ResNet-18 at 32 x 32 pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ldbench.devices import keep_freed_memory, resolve_device, synchronize
from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.models.zoo import build_model
from ldbench.records.environment import environment
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.seeds import derive_seed, sample_order
from ldbench.training.loop import run_cell
from ldbench.training.optim import build_optimizer, learning_rate_factor
from ldbench.training.setup import Resident, model_spec

from .suite.common import quartiles


class Images(Dataset[tuple[Tensor, int]]):
    """The same images one by one through torchvision's transforms, as tutorials do it."""

    def __init__(self, data: Resident) -> None:
        self.split = data.dataset.train
        steps = [v2.ToPILImage(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*steps, v2.Normalize(data.dataset.mean, data.dataset.std)])

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index])


def by_hand(
    cell: Cell, data: Resident, device: torch.device, loader: DataLoader[tuple[Tensor, Tensor]] | None = None
) -> float:
    """Seconds of a minimal loop: no engine, no counters. Without ``loader`` it normalises resident uint8 images."""
    torch.manual_seed(derive_seed(cell.seed, "weights"))
    model = build_model(model_spec(cell, data.dataset)).to(device).train()
    optimizer = build_optimizer(cell, [list(model.parameters())])
    criterion = nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing)
    images, labels = data.dataset.train.images.to(device), data.dataset.train.labels.to(device)
    std = torch.tensor(data.dataset.std, device=device).view(1, -1, 1, 1)
    scale, shift = 1 / (255 * std), -torch.tensor(data.dataset.mean, device=device).view(1, -1, 1, 1) / std
    steps = len(images) // cell.batch_size
    step, total = 0, steps * cell.epochs
    synchronize(device)
    began = time.perf_counter()
    for epoch in range(cell.epochs):
        order = sample_order(len(images), cell.seed, epoch)
        batches = iter(loader) if loader is not None else None
        for index in order[: steps * cell.batch_size].split(cell.batch_size):
            if batches is not None:
                x, y = next(batches)
            else:
                where = index.to(device)
                x, y = images[where].float().mul_(scale).add_(shift), labels[where]
            factor = learning_rate_factor(cell.schedule, step, total, cell.warmup_fraction)
            optimizer.param_groups[0]["lr"] = cell.lr * factor
            optimizer.zero_grad(set_to_none=True)
            criterion(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
            step += 1
    synchronize(device)
    return time.perf_counter() - began


def ratios(pairs: int, first: Callable[[], float], second: Callable[[], float]) -> dict[str, float]:
    """first / second, run alternately in both orders: what the pairwise ratios are."""
    found = []
    for pair in range(pairs):
        if pair % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        found.append(a / b)
    return quartiles(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    values = {
        "model": "resnet18", "dataset": f"synthetic:1x32x32:10:{arguments.images}", "width": arguments.width,
        "epochs": 1, "batch_size": 128, "method": ["full", "schedule"], "eval_every": "last", "check_every": 4,
        "policy": {"schedule": {"drops": [[0.25, 0.4], [0.5, 0.7]]}},
    }  # fmt: skip
    experiment = experiment_from_dict(values)
    device = resolve_device("auto")
    keep_freed_memory()
    result: dict[str, object] = {"environment": environment(device), "images": arguments.images}
    result["width"] = arguments.width
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparation = Preparation(experiment, folder, device)
        full, schedule = plan(experiment)
        data, costs = preparation.data(full), preparation.costs(full)

        def engine(cell: Cell) -> float:
            return float(run_cell(cell, data, costs, folder, device=device).result["train_seconds"])

        def loop() -> float:
            return by_hand(full, data, device)

        loop()  # warm up
        result["loop / itself"] = ratios(arguments.pairs, loop, loop)
        print("loop / itself:", result["loop / itself"], flush=True)
        result["engine / loop"] = ratios(arguments.pairs, lambda: engine(full), loop)
        print("engine / loop:", result["engine / loop"], flush=True)
        loader = DataLoader(Images(data), full.batch_size, shuffle=True, drop_last=True)
        result["engine / DataLoader"] = ratios(3, lambda: engine(full), lambda: by_hand(full, data, device, loader))
        print("engine / DataLoader:", result["engine / DataLoader"], flush=True)

        longer = [dataclasses.replace(cell, epochs=6) for cell in (full, schedule)]
        shares: list[tuple[float, float]] = []  # of full's time: really saved, and predicted
        for turn in range(max(3, arguments.pairs)):
            in_turn = longer[:: 1 - 2 * (turn % 2)]
            runs = {cell.method: run_cell(cell, data, costs, folder, device=device).result for cell in in_turn}
            whole, stored = runs["full"], runs["schedule"]
            assert stored["drops"], "the schedule was declined: nothing to compare"
            predicted = stored["predicted_saved_seconds"] / (costs.steps[0] * whole["steps"])
            shares.append((1 - stored["train_seconds"] / whole["train_seconds"], predicted))
        quotients = [realised / predicted for realised, predicted in shares]
        saved = statistics.median(realised for realised, _ in shares)
        result["realised / predicted"] = quartiles(quotients) | {"saved_share": saved}
        print("realised / predicted:", result["realised / predicted"], flush=True)
        learn = dataclasses.replace(longer[0], method="learn-and-drop", check_every=None)
        scored = run_cell(learn, data, costs, folder, device=device).result
        result["scoring share"] = scored["scoring_seconds"] / scored["train_seconds"]
        print("scoring share:", result["scoring share"])
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
