"""Residual blocks: found by their last sum, left out exactly, in torchvision's networks and in none without."""

from __future__ import annotations

import pytest
import torch
from support.tiny_nets import residual_net
from torch import Tensor, nn

from ldbench.models.fit import ModelSpec
from ldbench.models.zoo import build_model
from ldbench.stages.residual import RandomDepth, residual_block
from ldbench.stages.split import split_stages


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 8), ("mobilenet_v2", 10), ("vgg11_bn", 0), ("squeezenet1_1", 0)]
)
def test_torchvisions_residual_blocks_are_found(name: str, blocks: int) -> None:
    stages = split_stages(build_model(ModelSpec(name, 1, 32, 10, 0.125 if name == "resnet18" else 1.0)))
    assert sum(residual_block(stage) is not None for stage in stages) == blocks


@pytest.mark.parametrize("mode", [True, False])
def test_a_block_whose_branch_counts_nothing_is_its_shortcut_and_one_whose_branch_counts_once_is_itself(
    mode: bool,
) -> None:
    torch.manual_seed(0)
    stages = split_stages(residual_net(1, 8, 4)).train(mode)
    x = torch.randn(3, 1, 8, 8)
    found = 0
    for stage in stages:
        block, before = residual_block(stage), x.clone()
        if block is not None:
            found += 1
            assert torch.equal(block.scaled(x, 1.0), stage(x))
            torch.testing.assert_close(block.scaled(x, 0.0), block.shortcut(x))
            assert not torch.equal(block.shortcut(x), stage(x))
        y = stage(x)
        assert torch.equal(x, before)
        x = y.detach()
    assert found == 4


def test_a_block_left_out_gets_no_gradient_and_its_statistics_stay() -> None:
    stages = split_stages(residual_net(1, 8, 4)).train()
    depth = RandomDepth(stages, seed=0)
    depth.draw(0, [1e-9] * 4)
    assert depth.skipped == {1, 2, 3, 4}
    x = torch.randn(3, 1, 8, 8)
    for place, stage in enumerate(stages):
        x = depth.run(place, stage, x)
    x.sum().backward()
    with_gradient = {name for name, p in stages.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in with_gradient} == {"0", "3", "7"}
    assert all("project" in name for name in with_gradient if name.startswith("3"))
    assert all(int(m.num_batches_tracked) == 0 for m in stages.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_shares_of_steps_left_out_are_the_probabilities_and_the_expectation_is_kept() -> None:
    stages = split_stages(residual_net(1, 8, 4)).eval()
    depth = RandomDepth(stages, seed=3)
    survival = [0.9, 0.7, 0.5, 1.0]
    x = torch.randn(2, 6, 4, 4).relu()
    block = stages[1]
    total = torch.zeros_like(x)
    for step in range(2000):
        depth.draw(step, survival)
        depth.count()
        if step < 400:
            total += depth.run(1, lambda t: block(t), x).detach()
    left_out = [count / 2000 for count in depth.skipped_steps[1:5]]
    assert left_out == pytest.approx([0.1, 0.3, 0.5, 0.0], abs=0.04)


class Product(nn.Module):
    """Adds two equal branches: neither is a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_a_sum_of_equal_branches_is_no_residual_block() -> None:
    (stage,) = split_stages(Product())
    assert residual_block(stage) is None
