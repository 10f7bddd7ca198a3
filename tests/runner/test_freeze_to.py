"""A frozen backbone in an experiment: every method and both controls train what is behind it, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.hostile import ldbench, refused
from support.tiny_nets import net
from torch import nn
from torchvision.models import resnet18

from ldbench import UserError
from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed
from ldbench.runner.plan import plan
from ldbench.runner.run_grid import run_experiment
from ldbench.stages.freezing import freeze_stages

TABLE: dict[str, Any] = {
    "model": "support.tiny_nets:net", "dataset": "digits[5-9]", "image_size": 8, "train_size": 80, "test_size": 50,
    "epochs": 3, "batch_size": 20, "check_every": 2, "scenario": "fine-tune", "pretrain_dataset": "digits[0-3]",
    "pretrain_size": 128, "pretrain_epochs": 1, "short_budgets": [0.5], "seeds": 1, "save_model": "final",
    "method": ["full", "short", "learn-and-drop", "freeze", "schedule", "freezeout", "autofreeze", "autofreeze+store"],
    "threads": torch.get_num_threads(), "freeze_to": 2,
}  # fmt: skip
NAMES = ["0", "4", "10", "13", "15"]


def test_every_method_trains_what_is_behind_the_frozen_stages_alone(tmp_path: Path) -> None:
    run_experiment(experiment_from_dict(TABLE), tmp_path, ConsoleProgress(Console(), quiet=True))
    folders = sorted(tmp_path.glob("cells/*"))
    records = {read_sealed(folder / "result.json")["method"]: read_sealed(folder / "result.json") for folder in folders}
    weights = {
        read_sealed(folder / "result.json")["method"]: load_file(folder / "model.safetensors") for folder in folders
    }
    assert len(records) == len(TABLE["method"])
    start = weights["full"]
    for method, record in records.items():
        assert record["status"] == "finished"
        assert record["frozen_stages"] == 2
        assert [stage["name"] for stage in record["stages"]] == NAMES
        for name, value in weights[method].items():
            if name.startswith(("0.", "1.", "4.", "5.")) and not (method != "full" and "running" in name):
                assert torch.equal(value, start[name]), f"{method}: {name}"
        backward = [stage["executed_backward_flops"] for stage in record["stages"]]
        assert backward[:2] == [0, 0]
        assert backward[-1] > 0
    full = records["full"]
    assert full["dropped_stages"] == 0
    assert full["forward_flops"] == full["forward_flops_full"]
    assert full["backward_flops"] == full["backward_flops_full"]
    for method in ("freezeout", "autofreeze", "freeze"):
        first = records[method]["drops"][0]
        assert first["step"] == 1
        assert first["cut"] >= 2
    for method in ("learn-and-drop", "schedule", "autofreeze+store"):
        drops, declined = records[method]["drops"], records[method]["declined"]
        assert (drops and drops[0]["step"] == 1) or declined[0]["step"] == 1, method
    assert not torch.equal(weights["full"]["15.weight"], weights["short"]["15.weight"])


def test_cells_without_it_keep_their_names_and_the_cost_table_knows_it() -> None:
    plain = {key: value for key, value in TABLE.items() if key != "freeze_to"}
    without, within = plan(experiment_from_dict(plain)), plan(experiment_from_dict(TABLE))
    assert {cell.freeze_to for cell in without} == {None}
    assert {cell.freeze_to for cell in within} == {"2"}
    assert not {cell.config_hash for cell in without} & {cell.config_hash for cell in within}
    assert plan(experiment_from_dict(TABLE | {"freeze_to": "2"})) == within


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("layer9", "is no stage: did you mean"),
        ("0", "freezes nothing: give 1 to 9"),
        ("-1", "freezes nothing: give 1 to 9"),
        ("10", "freezes all 10 stages: give 1 to 9"),
        ("9" * 5000, "freezes all 10 stages"),
        ("conv1", "freezes nothing: give 1 to 9, or the first stage that trains; the stages are conv1, layer1.0"),
    ],
)
def test_a_stage_that_is_none_is_refused(until: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        freeze_stages(resnet18(), until)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("until", ["layer4", "layer4.0", "7"])
def test_a_stage_is_named_or_counted(until: str) -> None:
    model = resnet18()
    assert freeze_stages(model, until) == 7
    assert {p.requires_grad for p in model.layer3.parameters()} == {False}
    assert {p.requires_grad for p in model.layer4.parameters()} == {True}
    norms = {m.training for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "layer4" not in name}
    assert norms == {False}
    assert model.layer4[0].bn1.training


def test_the_command_line_refuses_it_before_anything_runs(tmp_path: Path) -> None:
    ended = ldbench("run", "--dataset", "digits", "--freeze-to", "layer7", "--out", tmp_path / "out")
    assert refused(ended)
    assert "freeze_to 'layer7' is no stage" in ended.err
    assert not (tmp_path / "out" / "cells").exists()


def test_frozen_stages_give_the_same_output_in_every_step() -> None:
    model = net(1, 8, 5).train()
    assert freeze_stages(model, "3") == 3  # with dropouts in them
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    assert torch.equal(model[:13](x), model[:13](x))
    assert [module.training for module in model] == [False] * 13 + [True] * 3


def test_a_parameter_on_both_sides_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[4].weight = model[0].weight
    with pytest.raises(UserError, match="share a parameter"):
        freeze_stages(model, "2")


def test_stochastic_depth_leaves_frozen_blocks_alone(tmp_path: Path) -> None:
    table = TABLE | {"model": "support.tiny_nets:residual_net", "method": ["stochastic-depth"], "freeze_to": 4}
    run_experiment(experiment_from_dict(table), tmp_path, ConsoleProgress(Console(), quiet=True))
    record = read_sealed(next(tmp_path.glob("cells/*")) / "result.json")
    skipped = [stage["skipped_steps"] for stage in record["stages"]]
    assert skipped[:4] == [0, 0, 0, 0]
    assert sum(skipped) > 0
