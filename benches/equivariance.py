"""What a stored feature map says about a mirrored or moved image: how far the mirrored or moved map is from the real one.

    python -m benches.equivariance --data-root DATA [--out FILE.json]

A store holds what the dropped stages made of an image. Had the image been mirrored, or moved by a whole number of the cut's
strides, would the map have been mirrored or moved? For a network trained with flips and crops, behind every cut, over test
images, in evaluation mode:

* ``mirrored``: |f(mirrored x) - mirrored f(x)| / |f(x)|, and beside it, for scale, |f(mirrored x) - f(x)| / |f(x)|;
* ``moved``: the same for an image moved down and right by one stride, black coming in, with zeros coming in behind the cut,
  and with what the network makes of a black image; and the share of places of the map that are exact.

Norms are over a map, means over the images. Needed of the data root is ``cifar10-jpeg``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benches.lab_tables import line
from ldbench.data.augment import Augment, AugmentDraw
from ldbench.data.datasets import Dataset, load_dataset
from ldbench.data.loader import ResidentSplit
from ldbench.models.fit import ModelSpec
from ldbench.models.zoo import build_model
from ldbench.records.environment import environment
from ldbench.seeds import derive_seed, sample_order
from ldbench.stages.split import split_stages

NETWORKS = {"vgg11_bn": 0.25, "resnet18": 0.125}
EXACT = 1e-4  # of the largest magnitude of a map: float32 sums in another order


def trained(model: str, dataset: Dataset, data: ResidentSplit, epochs: int) -> nn.Module:
    """A network after some epochs with flips and crops, by the family's recipe."""
    torch.manual_seed(derive_seed(0, "weights"))
    spec = ModelSpec(model, dataset.channels, dataset.image_size, dataset.classes, NETWORKS[model], None)
    network, size = build_model(spec), 64
    steps = len(data) // size * epochs
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    augment, step = Augment("flip+crop", dataset.image_size, 0), 0
    for epoch in range(epochs):
        for indices in sample_order(len(data), 0, epoch).split(size)[: len(data) // size]:
            x, y = data.batch(indices, augment.draw(step, size))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
            rate.step()
            step += 1
    return network.eval()


def moved(maps: Tensor, coming: Tensor) -> Tensor:
    """Maps [N, C, H, W] moved down and right by one place, the first row and column of ``coming`` (as large) in front."""
    out = coming.expand_as(maps).clone()
    out[:, :, 1:, 1:] = maps[:, :, :-1, :-1]
    return out


def errors(real: Tensor, guess: Tensor) -> tuple[float, float]:
    """Mean relative error over the samples, and the share of places that are exact."""
    gap = (real - guess).flatten(1).norm(dim=1) / real.flatten(1).norm(dim=1).clamp_min(1e-12)
    close = (real - guess).abs().amax(1) <= EXACT * real.abs().amax((1, 2, 3))[:, None, None]
    return float(gap.mean()), float(close.float().mean())


@torch.no_grad()
def rows(network: nn.Module, data: ResidentSplit, samples: int, side: int) -> list[dict[str, Any]]:
    """A row for each cut that has a map behind it."""
    stages, indices = split_stages(network).eval(), torch.arange(samples)
    x, _ = data.batch(indices)
    mirror, _ = data.batch(indices, AugmentDraw(flipped=indices))
    found = []
    for cut in range(1, len(stages)):
        through = stages[:cut]
        real = through(x)
        if real.dim() != 4 or real.shape[2] < 2:
            break
        stride = side // real.shape[2]
        shift = torch.zeros(samples, 2, dtype=torch.int64)  # the corner of the padded image: moved by a stride
        shifted, _ = data.batch(indices, AugmentDraw(shift=shift, pad=stride))
        nothing, _ = data.batch(indices[:1], AugmentDraw(shift=torch.zeros(1, 2, dtype=torch.int64), pad=side))
        there = through(shifted)
        found.append({
            "cut": cut, "stage": str(stages[cut - 1].stage_name), "map": list(real.shape[1:]), "stride": stride,
            "mirrored": errors(through(mirror), real.flip(3))[0],
            "mirrored_left_as_it_is": errors(through(mirror), real)[0],
            "moved_zeros": errors(there, moved(real, torch.zeros_like(real[:1])))[0],
            "moved_black": errors(there, moved(real, through(nothing)))[0],
            "moved_left_as_it_is": errors(there, real)[0],
            "moved_exact_places": errors(there, moved(real, through(nothing)))[1],
        })  # fmt: skip
    return found


def table(told: Mapping[str, Any]) -> list[str]:
    """The Markdown table of what ``main`` wrote."""
    head = (
        "network", "behind", "map", "mirrored", "left as it is", "moved, zeros come in", "moved, black comes in",
        "left as it is", "exact places",
    )  # fmt: skip
    where = told["environment"]
    lines = [
        f"{where['cpu']}, torch {where['torch']}, commit {where['git_commit'][:8]}; relative errors, means over "
        f"{min(of['samples'] for of in told['networks'].values())} test images.",
        "",
        line(head),
        line(["---"] * len(head)),
    ]
    for network, of in told["networks"].items():
        for row in of["cuts"]:
            texts = [network, row["stage"], " x ".join(map(str, row["map"]))]
            texts += [f"{row[name]:.2f}" for name in ("mirrored", "mirrored_left_as_it_is")]
            texts += [f"{row[name]:.2f}" for name in ("moved_zeros", "moved_black", "moved_left_as_it_is")]
            lines.append(line([*texts, f"{100 * row['moved_exact_places']:.0f} %"]))
    return lines


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-size", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    told: dict[str, Any] = {"environment": environment(torch.device("cpu")), "networks": {}}
    for model, width in NETWORKS.items():
        dataset = load_dataset(
            "cifar10-jpeg=folder:cifar10-jpeg", root=options.data_root, train_size=options.train_size
        )
        train = ResidentSplit(dataset.train, dataset.mean, dataset.std, "cpu")
        test = ResidentSplit(dataset.test, dataset.mean, dataset.std, "cpu")
        found = rows(trained(model, dataset, train, options.epochs), test, options.samples, dataset.image_size)
        told["networks"][model] = {"width": width, "epochs": options.epochs, "samples": options.samples, "cuts": found}
        print(model, f"width {width}")
        for row in found:
            print("  " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.out is not None:
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
