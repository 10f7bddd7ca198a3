"""Layer dropping under the ``Trainer`` of Hugging Face's transformers, for image classifiers.

    from ldbench.adapters.transformers import DroppingTrainer

    model = AutoModelForImageClassification.from_pretrained("timm/resnet18.a1_in1k", num_labels=10)
    trainer = DroppingTrainer(
        model, args, train_dataset=..., eval_dataset=..., network="timm_model", dropping={"policy": FixedSchedule()}
    )
    trainer.train()

``network`` names a submodule that is called with images alone, returns logits alone, and can be traced by ``torch.fx``.
Networks of timm in ``TimmWrapperForImageClassification`` are such. What transformers writes itself returns records; its
convolutional models (ResNet, RegNet, ConvNext, MobileNet) can be cut when two small modules of yours stand around them::

    class Logits(nn.Module):  # images -> logits
        def __init__(self, classifier):
            super().__init__()
            self.classifier = classifier

        def forward(self, x):
            return self.classifier(x).logits

    class Model(nn.Module):  # what the trainer trains, network="net"
        def __init__(self, classifier):
            super().__init__()
            self.net = Logits(classifier)

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

Its ViT makes two stages in all; timm's is cut at every block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ldbench.adapters.detour import check_options, detour, find_network
from ldbench.dropping.engine import LayerDropper
from ldbench.errors import UserError
from ldbench.seeds import derive_seed, preserved_streams, seed_streams

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ImportError as error:
    raise UserError("transformers is not installed: pip install 'ldbench[transformers]'") from error

STATE_FILE = "layer_dropping.pt"  # in a checkpoint's folder


class DroppingTrainer(Trainer):
    """A ``transformers.Trainer`` that drops leading stages of the network it trains.

    Items of the data set, or minibatches of the collator, hold ``pixel_values`` and ``labels``. They are read by index
    in the training process; the order is the engine's, which visits every sample once per epoch and leaves the last,
    smaller minibatch out. Evaluation, prediction and checkpoints see the whole, ordinary network; the engine's state
    lies in a checkpoint as ``layer_dropping.pt``, and ``train(resume_from_checkpoint=...)`` goes on with the same drops.

    Args:
        given: what ``Trainer`` takes, by place or by name.
        network: name of the submodule that maps images to logits.
        dropping: options of ``LayerDropper``: ``policy``, ``execution``, ``seed``, ``store``, ``on_drop`` and so on.

    Attributes:
        dropper: the engine of the latest ``train``, which is closed when that is over; None before the first.

    Raises:
        UserError: here and from ``train``: what the trainer is set to do can't be done with dropped layers; the message
            says what to change.
    """

    def __init__(self, *given: Any, network: str, dropping: dict[str, Any] | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        options = dropping or {}
        check_options(options)
        _check(self)
        if self.model_init is None:
            find_network(self.model, network)
        # All state lies there, where no name of Trainer's, public or not, is in the way.
        self.layer_dropping = _Run(self, network, options)
        self.add_callback(self.layer_dropping)

    @property
    def dropper(self) -> LayerDropper | None:
        return self.layer_dropping.dropper

    def train(self, resume_from_checkpoint: str | bool | None = None, *given: Any, **named: Any) -> Any:
        """As ``Trainer.train``; in the end, or after an exception, network and optimizer are as without dropping."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        self.layer_dropping.resume_from(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *given, **named)
        finally:
            self.layer_dropping.close()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Positions in an epoch's order, which cost nothing to skip; ``get_batch_samples`` reads what lies there."""
        return self.layer_dropping.take_over(super().get_train_dataloader(), self._train_batch_size)

    def get_batch_samples(self, epoch_iterator: Iterator[Tensor], *given: Any, **named: Any) -> Any:
        """The next minibatches, as dictionaries of ``pixel_values`` and ``labels``."""
        return super().get_batch_samples(map(self.layer_dropping.read, epoch_iterator), *given, **named)

    def training_step(self, *given: Any, **named: Any) -> Any:
        """As ``Trainer``'s, with the network's call going to the stages that are left."""
        with self.layer_dropping.detour():
            return super().training_step(*given, **named)


class _Run(TrainerCallback):
    """The engine of a ``DroppingTrainer``, told by it, and as its callback, where in a run it is."""

    def __init__(self, trainer: DroppingTrainer, network: str, options: dict[str, Any]) -> None:
        self._trainer: Any = trainer
        self._name, self._options = network, options
        self.dropper: LayerDropper | None = None  # of the latest run
        self._at_work: LayerDropper | None = None  # the same, while it isn't closed
        self._examples: Examples | None = None
        self._minibatch_size = 0
        self._epoch = 0
        self._reader: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None  # what is left of the epoch
        self._resumed: Path | None = None

    @property
    def network(self) -> nn.Module:
        return find_network(self._trainer.model, self._name)

    def resume_from(self, checkpoint: str | bool | None) -> None:
        """The folder of the checkpoint that the next run goes on from, if it does."""
        self._resumed = Path(checkpoint) / STATE_FILE if isinstance(checkpoint, str) else None

    def take_over(self, loader: Any, minibatch_size: int) -> DataLoader[Any]:
        """A loader of positions in the place of the trainer's own, which tells what is to be read."""
        if isinstance(loader.dataset, IterableDataset):
            raise UserError("layers are dropped with samples drawn by their index: give a map-style train_dataset")
        self._examples = Examples(loader.dataset, loader.collate_fn, self.network, int(self._options.get("seed", 0)))
        self._minibatch_size = min(minibatch_size, len(self._examples))
        positions: Any = range(len(self._examples) // self._minibatch_size * self._minibatch_size)
        return DataLoader(positions, batch_size=self._minibatch_size)

    def read(self, positions: Tensor) -> dict[str, Tensor]:
        """The minibatch at these positions, int64 [B]: the next one, but for the first after an interruption."""
        assert self._at_work is not None
        if self._reader is None:
            self._reader = self._at_work.loader(self._epoch, first=int(positions[0]) // self._minibatch_size)
        x, y, _ = next(self._reader)
        return {"pixel_values": x, "labels": y}

    def detour(self) -> AbstractContextManager[None]:
        """The context of a training step."""
        assert self._at_work is not None
        return detour(self.network, self._at_work)

    def close(self) -> None:
        """Free the store and leave network and optimizer as they would be without."""
        self._reader = None
        if self._at_work is not None:
            dropper, self._at_work = self._at_work, None
            dropper.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Weights, optimizer and counters are those that the run goes on with, restored ones included."""
        self.close()
        assert self._examples is not None
        minibatches = len(self._examples) // self._minibatch_size
        self._epoch = state.global_step // math.ceil(minibatches / args.gradient_accumulation_steps) - 1
        saved = self._resumed if self._resumed is not None and self._resumed.exists() else None
        options = {
            "batch_size": self._minibatch_size,
            "total_steps": state.max_steps - (0 if saved else state.global_step),
        } | self._options
        dropper = LayerDropper(self.network, self._trainer.optimizer, self._examples, **options)
        if saved is not None:
            dropper.load_state_dict(torch.load(saved, weights_only=True))
        self.dropper = self._at_work = dropper

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """The next epoch is read from its beginning."""
        self._epoch, self._reader = self._epoch + 1, None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Tells the engine of a step; the trainer saves checkpoints after this."""
        if self._at_work is not None:
            self._at_work.step()

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Adds the engine's state to a checkpoint."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._at_work is not None and folder.is_dir() and not args.save_only_model:
            torch.save(self._at_work.state_dict(), folder / STATE_FILE)


class Examples:
    """What the trainer's data set and collator give, by sample: a ``BatchSource``.

    Images come in the dtype of the network's parameters.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[Sequence[Any]], Any], network: nn.Module, seed: int = 0
    ) -> None:
        self.dataset, self.collate, self.seed = dataset, collate, seed
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def __len__(self) -> int:
        return len(self.dataset)

    def of_view(self, samples: Tensor, view: int) -> int:
        """The draw for a view (from 0): the seed of random transforms, which draw from the global streams."""
        del samples  # each has a stream of its own
        return derive_seed(self.seed, "view", view)

    def batch(self, indices: Tensor, augment: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and targets [B, ...] of the samples ``indices`` (int64 [B], CPU), on the device.

        Args:
            augment: a draw of ``of_view``; None: random transforms draw from the streams there are.
        """
        if augment is None:
            given = self.collate([self.dataset[i] for i in indices.tolist()])
        else:
            with preserved_streams():
                given = self.collate([self._drawn(i, augment) for i in indices.tolist()])
        missing = [name for name in ("pixel_values", "labels") if name not in given]
        if missing:
            raise UserError(
                f"minibatches of the training data lack {' and '.join(missing)} (they hold {', '.join(given)}): "
                "layers are dropped from image classifiers, whose data hold both"
            )
        images = given["pixel_values"].to(self.device, self.dtype, non_blocking=True)
        return images, given["labels"].to(self.device, non_blocking=True)

    def _drawn(self, i: int, seed: int) -> Any:
        seed_streams(derive_seed(seed, "sample", i))
        return self.dataset[i]


def _check(trainer: Trainer) -> None:
    """Raises ``UserError`` where dropped layers and what the trainer is to do don't go together."""
    devices = max(trainer.args.n_gpu, trainer.accelerator.num_processes)
    if devices > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(
            "layers are dropped on one device only, without DeepSpeed and FSDP: start one process, and let it see one "
            "GPU (CUDA_VISIBLE_DEVICES)"
        )
    if trainer.args.torch_compile:
        raise UserError(
            "torch_compile would keep the code of stages that are gone: use dropping={'compile': True} instead"
        )
