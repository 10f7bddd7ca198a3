"""What the README promises is run, not believed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ldbench

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "GUIDE.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def block(marker: str, page: Path = README) -> str:
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert match, f"{page.name} has no block marked {marker!r}"
    return match[1]


def test_the_five_lines_train_and_drop() -> None:
    code = block("five lines")
    assert sum("dropper" in line for line in code.splitlines()) <= 5
    torch.manual_seed(0)
    targets = torch.arange(256) % 4
    images = torch.randn(256, 1, 8, 8) + targets.view(-1, 1, 1, 1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    before = nn.functional.cross_entropy(model(images), targets)
    scope = {
        "ldbench": ldbench, "model": model, "images": images, "targets": targets, "epochs": 12,
        "optimizer": torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), "criterion": nn.CrossEntropyLoss(),
    }  # fmt: skip
    exec(code, scope)
    dropper = scope["dropper"]
    assert isinstance(dropper, ldbench.LayerDropper)
    assert dropper.step_count == dropper.total_steps == 12 * 4
    assert dropper.cut > 0  # stages have left
    model.eval()
    after = nn.functional.cross_entropy(model(images), targets)
    assert float(after.detach()) < 0.5 * float(before.detach())


def test_the_lines_for_data_that_arrive_over_time_train_on_every_set() -> None:
    torch.manual_seed(0)
    targets = torch.arange(256) % 4
    images = torch.randn(256, 1, 8, 8) + targets.view(-1, 1, 1, 1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    scope = {
        "torch": torch, "ldbench": ldbench, "model": model, "images": images, "targets": targets, "epochs": 3,
        "optimizer": torch.optim.SGD(model.parameters(), 0.05), "criterion": nn.CrossEntropyLoss(),
    }  # fmt: skip
    exec(block("stream lines", ROOT / "docs" / "loops.md"), scope)
    dropper = scope["dropper"]
    assert isinstance(dropper, ldbench.LayerDropper)
    assert dropper.step_count == dropper.total_steps == 3 * (2 + 3)
    assert dropper.chunk == 1


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert README.stat().st_size < 10_000


def test_the_method_that_the_page_registers_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.policies import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    line = re.search(r"ldbench\.register_method\(.*\)", text)
    assert line
    exec(line[0], {"ldbench": ldbench})
    assert registry.get_method("early-half").execution == "store"


def test_every_public_name_exists_and_is_listed() -> None:
    for name in ldbench.__all__:
        assert getattr(ldbench, name) is not None
    assert set(ldbench.__all__) <= set(dir(ldbench))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        ldbench.nothing_of_the_kind  # noqa: B018


def test_suites_and_options_that_readme_and_pages_name_exist() -> None:
    from ldbench.cli.app import app
    from ldbench.experiment.files import suite_names

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {"quickstart", "fashion", "paper"} <= set(suite_names())
    import typer

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    ours = "\n".join(
        line for line in text.splitlines() if "asv" not in line and "pytest" not in line and "benches." not in line
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - {"--help"}
    assert named <= known
