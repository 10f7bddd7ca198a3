"""The subclass of transformers' Trainer: trains as that does, drops for good, evaluates the whole network, resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loops import BATCH, SAMPLES, Net, cheap_store, data, state
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Sampler

from ldbench import FixedSchedule, FreezeOut
from ldbench.errors import UserError
from ldbench.policies.base import NeverDrop
from ldbench.seeds import sample_order

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'ldbench[transformers]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ldbench[transformers]'")

from transformers import Trainer, TrainerCallback, TrainingArguments

from ldbench.adapters.transformers import STATE_FILE, DroppingTrainer

EPOCHS = 4
STEPS = SAMPLES // BATCH
DROPS = ((0.2, 1), (0.5, 2))

pytestmark = pytest.mark.usefixtures("one_thread")


class Classifier(nn.Module):
    """As a user writes it for the Trainer, with nothing of ldbench's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net: nn.Module = Net()
        self.seen: list[tuple[int, ...]] = []
        self.kinds: list[torch.dtype] = []

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            self.seen.append(tuple(pixel_values.shape[1:]))
            self.kinds.append(pixel_values.dtype)
        logits = self.net(pixel_values)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


class Items(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": data()[0][index], "labels": int(data()[1][index])}


class EngineOrder(Sampler[int]):
    """The engine's order, epoch by epoch."""

    epoch = -1

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(sample_order(SAMPLES, 0, self.epoch).tolist())

    def __len__(self) -> int:
        return SAMPLES


class Plain(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> EngineOrder:
        return EngineOrder()


class Watch(TrainerCallback):
    """Weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.weights.append({name: value.clone() for name, value in rest["model"].state_dict().items()})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    run: dict[str, Any] = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "learning_rate": 0.01}
    return TrainingArguments(str(folder), **(quiet | run | options))


def dropping(model: nn.Module, args: TrainingArguments, policy: Any = None, **options: Any) -> DroppingTrainer:
    given = {"policy": policy or FixedSchedule(DROPS), "costs": cheap_store(Net()), "check_every": 2} | options
    return DroppingTrainer(
        model, args, train_dataset=Items(), eval_dataset=Items(), network="net", dropping=given, callbacks=[Watch()]
    )


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 4}, {"bf16": True}, {"optim": "sgd", "weight_decay": 0.01}]
)
def test_without_a_drop_it_trains_as_the_trainer_does(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, ours = Classifier(), Classifier()
    Plain(plain, arguments(tmp_path, dataloader_drop_last=True, **options), train_dataset=Items()).train()
    trainer = dropping(ours, arguments(tmp_path, **options), NeverDrop())
    trainer.train()
    assert same(state(plain), state(ours))
    assert trainer.dropper is not None
    assert trainer.dropper.step_count == EPOCHS * -(-STEPS // options.get("gradient_accumulation_steps", 1))


@pytest.mark.parametrize("execution", ["store", "freeze"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_what_was_dropped_never_moves_and_evaluation_sees_the_whole_network(
    tmp_path: Path, execution: str, options: dict[str, Any]
) -> None:
    model = Classifier()
    trainer = dropping(model, arguments(tmp_path, eval_strategy="epoch", **options), execution=execution)
    trainer.train()
    assert trainer.dropper is not None
    assert [drop.cut for drop in trainer.dropper.drops] == [1, 2]
    watch = next(each for each in trainer.callback_handler.callbacks if isinstance(each, Watch))
    for drop, part in zip(trainer.dropper.drops, ("net.first.", "net.second."), strict=True):
        after = watch.weights[drop.step :]  # what is watched comes before the drop
        gone = [{name: value for name, value in weights.items() if name.startswith(part)} for weights in after]
        assert len(gone) > 1
        assert all(same(gone[0], weights) for weights in gone)
        assert not torch.equal(after[0]["net.head.weight"], after[-1]["net.head.weight"])
    images, activations = (1, 8, 8), (72,)
    assert model.seen[0] == images
    assert model.seen[-1] == (activations if execution == "store" else images)
    mixed = execution == "store" and options.get("bf16") is not None
    assert model.kinds[-1] == (torch.bfloat16 if mixed else torch.float32)  # as the loop's own precision computes them
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == EPOCHS
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.net(data()[0]), data()[1])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), rel=0.05 if options.get("bf16") else 1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in vars(model.net)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [1, 2, 4, 6, 7, 11])
def test_a_resumed_run_ends_with_the_same_weights_and_drops(tmp_path: Path, at: int, accumulate: int) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": accumulate}
    straight = Classifier()
    first = dropping(straight, arguments(tmp_path / "straight", **options))
    first.train()
    folder = tmp_path / "straight" / f"checkpoint-{at}"
    assert torch.load(folder / STATE_FILE, weights_only=True)
    resumed = Classifier()
    second = dropping(resumed, arguments(tmp_path / "resumed", **options))
    second.train(resume_from_checkpoint=str(folder))
    assert first.dropper is not None
    assert second.dropper is not None
    assert [(drop.step, drop.cut) for drop in second.dropper.drops] == [(d.step, d.cut) for d in first.dropper.drops]
    assert second.dropper.step_count == first.dropper.step_count == EPOCHS * STEPS // accumulate
    assert len(resumed.seen) == EPOCHS * STEPS - at * accumulate
    assert same(state(straight), state(resumed))


def test_a_network_of_timm_in_a_model_of_transformers_drops(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=4, model_args={"in_chans": 1})
    model = TimmWrapperForImageClassification(config)
    trainer = DroppingTrainer(
        model,
        arguments(tmp_path),
        train_dataset=Items(),
        network="timm_model",
        dropping={"policy": FixedSchedule(((0.5, 2),)), "execution": "freeze"},
    )
    trainer.train()
    assert trainer.dropper is not None
    assert [drop.cut for drop in trainer.dropper.drops] == [2]
    model.save_pretrained(tmp_path / "saved")
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path / "saved")
    assert same(state(model), state(loaded))


class Logits(nn.Module):
    """Images to logits, by a classifier of transformers."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x).logits


def test_a_network_that_transformers_wrote_drops_within_two_small_modules(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    classifier = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=4, layer_type="basic"))
    model = Classifier()
    model.net = Logits(classifier)
    trainer = dropping(model, arguments(tmp_path), FixedSchedule(((0.5, 1),)), execution="freeze", costs=None)
    before = state(classifier)
    trainer.train()
    assert trainer.dropper is not None
    assert [drop.cut for drop in trainer.dropper.drops] == [1]
    assert all(not torch.equal(before[name], value) for name, value in classifier.named_parameters())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


class NoLabels(Items):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": data()[0][index]}


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    with pytest.raises(UserError, match=r"no network named 'timm_model'.*\(it has net\)"):
        DroppingTrainer(Classifier(), args, train_dataset=Items(), network="timm_model")
    with pytest.raises(UserError, match="FreezeOut sets a learning rate for every stage"):
        dropping(Classifier(), args, FreezeOut())
    with pytest.raises(UserError, match="torch_compile would keep the code"):
        dropping(Classifier(), arguments(tmp_path, torch_compile=True))
    trainer = dropping(Classifier(), arguments(tmp_path, max_steps=4))
    trainer.train_dataset = Stream()
    with pytest.raises(UserError, match="give a map-style train_dataset"):
        trainer.train()
    trainer.train_dataset = NoLabels()
    with pytest.raises(UserError, match=r"lack labels \(they hold pixel_values\)"):
        trainer.train()


def test_an_exception_leaves_an_ordinary_network(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 20:
                raise RuntimeError("out of luck")

    model = Classifier()
    trainer = dropping(model, arguments(tmp_path))
    trainer.add_callback(Breaks())
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert trainer.dropper is not None
    assert trainer.dropper.cut == 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model(*data())["logits"].shape == (SAMPLES, 4)
