"""The loop's parts: schedules, optimizer groups, augmentation after a drop, and what a failing run leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ldbench.errors import UserError
from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.meters import step_times
from ldbench.runner import preparation
from ldbench.runner.plan import check_plan, plan
from ldbench.runner.preparation import Preparation
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.split import stage_groups
from ldbench.store.activation_store import ActivationStore
from ldbench.training.evaluate import evaluate
from ldbench.training.loop import run_cell
from ldbench.training.optim import learning_rate_factor

CPU = torch.device("cpu")


@contextlib.contextmanager
def prepared(folder: Path, **options: object) -> Iterator[tuple[list[Cell], Preparation]]:
    table = {
        "model": "resnet18", "dataset": "digits", "width": 0.1, "image_size": 16, "train_size": 120, "test_size": 60,
        "epochs": 2, "batch_size": 20, "method": ["full", "schedule"], "check_every": 2, "decide_by": "time",
        "policy": {"schedule": {"drops": [[0.4, 0.5]]}},
    }  # fmt: skip
    table = {key: value for key, value in (table | options).items() if value is not None}
    experiment = experiment_from_dict(table)
    yield plan(experiment), Preparation(experiment, folder, CPU)


def test_what_methods_share_is_counted_once_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Counting FLOPs takes seconds a network: a grid of many methods must not wait for each of them."""
    counted: list[int] = []

    def count(stages: nn.Sequential, *rest: object) -> object:
        counted.append(len(stages))
        return count_stage_flops(stages, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "count_stage_flops", count)
    methods = ["full", "schedule", "learn-and-drop", "autofreeze+store", "stochastic-depth"]
    with prepared(tmp_path, method=methods, model=["resnet18", "vgg11_bn"], image_size=32) as (planned, made):
        check_plan(planned[:0], made)
        assert counted == []
        check_plan([cell for cell in planned if cell.model == "resnet18"], made)
        assert len(counted) == 1
        check_plan([cell for cell in planned if cell.method != "stochastic-depth"], made)
        assert len(counted) == 2
        assert len({len(made.check(cell)) for cell in planned if cell.model == "resnet18"}) == 1
        with pytest.raises(
            UserError, match="stochastic depth leaves out residual blocks"
        ):  # what a method alone needs is still asked
            check_plan(planned, made)


def test_a_schedule_warms_up_and_then_follows_its_name() -> None:
    factors = [learning_rate_factor("cosine", step, 100, 0.1) for step in range(100)]
    assert factors[:11] == pytest.approx([(s + 1) / 11 for s in range(10)] + [1.0])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 1e-3
    assert [learning_rate_factor("step", step, 100, 0.0) for step in (49, 50, 75)] == [1.0, 0.1, 0.01]
    assert learning_rate_factor("constant", 99, 100, 0.1) == 1.0


def test_a_shared_parameter_is_optimized_once_with_the_last_stage_that_uses_it() -> None:
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    groups = stage_groups([[a, b], [b], [c, a]])
    assert [[id(p) for p in group] for group in groups] == [[], [id(b)], [id(a), id(c)]]


def test_accuracy_and_loss_are_those_of_the_whole_split(tmp_path: Path) -> None:
    with prepared(tmp_path) as ((full, _), preparation):
        data = preparation.data(full)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        accuracy, loss, correct = evaluate(model, data.test, contextlib.nullcontext, batch_size=7)
        x, y = data.test.batch(torch.arange(60))
        with torch.no_grad():
            logits = model(x)
        assert accuracy == pytest.approx(float((logits.argmax(1) == y).double().mean()))
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
        assert torch.equal(correct, logits.argmax(1) == y)
        assert model.training


def test_augmentation_stops_at_the_drop_and_the_record_says_so(tmp_path: Path) -> None:
    with prepared(tmp_path, augment="flip+crop") as ((full, schedule), preparation):
        data = preparation.data(full)
        costs = dataclasses.replace(
            preparation.costs(full),
            tiers={
                k: dataclasses.replace(v, read_overhead=0.0, read_per_byte=0.0, write_per_byte=0.0)
                for k, v in preparation.costs(full).tiers.items()
            },
            inference=[0.0] * 10,
        )
        run = run_cell(schedule, data, costs, tmp_path, device=CPU)
        assert run.result["drops"], run.result["declined"]
        assert run.result["augmentation_after_drop"].startswith("stopped")
        assert run_cell(full, data, costs, tmp_path, device=CPU).result["augmentation_after_drop"] == "not applicable"
        changed = dataclasses.replace(schedule, augment="none", change_features=("mirror=0.5",))
        told = run_cell(changed, data, costs, tmp_path, device=CPU).result["augmentation_after_drop"]
        assert told == "stored features changed (mirror=0.5)"


def test_a_run_that_fails_in_the_middle_leaves_no_store_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ActivationStore, indices: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the disk fell off")

    with prepared(tmp_path, cache_budget="0,0,100MB") as ((full, schedule), preparation):
        data, costs = preparation.data(full), preparation.costs(full)
        costs = dataclasses.replace(
            costs, inference=[0.0] * 10, forward=[0.0] * 10, steps=[10.0 - c for c in range(10)]
        )  # so that the drop pays
        monkeypatch.setattr(ActivationStore, "read", broken)
        with pytest.raises(RuntimeError, match="fell off"):
            run_cell(schedule, data, costs, tmp_path, device=CPU)
        assert not list(tmp_path.glob("store-*"))


@pytest.mark.parametrize(
    "options", [{"channels_last": True, "width": 0.125}, {"precision": "bf16"}, {"cache_dtype": "int8"}]
)
def test_other_layouts_precisions_and_stores_train_to_the_end(options: dict[str, object], tmp_path: Path) -> None:
    with prepared(tmp_path, **options) as ((full, schedule), preparation):
        data, costs = preparation.data(full), preparation.costs(full)
        costs = dataclasses.replace(
            costs, inference=[0.0] * 10, forward=[0.0] * 10, steps=[10.0 - c for c in range(10)]
        )
        result = run_cell(schedule, data, costs, tmp_path, device=CPU).result
        assert result["status"] == "finished"
        assert result["drops"]
        assert result["dropped_stages"] > 0


def test_a_layout_that_pytorch_would_corrupt_memory_in_is_refused(tmp_path: Path) -> None:
    """A strided 1 x 1 convolution of 6 channels, channels_last, on a CPU; 8 channels are all right."""
    with (
        prepared(tmp_path, channels_last=True) as (planned, made),
        pytest.raises(UserError, match=r"layer layer2\.0\.downsample\.0 is a strided 1 x 1 convolution of 6 channels"),
    ):
        check_plan(planned, made)
    for fine in ({"channels_last": True, "width": 0.125}, {"channels_last": False}):
        with prepared(tmp_path, **fine) as (planned, made):
            check_plan(planned, made)


def test_synthetic_images_show_no_accuracy(tmp_path: Path) -> None:
    with prepared(tmp_path, dataset="synthetic:1x16x16:4:80", train_size=None, test_size=None, image_size=None) as (
        cells,
        preparation,
    ):
        result = run_cell(
            cells[0], preparation.data(cells[0]), preparation.costs(cells[0]), tmp_path, device=CPU
        ).result
        assert result["test_accuracy"] is None
        assert not result["at_chance"]


def test_freezeout_gives_each_stage_its_own_rate_and_freezes_in_order(tmp_path: Path) -> None:
    with prepared(tmp_path, method=["freezeout"], epochs=5, policy={"freezeout": {"t_first": 0.3}}) as (
        (cell,),
        preparation,
    ):
        result = run_cell(cell, preparation.data(cell), preparation.costs(cell), tmp_path, device=CPU).result
        cuts = [drop["cut"] for drop in result["drops"]]
        assert cuts
        assert cuts == sorted(cuts)
        assert result["store_bytes"] == 0
        assert result["forward_flops"] == result["forward_flops_full"]


@pytest.mark.parametrize("method", ["full", "schedule", "stochastic-depth", "resize"])
def test_steps_and_building_are_the_time_that_training_took(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every step as long as it was, so that this holds on a busy machine too."""
    monkeypatch.setattr(step_times, "FEWEST_STEPS", 10**9)
    with prepared(tmp_path, method=[method], epochs=6) as ((cell,), preparation):
        data, costs = preparation.data(cell), preparation.costs(cell)
        costs = dataclasses.replace(
            costs, inference=[0.0] * 10, forward=[0.0] * 10, steps=[10.0 - c for c in range(10)]
        )  # so that the drop pays
        result = run_cell(cell, data, costs, tmp_path, device=CPU).result
    kinds, drops = result["step_seconds"], result["drops"]
    counted = sum(kind["counted_seconds"] for kind in kinds)
    assert result["typical_train_seconds"] == pytest.approx(counted + result["cache_build_seconds"])
    assert 0.75 * result["train_seconds"] <= result["typical_train_seconds"] <= result["train_seconds"]
    assert len(drops) == (method == "schedule")
    assert sum(kind["steps"] for kind in kinds) == result["steps"] == 36
    assert sum(kind["steps"] for kind in kinds if kind["kind"] == "first") == 6 + len(drops)
    assert sum(kind["steps"] for kind in kinds if kind["kind"] == "check") == 17  # none after the last step
    assert {kind["dropped"] for kind in kinds} == {0, *(drop["cut"] for drop in drops)}
    assert any(kind["left_out"] > 0 for kind in kinds) == (method == "stochastic-depth")
    assert {kind["image_side"] for kind in kinds} == ({8, 12, None} if method == "resize" else {None})
    assert all(kind["p20_seconds"] <= kind["median_seconds"] <= kind["p80_seconds"] for kind in kinds)
