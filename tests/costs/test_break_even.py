"""The break-even rule on tables with known answers, FLOPs against published figures, and the measured table's shape."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from ldbench.costs.break_even import StorePlan, best_cut, build_seconds
from ldbench.costs.table import CostTable, TierCost
from ldbench.costs.timing import between, measure_costs, timed_cuts
from ldbench.dropping.account import FlopLedger
from ldbench.stages.flops import StageFlops, count_stage_flops
from ldbench.store.budget import StoreBudget

BIG = 10**12


def table(**changes: object) -> CostTable:
    """Three stages, minibatches of 10, easy numbers: a step takes 9.625, 6.125 or 2.625 seconds."""
    values = {
        "stages": ["a", "b", "c"], "batch_size": 10, "forward": [1.0] * 3, "backward": [2.0] * 3,
        "steps": [9.625, 6.125, 2.625], "inference": [0.5] * 3, "input_seconds": 0.25,
        "tiers": {"device": TierCost(0.0, 0.0, 0.0), "disk": TierCost(1.0, 0.0, 1.0)},
        "flops": [StageFlops(10, 20, 10, (4,))] * 3, "normalised": [False] * 3,
    }  # fmt: skip
    return CostTable(**(values | changes))  # type: ignore[arg-type]


def plan(samples: int = 100, device: int = BIG, disk: int = 0) -> StorePlan:
    return StorePlan(samples, "fp32", StoreBudget(device, 0, disk))


LEGAL = [True] * 3


def test_a_step_costs_its_live_stages_and_the_first_needs_no_input_gradient() -> None:
    assert table().step_seconds(0) == pytest.approx(0.25 + 0.125 + 3 * 1.5 + 1 + 2 + 2)
    assert table().step_seconds(2, source_seconds=0.0) == pytest.approx(0.125 + 1.5 + 1)


def test_building_reads_runs_and_writes_every_sample_once() -> None:
    # 10 batches x (read images 0.25 + two stages in inference 1.0 + write 10 x 16 bytes at 1 s/byte)
    assert build_seconds(table(), plan(), 0, 2, "disk") == pytest.approx(10 * (0.25 + 1.0 + 160.0))
    with_statistics = table(normalised=[True, False, False])
    assert build_seconds(with_statistics, plan(), 0, 2, "device") == pytest.approx(10 * 1.25)
    refreshed = dataclasses.replace(plan(), refreshed=True)
    assert build_seconds(with_statistics, refreshed, 0, 2, "device") == pytest.approx(10 * 1.25 + 10 * (0.25 + 2.0))
    assert build_seconds(table(), refreshed, 0, 2, "device") == pytest.approx(10 * 1.25)


def test_the_largest_saving_wins_and_the_balance_is_exact() -> None:
    choice = best_cut(table(), plan(), 0, 2, remaining_steps=100, legal=LEGAL)
    now, there = table().step_seconds(0), table().step_seconds(2, 0.0)
    assert choice.cut == 2
    assert choice.build_seconds == pytest.approx(12.5)
    assert choice.saving_seconds == pytest.approx(100 * (now - there) - 12.5)


def test_a_drop_that_cannot_pay_is_declined_with_its_figures() -> None:
    choice = best_cut(table(), plan(), 0, 1, remaining_steps=1, legal=LEGAL)
    assert choice.cut == 0
    assert "does not pay" in choice.reason
    assert best_cut(table(), plan(), 0, 1, remaining_steps=50, legal=LEGAL).cut == 1


def test_a_slow_tier_can_make_a_shallower_cut_the_better_one() -> None:
    wide = table(flops=[StageFlops(10, 20, 10, (1,)), StageFlops(10, 20, 10, (1000,)), StageFlops(10, 20, 10, (1,))])
    slow_disk = {"device": TierCost(0.0, 0.0, 0.0), "disk": TierCost(50.0, 0.0, 0.0)}
    wide = CostTable.from_dict(
        json.loads(json.dumps(wide.to_dict() | {"tiers": {k: vars(v) for k, v in slow_disk.items()}}))
    )
    small_device = plan(device=100 * 16, disk=BIG)  # holds the 1-wide rows (padded to 16 bytes), not the 1000-wide ones
    assert best_cut(wide, small_device, 0, 2, 1000, LEGAL).cut == 1
    assert best_cut(wide, small_device, 0, 2, 1000, LEGAL, exact=True).cut == 0


def test_illegal_cuts_and_stores_that_fit_nowhere_are_named() -> None:
    assert best_cut(table(), plan(), 0, 2, 100, [True, True, False]).cut == 1
    assert "share a parameter" in best_cut(table(), plan(), 0, 1, 100, [True, False, True]).reason
    assert "fits no tier" in best_cut(table(), plan(device=0), 0, 1, 100, LEGAL).reason


@pytest.mark.parametrize(
    "name",
    [
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
        "vgg11_bn",
        "vgg16_bn",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
    ],
)
def test_flops_agree_with_torchvisions_published_operations(name: str) -> None:
    weights = models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        model = models.get_model(name)
    (flops,) = count_stage_flops(nn.Sequential(model), (3, 224, 224))
    assert flops.forward == pytest.approx(2e9 * weights.meta["_ops"], rel=0.01)
    assert flops.backward == 2 * flops.forward  # one product for the weights, one for the input
    assert flops.backward_first < flops.backward


def test_backward_of_a_grouped_convolution_is_not_overcounted() -> None:
    (flops,) = count_stage_flops(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32)), (32, 8, 8))
    assert flops.forward == 2 * 32 * 8 * 8 * 9
    assert flops.backward == 2 * flops.forward
    assert flops.backward_first == flops.forward


def test_the_ledger_counts_what_ran() -> None:
    ledger = FlopLedger.empty([StageFlops(1, 20, 10, (1,)), StageFlops(100, 2000, 1000, (1,))])
    ledger.add_step(2, dropped=0, forward_from=0)
    assert (ledger.forward, ledger.backward) == ([2, 200], [20, 4000])
    ledger.add_forward(5, 0, 1)  # building the store behind stage 0
    ledger.add_step(2, dropped=1, forward_from=1)  # the forward pass is skipped too
    ledger.add_step(2, dropped=1, forward_from=0)  # frozen: forward runs, backward does not
    assert (ledger.forward, ledger.backward) == ([2 + 5 + 2, 600], [20, 4000 + 2000 + 2000])
    assert ledger.building == 5


class Slow(nn.ReLU):
    """Takes longer than anything else here, on a busy machine too."""

    seconds = 0.2

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().forward(input)


@pytest.mark.usefixtures("one_thread")
def test_measuring_changes_nothing_and_accounts_for_the_whole_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Slow()),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 64, 4)),
    )
    optimizer = torch.optim.SGD(stages.parameters(), 0.1, momentum=0.9)
    before = {k: v.clone() for k, v in stages.state_dict().items()}
    random = torch.get_rng_state()
    x, y = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    made = measure_costs(
        stages,
        ["a", "b"],
        lambda: (x, y),
        optimizer,
        nn.functional.cross_entropy,
        device=torch.device("cpu"),
        folder=tmp_path,
        autocast=contextlib.nullcontext,
        rounds=3,
        machine={"cpu": "this one"},
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[k], v) for k, v in stages.state_dict().items())
    assert all(p.grad is None for p in stages.parameters())
    assert not optimizer.state
    assert made.normalised == [True, False]
    assert [f.output_shape for f in made.flops] == [(8, 10, 10), (4,)]
    assert all(v > 0 for v in made.forward + made.backward + made.inference)
    assert made.steps[0] > Slow.seconds > made.steps[1] > 0
    assert CostTable.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert list(tmp_path.iterdir()) == []


def test_many_stages_are_timed_at_some_cuts_and_interpolated_between() -> None:
    assert timed_cuts(3) == [0, 1, 2]
    cuts = timed_cuts(52)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, 51, 16)
    assert max(b - a for a, b in itertools.pairwise(cuts)) <= 4
    steps = between({0: 10.0, 3: 4.0, 4: 1.0}, [1.0, 4.0, 1.0, 2.0, 9.0])
    assert steps == [10.0, 9.0, 5.0, 4.0, 1.0]


def test_samples_still_to_come_weigh_on_deep_cuts_and_make_a_store_larger() -> None:
    # A later sample is read (0.25 a minibatch) and passes two stages (1.0): 40 of them are 4 minibatches.
    streamed = dataclasses.replace(plan(), arrivals=40)
    choice = best_cut(table(), streamed, 0, 2, 100, LEGAL)
    assert choice.build_seconds == pytest.approx(12.5 + 4 * 1.25)
    assert best_cut(table(), dataclasses.replace(plan(), arrivals=10_000), 0, 2, 100, LEGAL).cut == 0
    # From cut 1 they would pass one stage anyway: only the second one is new.
    deeper = best_cut(table(), streamed, 1, 2, 100, LEGAL)
    assert deeper.build_seconds == pytest.approx(10 * 0.5 + 4 * 0.5)
    small = StorePlan(50, "fp32", StoreBudget(50 * 16, 0, BIG), capacity=100)
    assert best_cut(table(), small, 0, 1, 10_000, LEGAL).tier == "disk"
