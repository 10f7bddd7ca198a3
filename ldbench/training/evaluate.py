"""Accuracy and loss of a whole network on a split."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.data.loader import ResidentSplit
from ldbench.stages.train_mode import evaluating


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: ResidentSplit,
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_size: int = 512,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float, Tensor]:
    """Accuracy, mean cross-entropy, and per image whether it was right (bool [N], CPU), of the whole network."""
    losses, hits = [], []
    with evaluating(model):
        for indices in torch.split(torch.arange(len(split)), batch_size):
            on_batch()
            x, y = split.batch(indices)
            with autocast():
                logits = model(x)
            losses.append(nn.functional.cross_entropy(logits.float(), y, reduction="sum"))
            hits.append(logits.argmax(1) == y)
    correct = torch.cat(hits).cpu()
    return float(correct.double().mean()), float(torch.stack(losses).double().sum()) / len(split), correct
