"""Every block of the page on loops is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ldbench

PAGE = Path(__file__).parents[1] / "docs" / "loops.md"
BLOCKS = re.findall(r"<!-- (run[a-z ]*) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def network(per_pixel: bool) -> nn.Module:
    body = [
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    ]
    if per_pixel:
        return nn.Sequential(*body, nn.Conv2d(8, 2, 1))
    return nn.Sequential(
        *body,
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize(("kind", "code"), BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_the_block_runs(kind: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    targets = torch.arange(128) % 4
    images = torch.randn(128, 1, 8, 8) + targets.view(-1, 1, 1, 1)
    model = network("per pixel" in kind)
    scope: dict[str, Any] = {
        "torch": torch,
        "ldbench": ldbench,
        "model": model,
        "images": images,
        "targets": targets,
        "masks": (images[:, 0] > 0).long(),
        "epochs": 3,
        "device": "cpu",
        "optimizer": torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
    }
    exec(code, scope)
    dropper = scope["dropper"]
    assert dropper.step_count > 0
    assert dropper.account.incidents == []


def test_every_block_was_found() -> None:
    assert len(BLOCKS) == PAGE.read_text().count("<!-- run") >= 11
