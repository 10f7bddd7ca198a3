"""Layer dropping under ``lightning.Trainer``: one callback, and the script stays as it is.

    from ldbench.adapters.lightning import LayerDropping

    trainer = Trainer(max_epochs=20, callbacks=[LayerDropping("model", policy=FixedSchedule())])
    trainer.fit(module, DataLoader(train_set, batch_size=128, shuffle=True), val_loader)

``training_step`` goes on calling ``self.model(x)``. While it runs, that call reaches the stages that are left, and ``x``
is what these read: images at first, then the stored output of the dropped stages. Validation, test, prediction and
checkpoints see the whole, ordinary network. What is done to ``x`` itself in ``training_step`` has to make sense for
activations too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ldbench.adapters.detour import check_options, detour, find_network
from ldbench.dropping.engine import LayerDropper
from ldbench.errors import UserError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ImportError as error:
    raise UserError("Lightning is not installed: pip install 'ldbench[lightning]'") from error

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class LayerDropping(Callback):
    """Drops leading stages of a network that a ``lightning.Trainer`` trains.

    The data loader that ``fit`` is given, or that a module or data module makes, says what is trained on: a map-style
    data set of (image, target) items, shuffled, and the samples of a minibatch. Its order is replaced by the engine's,
    which visits every sample once per epoch and leaves the last, smaller minibatch out. Clipping, schedulers,
    accumulated gradients, averaged weights and mixed precision work as they do without.

    ``fit(ckpt_path=...)`` goes on with the same drops, in the middle of an epoch too (Lightning warns there that the
    loader was not resumable: it is). Checkpoints hold plain values of ldbench's alone, under this callback's name, and
    load without it.

    Args:
        network: name of the submodule that maps images to logits; "" for the module itself.
        options: of ``LayerDropper``: ``policy``, ``execution``, ``seed``, ``store``, ``on_drop`` and so on.

    Attributes:
        dropper: the engine of the latest fit, which is closed when that is over; None before the first.

    Raises:
        UserError: here and from ``fit``: what the trainer is set to do can't be done with dropped layers; the message
            says what to change.
    """

    def __init__(self, network: str = "model", **options: Any) -> None:
        check_options(options)
        self.network, self.options = network, options
        self.dropper: LayerDropper | None = None
        self._at_work: LayerDropper | None = None  # the same, while it isn't closed
        self._detour = ExitStack()
        self._resumed: dict[str, Any] = {}
        self._last: dict[str, Any] = {}  # the state of a dropper that was closed
        self._minibatches: Minibatches | None = None
        self._steps = 0  # of the trainer, when last looked

    # --- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anybody asks for the data loader, such as a scheduler that wants the number of steps."""
        if stage != "fit":
            return
        _check(trainer, pl_module)
        find_network(pl_module, self.network)
        self._resumed, self._last = {}, {}
        source = trainer.fit_loop._data_source  # where all the ways of giving a loader meet
        source.instance = self._minibatches = Minibatches(self, trainer, copy.copy(source))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weights, optimizer and counters are those that the run goes on with, restored ones included."""
        self.close()
        assert self._minibatches is not None
        total, self._steps = trainer.estimated_stepping_batches, trainer.global_step
        if total == math.inf:
            raise UserError("give the Trainer max_epochs or max_steps: drops are weighed against the steps that remain")
        options = {"total_steps": int(total) - (0 if self._resumed else self._steps)} | self.options
        network = find_network(pl_module, self.network)
        dropper = LayerDropper(network, trainer.optimizers[0], self._minibatches.loader, **options)
        if self._resumed:
            dropper.load_state_dict(self._resumed)
        self.dropper = self._at_work = dropper

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here to the batch's end the network's calls go to the engine."""
        self._detour.close()
        if self._at_work is not None:
            self._detour.enter_context(detour(find_network(pl_module, self.network), self._at_work))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells the engine where the optimizer made a step; Lightning saves checkpoints after this."""
        self._detour.close()
        if self._at_work is not None and trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._at_work.step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where ``on_train_batch_start`` of the module ended the epoch, no batch's end was reached."""
        self._detour.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing follows an exception."""
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run is over."""
        self.close()

    def close(self) -> None:
        """Free the store and leave network and optimizer as they would be without; the state stays to be saved."""
        self._detour.close()
        if self._at_work is not None:
            self._last, dropper, self._at_work = self._at_work.state_dict(), self._at_work, None
            dropper.close()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the engine."""
        return self._last if self._at_work is None else self._at_work.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next fit goes on from ``state_dict``'s answer."""
        self._resumed = state_dict


class Minibatches:
    """What Lightning reads in the place of the user's data loader: [x, y] lists, the shape of its own minibatches.

    Args:
        callback: whose dropper they come from; while it has none at work, they come from the user's loader.
        trainer: tells which minibatch of which epoch is next.
        source: Lightning's own, which gives the user's loader when it is asked to.
    """

    def __init__(self, callback: LayerDropping, trainer: Trainer, source: Any) -> None:
        self._callback, self._trainer, self._source = callback, trainer, source

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """The user's data loader."""
        loader = self._source.dataloader()
        if not isinstance(loader, DataLoader):
            raise UserError(
                f"LayerDropping trains on one DataLoader, not on a {type(loader).__name__}: give fit that one"
            )
        if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
            raise UserError(
                "LayerDropping draws samples by their index: give fit a DataLoader over a map-style data set, with "
                "batch_size and shuffle=True"
            )
        return loader

    def __len__(self) -> int:
        loader: Any = self.loader
        samples, size = len(loader.dataset), self._callback.options.get("batch_size") or loader.batch_size
        return int(samples // min(samples, size))

    def __iter__(self) -> Iterator[Any]:
        loop = self._trainer.fit_loop  # looked at when the first minibatch is asked for, not when an iterator is made
        if loop._skip_backward:  # weights were averaged, and BatchNorms of all stages are to see images
            self._callback.close()
        dropper = self._callback._at_work
        if dropper is None:
            yield from self.loader
            return
        dropper.finish_drop()
        for x, y, _ in dropper.loader(self._trainer.current_epoch, first=loop.batch_idx + 1):
            yield [x, y]


def _check(trainer: Trainer, module: LightningModule) -> None:
    """Raises ``UserError`` where dropped layers and what the trainer is to do don't go together."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        kind = type(trainer.strategy).__name__
        raise UserError(f"layers are dropped on one device only, not under {kind}: Trainer(devices=1, strategy='auto')")
    if trainer.precision not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        raise UserError(
            f"precision={trainer.precision!r} converts the network itself: with LayerDropping it is one of {known}"
        )
    if not module.automatic_optimization:
        raise UserError("LayerDropping needs automatic optimization; in a loop of your own use ldbench.LayerDropper")
    for name in ("overfit_batches", "reload_dataloaders_every_n_epochs"):
        if getattr(trainer, name):
            raise UserError(
                f"Trainer({name}=...) changes what is trained on, which LayerDropping decides: leave it out"
            )
    for owner in filter(None, (module, getattr(trainer, "datamodule", None))):
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            if is_overridden(hook, owner):
                raise UserError(
                    f"{type(owner).__name__}.{hook} would be given activations once layers are dropped: move what it "
                    "does into the data set"
                )
