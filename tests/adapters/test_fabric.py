"""Lightning Fabric's wrappers around model and optimizer, in a loop of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.loops import SmallNet, free_store, small_data
from torch import nn

from ldbench import FixedSchedule, LayerDropper, UserError

fabric = pytest.importorskip("lightning.fabric", reason="lightning is not installed")


def test_a_wrapped_optimizer_is_taken_and_a_wrapped_model_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = SmallNet()
    run = fabric.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model, optimizer = run.setup(plain, torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9))
    options = {"batch_size": 16, "epochs": 3, "check_every": 2, "policy": FixedSchedule(((0.2, 1),))}
    with pytest.raises(UserError, match=r"wrapped by Fabric.*autocast=fabric\.autocast"):
        LayerDropper(model, optimizer, small_data(), **options)
    with LayerDropper(
        plain, optimizer, small_data(), autocast=run.autocast, costs=free_store(plain), **options
    ) as dropper:
        for _ in range(3):
            for x, y, _ in dropper:
                output = dropper(x)
                assert output.dtype == torch.bfloat16
                run.backward(nn.functional.cross_entropy(output, y))
                optimizer.step()
                optimizer.zero_grad()
                dropper.step()
        assert dropper.cut == 1
        assert dropper.activations.read(torch.arange(2)).dtype == torch.bfloat16
        assert dropper.costs.measure().steps[0] > 0
        assert dropper.account.incidents == []
