"""timm's networks: fitted to the data, cut bit for bit, and refused in one line where there is no such thing."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.hostile import ldbench, refused
from torch import nn

from ldbench import ModelSpec, UserError, build_model
from ldbench.models.initial_weights import torchvision_weights
from ldbench.models.recipes import default_recipe
from ldbench.models.zoo import describe_model
from ldbench.stages.split import split_stages

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
SMALL = [
    ("resnetv2_50", 32), ("resnet10t", 32), ("efficientnet_b0", 32), ("mobilenetv3_small_050", 32), ("convnext_atto", 32),
    ("regnetx_002", 32), ("vit_tiny_patch16_224", 32), ("densenet121", 32), ("ghostnet_050", 32), ("mixnet_s", 32),
    ("repvgg_a0", 32), ("hardcorenas_a", 32), ("deit_tiny_patch16_224", 32), ("darknet17", 32),
]  # fmt: skip


@needs_timm
@pytest.mark.parametrize(("name", "size"), SMALL)
def test_the_stages_are_the_network_bit_for_bit(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec(f"timm:{name}", 1, size, 7))
    torch.manual_seed(0)
    again = build_model(ModelSpec(f"timm:{name}", 1, size, 7))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    x = torch.randn(4, 1, size, size)
    stages = split_stages(model)
    assert len(stages) >= 4
    for mode in (False, True):
        model.train(mode)
        stages.train(mode)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        torch.manual_seed(1)
        expected = model(x)
        model.load_state_dict(before)
        torch.manual_seed(1)
        assert torch.equal(stages(x), expected)
        assert expected.shape == (4, 7)


@needs_timm
def test_fitting_and_what_the_record_says_of_it() -> None:
    told = describe_model(ModelSpec("timm:resnetv2_50", 3, 64, 10))
    assert "7x7 stride 2" in told["stem"]
    assert "2048-10" in told["head"]
    dropped = build_model(ModelSpec("timm:resnet10t", 3, 32, 10, dropout=0.4))
    assert dropped.drop_rate == 0.4
    assert default_recipe("timm:resnetv2_50") == default_recipe("resnet50")
    assert default_recipe("timm:vit_tiny_patch16_224") == default_recipe("vit_b_16")
    assert all(m.momentum >= 0.1 for m in dropped.modules() if isinstance(m, nn.BatchNorm2d))


@needs_timm
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ModelSpec("timm:resnetv2_5O", 3, 32, 10), "unknown to timm .*resnetv2_50"),
        (ModelSpec("timm:hf_hub:someone/net", 3, 32, 10), "unknown to timm"),
        (ModelSpec("timm:resnet10t", 3, 32, 10, width=0.5), "no width multiplier"),
        (ModelSpec("timm:vit_tiny_patch16_224", 3, 28, 10), "cannot take images of 28x28 pixels.* 32: set image_size"),
    ],
)
def test_what_cannot_be_is_one_line(spec: ModelSpec, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        build_model(spec)
    assert "\n" not in str(raised.value)


@needs_timm
def test_an_experiment_runs_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = ldbench(
        "run", "--model", "timm:resnet10t", "--dataset", "digits", "--epochs", 2, "--train-size", 128, "--test-size", 64,
        "--method", "full", "--method", "schedule", "--seeds", 1, "--batch-size", 32, "--out", out,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    records = [json.loads(path.read_text()) for path in out.glob("cells/*/result.json")]
    assert {record["model"] for record in records} == {"timm:resnet10t"}
    assert {record["status"] for record in records} == {"finished"}
    assert "timm:resnet10t" in (out / "report" / "index.html").read_text()


def test_without_timm_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("ldbench.models.timm_models.find_spec", lambda name: None)
    ended = ldbench("run", "--model", "timm:resnet50", "--out", tmp_path / "out")
    assert refused(ended)
    assert "pip install 'ldbench[timm]'" in ended.err


def test_published_weights_are_torchvisions_alone() -> None:
    with pytest.raises(UserError, match="is no architecture of torchvision"):
        torchvision_weights("timm:resnet50", download=False)
