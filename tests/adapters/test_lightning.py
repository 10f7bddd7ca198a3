"""The Lightning callback: trains as Lightning does, drops for good, shows validation the whole network, resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loops import BATCH, SAMPLES, Net, cheap_store, data, state
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from ldbench import FixedSchedule, FreezeOut, Hooks
from ldbench.errors import UserError
from ldbench.policies.base import NeverDrop
from ldbench.seeds import sample_order

pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'ldbench[lightning]'")

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from ldbench.adapters.lightning import LayerDropping

EPOCHS = 4
STEPS = SAMPLES // BATCH
DROPS = ((0.2, 1), (0.5, 2))

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),  # torch about Lightning
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Classifier(LightningModule):
    """As a user writes it, with nothing of ldbench's."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model: nn.Module = Net()
        self.kind = optimizer
        self.seen: list[tuple[int, ...]] = []
        self.kinds: list[torch.dtype] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.append(tuple(x.shape[1:]))
        self.kinds.append(x.dtype)
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.model(batch[0]))

    def configure_optimizers(self) -> Any:
        if self.kind == "adamw":
            return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class EngineOrder(Sampler[int]):
    """The engine's order, epoch by epoch: Lightning tells samplers which epoch it is."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(sample_order(SAMPLES, 0, self.epoch).tolist())

    def __len__(self) -> int:
        return SAMPLES


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), **({"batch_size": BATCH, "shuffle": True} | options))


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    return Trainer(**(quiet | {"max_epochs": EPOCHS, "enable_checkpointing": False} | options), callbacks=[*callbacks])


def dropping(policy: Any = None, **options: Any) -> LayerDropping:
    policy = FixedSchedule(DROPS) if policy is None else policy
    return LayerDropping(policy=policy, **({"costs": cheap_store(Net()), "check_every": 2} | options))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Watch(Callback):
    """Weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.weights.append(state(pl_module.model))


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 4}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_a_drop_it_trains_as_lightning_does(tmp_path: Path, optimizer: str, options: dict[str, Any]) -> None:
    plain, ours = Classifier(optimizer), Classifier(optimizer)
    trainer(tmp_path, **options).fit(
        plain, loader(shuffle=False, sampler=EngineOrder(), drop_last=True), loader(shuffle=False)
    )
    callback = dropping(NeverDrop())
    trainer(tmp_path, callback, **options).fit(ours, loader(), loader(shuffle=False))
    assert same(state(plain), state(ours))
    assert all(map(torch.equal, plain.validated, ours.validated))
    assert callback.dropper is not None
    assert callback.dropper.step_count == EPOCHS * -(-STEPS // options.get("accumulate_grad_batches", 1))


@pytest.mark.parametrize("execution", ["store", "freeze"])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_what_was_dropped_never_moves_and_validation_sees_the_whole_network(
    tmp_path: Path, execution: str, options: dict[str, Any]
) -> None:
    module, watch, callback = Classifier(), Watch(), dropping(execution=execution)
    trainer(tmp_path, callback, watch, num_sanity_val_steps=0, **options).fit(module, loader(), loader(shuffle=False))
    assert callback.dropper is not None
    drops = callback.dropper.drops
    assert [drop.cut for drop in drops] == [1, 2]
    each = options.get("accumulate_grad_batches", 1)
    for drop, part in zip(drops, ("first.", "second."), strict=True):
        after = watch.weights[drop.step * each - 1 :]
        gone = [{name: value for name, value in weights.items() if name.startswith(part)} for weights in after]
        assert len(gone) > 1
        assert all(same(gone[0], weights) for weights in gone)
        head = [weights["head.weight"] for weights in after]
        assert not torch.equal(head[0], head[-1])
    images, activations = (1, 8, 8), (72,)
    assert module.seen[0] == images
    assert module.seen[-1] == (activations if execution == "store" else images)
    mixed = execution == "store" and options.get("precision") is not None
    assert module.kinds[-1] == (torch.bfloat16 if mixed else torch.float32)  # as the loop's own precision computes them
    module.eval()
    with torch.no_grad():
        whole = torch.cat([module.model(x) for x, _ in loader(shuffle=False)])
    last = torch.cat(module.validated[-STEPS:])
    assert torch.allclose(last.float(), whole, atol=0.1 if options.get("precision") else 1e-6)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert "forward" not in vars(module.model)
    held = [parameter for group in module.optimizers().param_groups for parameter in group["params"]]
    assert len(held) == len(list(module.parameters()))


@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "32-true"), ("adamw", "bf16-mixed")])
@pytest.mark.parametrize("at", [1, 7, STEPS, 2 * STEPS, 15, 20])
def test_a_resumed_run_ends_with_the_same_weights_and_drops(
    tmp_path: Path, optimizer: str, precision: Any, at: int
) -> None:
    straight, first = Classifier(optimizer), dropping()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(tmp_path, keep, first, enable_checkpointing=True, precision=precision)
    run.fit(straight, loader(), loader(shuffle=False))
    checkpoint = tmp_path / f"step={at}.ckpt"
    saved = torch.load(checkpoint, weights_only=True)  # nothing in it but tensors and plain values
    assert saved["state_dict"].keys() == Classifier().state_dict().keys()

    resumed, second = Classifier(optimizer), dropping()
    nn.init.zeros_(resumed.model.head.weight)
    again = trainer(tmp_path, second, precision=precision)
    again.fit(resumed, loader(), loader(shuffle=False), ckpt_path=checkpoint)
    assert first.dropper is not None
    assert second.dropper is not None
    assert [(drop.step, drop.cut) for drop in second.dropper.drops] == [(d.step, d.cut) for d in first.dropper.drops]
    assert second.dropper.step_count == first.dropper.step_count == EPOCHS * STEPS
    assert len(resumed.seen) == EPOCHS * STEPS - at
    assert same(state(straight), state(resumed))


def test_a_run_that_dropped_can_be_trained_on_without_dropping(tmp_path: Path) -> None:
    module, run = Classifier("adamw"), trainer(tmp_path, dropping())
    run.fit(module, loader(), loader(shuffle=False))
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert same(state(module), state(Classifier.load_from_checkpoint(tmp_path / "end.ckpt")))
    more, plain = trainer(tmp_path, max_epochs=EPOCHS + 1), Classifier("adamw")
    more.fit(plain, loader(), loader(shuffle=False), ckpt_path=tmp_path / "end.ckpt")
    assert more.global_step == (EPOCHS + 1) * STEPS
    assert not torch.equal(state(plain.model)["first.0.weight"], state(module.model)["first.0.weight"])


def test_a_run_that_did_not_drop_can_be_gone_on_with_dropping(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=2)
    run.fit(Classifier("adamw"), loader(), loader(shuffle=False))
    run.save_checkpoint(tmp_path / "half.ckpt")
    callback, module = dropping(), Classifier("adamw")
    trainer(tmp_path, callback).fit(module, loader(), loader(shuffle=False), ckpt_path=tmp_path / "half.ckpt")
    assert callback.dropper is not None
    assert callback.dropper.total_steps == callback.dropper.step_count == 2 * STEPS == len(module.seen)
    assert callback.dropper.cut == 2


@pytest.mark.filterwarnings("ignore:.*ckpt_path:UserWarning")  # Lightning about OnExceptionCheckpoint's first run
def test_a_drop_that_an_exception_cut_short_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    straight, broken, resumed = Classifier("adamw"), Classifier("adamw"), Classifier("adamw")
    whole, first, second = dropping(), dropping(hooks=Hooks(on_batch=unplugged)), dropping()
    trainer(tmp_path, whole).fit(straight, loader(), loader(shuffle=False))
    run = trainer(tmp_path, first, OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="unplugged"):
        run.fit(broken, loader(), loader(shuffle=False))
    assert whole.dropper is not None
    assert first.dropper is not None
    assert first.dropper.cut == 0
    run = trainer(tmp_path, second)
    run.fit(resumed, loader(), loader(shuffle=False), ckpt_path=tmp_path / "on_exception.ckpt")
    assert second.dropper is not None
    assert [(d.step, d.cut) for d in second.dropper.drops] == [(d.step, d.cut) for d in whole.dropper.drops]
    assert same(state(straight), state(resumed))


def unplugged() -> None:
    raise RuntimeError("unplugged")


def test_what_validation_loaded_is_not_gone_on_with(tmp_path: Path) -> None:
    run = trainer(tmp_path, dropping())
    run.fit(Classifier("adamw"), loader(), loader(shuffle=False))
    run.save_checkpoint(tmp_path / "end.ckpt")
    callback = dropping()
    trainer(tmp_path, callback).validate(Classifier("adamw"), loader(shuffle=False), ckpt_path=tmp_path / "end.ckpt")
    trainer(tmp_path, callback).fit(Classifier("adamw"), loader(), loader(shuffle=False))
    assert callback.dropper is not None
    assert callback.dropper.step_count == EPOCHS * STEPS
    assert len(callback.dropper.drops) == 2


class Itself(LightningModule):
    """Its own network: ``training_step`` calls the module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.hidden = nn.Linear(8 * 16, 32)
        self.head = nn.Linear(32, 4)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(torch.flatten(self.second(self.first(x)), 1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(tuple(batch[0].shape[1:]))
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


def test_the_module_can_be_the_network_and_the_loader_come_from_a_data_module(tmp_path: Path) -> None:
    module, callback = Itself(), dropping(FixedSchedule(((0.5, 1),)), network="", costs=cheap_store(Itself()))
    trainer(tmp_path, callback, limit_train_batches=3).fit(module, datamodule=Data())
    assert callback.dropper is not None
    assert callback.dropper.step_count == callback.dropper.total_steps == 3 * EPOCHS
    assert [(drop.step, drop.cut) for drop in callback.dropper.drops] == [(6, 1)]
    assert module.seen[0] == (1, 8, 8)
    assert module.seen[-1] == (6, 6, 6)
    assert not [name for name in vars(module) if name == "forward"]


@pytest.mark.parametrize("at", [0.5, 0.8])
def test_averaged_weights_are_those_of_the_whole_network(tmp_path: Path, at: float) -> None:
    """SWA lets BatchNorms see the data once more at the end: those of dropped stages too."""
    module, callback = Classifier("adamw"), dropping(FixedSchedule(((at, 2),)))
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=0.5)
    trainer(tmp_path, callback, averaging).fit(module, loader(), loader(shuffle=False))
    assert callback.dropper is not None
    assert callback.dropper.cut == 2
    norm = module.model.first[1]
    with torch.no_grad():
        inside = module.model.first[0](data()[0])
    assert torch.allclose(norm.running_mean, inside.mean((0, 2, 3)), atol=1e-3)
    assert module.seen[-1] == (1, 8, 8)


def test_a_moving_average_of_the_weights_is_validated_whole(tmp_path: Path) -> None:
    module, callback = Classifier(), dropping()
    average = WeightAveraging(avg_fn=lambda mean, value, count: mean + (value - mean) / 4)
    trainer(tmp_path, average, callback).fit(module, loader(), loader(shuffle=False))
    assert callback.dropper is not None
    assert callback.dropper.cut == 2
    assert all(logits.shape == (BATCH, 4) for logits in module.validated)


class EndsEpochs(Classifier):
    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            assert self.model(data()[0]).shape == (SAMPLES, 4)  # the whole network, in training mode as it is

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


def test_a_module_may_end_an_epoch_early(tmp_path: Path) -> None:
    module, callback = EndsEpochs(), dropping(check_every=1)
    trainer(tmp_path, callback).fit(module, loader(), loader(shuffle=False))
    assert callback.dropper is not None
    assert callback.dropper.step_count == 3 * EPOCHS
    assert callback.dropper.cut == 2
    assert "forward" not in vars(module.model)


class Breaks(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(self.seen) == 4 * STEPS - 2:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


def test_an_exception_leaves_an_ordinary_network(tmp_path: Path) -> None:
    module, callback = Breaks(), dropping()
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, callback).fit(module, loader(), loader(shuffle=False))
    assert callback.dropper is not None
    assert callback.dropper.cut == 2
    assert "forward" not in vars(module.model)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.model(data()[0]).shape == (SAMPLES, 4)


class ByHand(Classifier):
    automatic_optimization = False


class Transfers(Classifier):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*data(), strict=True))


REFUSED: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
    "another precision": (Classifier, {"precision": "bf16-true"}, loader, "precision='bf16-true' converts"),
    "manual optimization": (ByHand, {}, loader, "needs automatic optimization"),
    "overfitting": (Classifier, {"overfit_batches": 2}, loader, r"Trainer\(overfit_batches="),
    "reloading": (Classifier, {"reload_dataloaders_every_n_epochs": 1}, loader, "reload_dataloaders_every_n_epochs"),
    "a transfer hook": (Transfers, {}, loader, "Transfers.on_after_batch_transfer would be given activations"),
    "no end": (Classifier, {"max_epochs": -1}, loader, "give the Trainer max_epochs or max_steps"),
    "a stream": (Classifier, {}, lambda: DataLoader(Endless(), batch_size=4), "draws samples by their index"),
    "two loaders": (Classifier, {}, lambda: [loader(), loader()], "trains on one DataLoader, not on a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    module, options, given, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as caught:
        trainer(tmp_path, dropping(), **options).fit(module("adamw"), given(), loader(shuffle=False))
    assert "\n" not in str(caught.value)


def test_several_devices_are_refused_by_every_process_for_itself(tmp_path: Path) -> None:
    """``fit`` would start the second process by running this whole test session again."""
    with pytest.raises(UserError, match="one device only, not under DDPStrategy"):
        dropping().setup(trainer(tmp_path, dropping(), devices=2), Classifier(), "fit")


def test_a_network_that_is_not_there_and_rates_nobody_follows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no network named 'net'.*\(it has model\)"):
        trainer(tmp_path, dropping(network="net")).fit(Classifier(), loader(), loader(shuffle=False))
    with pytest.raises(UserError, match="FreezeOut sets a learning rate for every stage"):
        LayerDropping(policy=FreezeOut())
