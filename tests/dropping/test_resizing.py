"""Images that grow: their sizes step by step, FLOPs by hand, what cannot be resized, and runs that go on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support.interruptions import Bench, lasting
from torch import Tensor, nn

from ldbench.dropping.engine import LayerDropper
from ldbench.dropping.resizing import Resizing
from ldbench.errors import UserError
from ldbench.experiment.validation import experiment_from_dict
from ldbench.policies.composer import ProgressiveResizing
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.stages.split import split_stages
from ldbench.training.loop import run_cell

CPU = torch.device("cpu")


def network(pooled: bool = True) -> nn.Sequential:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)] if pooled else [nn.Flatten(), nn.Linear(1024, 3)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *head)


def resizing(model: nn.Module, side: int = 16, compiled: bool = False, **options: Any) -> Resizing:
    return Resizing(
        split_stages(model), (1, side, side), ProgressiveResizing(**({"rise_from": 0.5} | options)).image_side, compiled
    )


def test_images_are_scaled_as_the_rule_says_and_keep_dtype_and_layout() -> None:
    scaled = resizing(network())
    assert sorted(scaled.tables) == [(8, 8), (12, 12), (16, 16)]
    images = torch.rand(2, 1, 16, 16).to(memory_format=torch.channels_last)
    assert scaled(images, 0.9) is images
    assert (scaled.side, scaled.table) == (0, None)
    small = scaled(images, 0.0)
    assert small.shape == (2, 1, 8, 8)
    assert scaled.side == 8
    wanted = nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, wanted)
    assert scaled(torch.full((2, 1, 16, 16), 0.25), 0.65)[0, 0, 0, 0] == pytest.approx(0.25)
    assert scaled(images.bfloat16(), 0.0).dtype == torch.bfloat16
    wide = torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert scaled(wide, 0.0).is_contiguous(memory_format=torch.channels_last)


def test_every_size_has_the_flops_of_its_own_pixels() -> None:
    scaled = resizing(network())
    for side, table in ((side, scaled.tables[side, side]) for side in (8, 12, 16)):
        assert [stage.forward for stage in table] == [2 * 9 * 4 * side**2, 2 * 4 * 3]
        assert table[0].backward_first == 2 * 9 * 4 * side**2


class Windows(nn.Module):
    """Takes images whose side is a multiple of eight, and no smaller ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 8, stride=8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pixel_unshuffle(x, 8)[:, :1]
        return self.linear(nn.functional.pad(x, (0, 8, 0, 8)).mean((2, 3)).repeat(1, 4))


def test_a_size_that_the_network_cannot_take_gives_way_to_the_next_larger_one() -> None:
    scaled = resizing(Windows(), side=32, initial_scale=0.25)
    assert sorted(scaled.tables) == [(8, 8), (16, 16), (24, 24), (32, 32)]
    # 8 + 24 x (p - 0.5) / 0.3 is 12 at 0.55, which becomes 16
    assert [scaled.fitting(p) for p in (0.0, 0.55, 0.6, 0.79)] == [(8, 8), (16, 16), (16, 16), (32, 32)]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (network(pooled=False), "smaller than 16 x 16 pixels.*mat1 and mat2"),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), r"\[2, 12, 12\]|\[2, 8, 8\]"),
    ],
)
def test_a_network_bound_to_its_size_is_refused_in_one_line(model: nn.Module, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        resizing(model)
    assert "\n" not in str(refusal.value)


def test_what_is_compiled_or_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="--compile"):
        resizing(network(), compiled=True)
    with pytest.raises(UserError, match=r"\[C, H, W\]"):
        Resizing(split_stages(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), (4,), ProgressiveResizing().image_side)


def test_images_that_are_to_stay_as_they_are_want_nothing_of_the_network() -> None:
    assert resizing(network(pooled=False), initial_scale=1.0).tables.keys() == {(16, 16)}


# --- in a loop of one's own ------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_trains_on_growing_images_and_evaluates_whole_ones() -> None:
    torch.manual_seed(0)
    model, images, targets = network(), torch.rand(40, 1, 16, 16), torch.arange(40) % 3
    sides: list[int] = []
    model[0].register_forward_pre_hook(lambda module, args: sides.append(args[0].shape[-1]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with LayerDropper(
        model, optimizer, (images, targets), batch_size=4, epochs=1, policy=ProgressiveResizing(rise_from=0.5)
    ) as dropper:
        ledger = dropper.count_flops((1, 16, 16))
        sides.clear()
        for x, y, _ in dropper:
            assert x.shape == (4, 1, 16, 16)
            with torch.no_grad():
                dropper(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(dropper(x), y).backward()
            optimizer.step()
            dropper.step()
    trained = [8, 8, 8, 8, 8, 8, 12, 12, 16, 16]  # 8 + 8 x (p - 0.5) / 0.3 is 10.7 and 13.3 at 0.6 and 0.7
    assert sides[1::2] == trained
    assert sides[::2] == [16] * 10
    assert not dropper.drops
    pixels = sum(side**2 for side in trained)
    assert ledger.forward == [4 * 72 * pixels, 4 * 24 * 10]
    assert ledger.backward == [4 * 72 * pixels, 4 * 48 * 10]


def test_a_compiled_network_is_refused_when_the_dropper_is_made() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.rand(8, 1, 16, 16), torch.arange(8) % 3
    with pytest.raises(UserError, match="compile="):
        LayerDropper(model, optimizer, data, batch_size=4, epochs=1, policy=ProgressiveResizing(), compile=True)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("resize"), "support.tiny_nets:pooled_net")


def test_a_run_that_is_interrupted_ends_with_the_same_bits_and_its_flops_are_those_of_its_sizes(
    bench: Bench, tmp_path: Path
) -> None:
    cell = bench.cell("resize")
    plain = bench.run(cell, tmp_path / "plain")
    resumed, stopped = bench.interrupted(cell, tmp_path / "often", *[6] * 30)
    assert stopped >= 3
    assert lasting(resumed) == lasting(plain)
    result = plain.result
    assert result["steps"] == 20
    assert (result["drops"], result["predicted_saved_seconds"], result["store_bytes"]) == ([], 0.0, 0)
    # steps 0..19 of 20: side 4 + 4 p / 0.8 to the nearest 4: 8 from p = 0.4 on
    pixels = 8 * 4**2 + 12 * 8**2
    first, second, *heads = (stage["executed_forward_flops"] for stage in result["stages"])
    assert first == 20 * 2 * 9 * 6 * pixels
    assert second == 20 * 2 * 9 * 6 * 8 * pixels // 4
    assert heads == [20 * 20 * stage["forward_flops"] for stage in result["stages"][2:]]
    assert result["forward_flops"] < result["forward_flops_full"]
    kinds = result["step_seconds"]
    assert sum(kind["steps"] for kind in kinds if kind["image_side"] == 4) == 8
    assert sum(kind["steps"] for kind in kinds if kind["image_side"] is None) == 12


def test_nothing_is_scaled_for_full_training(bench: Bench, tmp_path: Path) -> None:
    full = bench.run(bench.cell("full"), tmp_path / "full")
    whole = bench.run(bench.cell("resize", policy={"resize": {"initial_scale": 1.0}}), tmp_path / "whole")
    alike = [
        {k: v for k, v in lasting(run)["record"].items() if k not in ("cell_id", "method")} for run in (full, whole)
    ]
    for record in alike:
        for stage in record["stages"]:
            del stage["why"]
    assert alike[0] == alike[1]
    assert lasting(full)["weights"] == lasting(whole)["weights"]


@pytest.mark.parametrize(("spans", "sides"), [("chunk", [[4, 8]] * 3), ("whole", [[4], [4, 8], [8]])])
def test_in_a_stream_images_grow_over_what_the_learning_rate_spans(
    spans: str, sides: list[list[int]], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    scale = Resizing.__call__

    def watched(self: Resizing, images: Tensor, progress: float) -> Tensor:
        found = scale(self, images, progress)
        seen.append(found.shape[-1])
        return found

    monkeypatch.setattr(Resizing, "__call__", watched)
    table = bench.table | {
        "scenario": "online", "chunks": 3, "memory": 20, "train_size": 120, "epochs": 4, "batch_size": 10,
        "method": ["resize"], "stream_schedule": spans,
    }  # fmt: skip
    experiment = experiment_from_dict(table)
    [cell] = plan(experiment)
    preparation = Preparation(experiment, tmp_path, CPU)
    (tmp_path / "cell").mkdir()
    run = run_cell(cell, preparation.data(cell), preparation.costs(cell), tmp_path / "cell", device=CPU)
    ends = [0, *(chunk["step"] for chunk in run.result["chunks"])]
    assert len(seen) == run.result["steps"] == ends[-1]
    assert [sorted(set(seen[a:b])) for a, b in itertools.pairwise(ends)] == sides
    assert seen[-1] == 8


def test_a_network_that_flattens_is_refused_before_anything_runs(tmp_path: Path) -> None:
    table: dict[str, Any] = {"dataset": "digits", "train_size": 60, "test_size": 30, "epochs": 1, "method": ["resize"]}
    for model, size in (("support.tiny_nets:net", 8), ("vit_b_16", 32), ("vgg11_bn", 32)):
        experiment = experiment_from_dict(table | {"model": model, "image_size": size})
        [cell] = plan(experiment)
        with pytest.raises(UserError, match=f"smaller than {size} x {size} pixels"):
            Preparation(experiment, tmp_path, CPU).check(cell)


@pytest.mark.parametrize(("model", "size"), [("resnet18", 16), ("vgg11_bn", 64), ("mobilenet_v3_small", 32)])
def test_networks_that_pool_are_taken(model: str, size: int, tmp_path: Path) -> None:
    table = {"dataset": "digits", "train_size": 60, "test_size": 30, "epochs": 1, "method": ["resize"], "model": model}
    experiment = experiment_from_dict(table | {"image_size": size})
    [cell] = plan(experiment)
    Preparation(experiment, tmp_path, CPU).check(cell)
