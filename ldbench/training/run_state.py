"""Everything one training run consists of, and its state as a checkpoint holds it."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.table import CostTable
from ldbench.data.augment import Augment
from ldbench.data.stream import full_steps
from ldbench.devices import synchronize
from ldbench.dropping.engine import LayerDropper
from ldbench.dropping.hooks import Hooks
from ldbench.experiment.config import Cell
from ldbench.io.checksums import Damaged
from ldbench.io.tensors import copy_into
from ldbench.meters import Energy, PhaseMeters, TrainClock
from ldbench.meters.energy import add_sessions, energy_from
from ldbench.meters.step_times import Sort, StepKind, StepTimes
from ldbench.models.initial_weights import RANDOM, InitialWeights
from ldbench.models.zoo import build_model
from ldbench.policies.registry import build_policy, build_pruning, get_method
from ldbench.seeds import derive_seed
from ldbench.stages.freezing import freeze_stages
from ldbench.stages.split import split_stages, stage_groups, stage_parameters
from ldbench.store.budget import StoreOptions
from ldbench.store.changes import Changes
from ldbench.training.checkpointing import Checkpointer
from ldbench.training.epochs import Epoch, plan_epochs
from ldbench.training.optim import autocast_for, build_optimizer
from ldbench.training.setup import Resident, model_spec, stream_of
from ldbench.training.tensor_state import (
    load_optimizer,
    load_random_states,
    named_tensors,
    optimizer_state,
    random_states,
)

QUICK_BYTES = 2**30  # a store up to this size is checked and kept within the seconds an interruption may take


class RunState:
    """A cell's network, optimizer, engine and account, built from its configuration alone.

    Args:
        replay: recorded drops (step, stages) for a method that repeats another's.
        folder: existing folder for a memory-mapped store.
        initial: weights to begin with; None for random ones.
        on_batch: called before every minibatch of a store being built.

    Attributes:
        frozen: leading stages that are frozen from the beginning.
        course: the epochs to train, in order.
        rows: one entry per epoch that is over, evaluation included.
        loss_sum, summed: loss summed over ``summed`` steps of the epoch that runs.
        correct: per test image, whether the last evaluation had it right (bool [N], CPU).
        beginning: the record's account of the weights it began with.
        identity: what a checkpoint must share with this run to be its own.
    """

    def __init__(
        self,
        cell: Cell,
        data: Resident,
        costs: CostTable,
        folder: Path,
        device: torch.device,
        replay: Sequence[Sequence[int]] | None,
        initial: InitialWeights | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        dataset, method = data.dataset, get_method(cell.method)
        torch.manual_seed(derive_seed(cell.seed, "weights"))
        spec = model_spec(cell, dataset)
        model = build_model(spec)
        self.beginning = initial.put_into(model, spec) if initial is not None else RANDOM
        model = model.to(device).train()
        if cell.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        # After train(): the BatchNorms of what is frozen stay in evaluation mode.
        self.frozen = 0 if cell.freeze_to is None else freeze_stages(model, cell.freeze_to)
        policy = build_policy(cell.method, cell.policy, replay)
        self.cell, self.data, self.model = cell, data, model
        stream = stream_of(cell, dataset)
        batch_size = min(cell.batch_size, *map(len, stream.sets))
        self.full_steps = full_steps(stream, batch_size, cell.epochs)
        early = method.shortened == "early"
        self.course = plan_epochs(stream, batch_size, cell.epochs, cell.budget, early, cell.allocation)
        self.autocast = autocast_for(cell.precision, device)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing)
        self.each = nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing, reduction="none")
        groups = [list(model.parameters())]
        if policy.lr_scales(0.0, 1) is not None:  # one group per stage, each with its own rate
            groups = stage_groups(stage_parameters(split_stages(model)))
        self.optimizer = build_optimizer(cell, [[p for p in group if p.requires_grad] for group in groups])
        self.scaler = torch.amp.GradScaler(device.type, enabled=cell.precision == "fp16" and device.type == "cuda")
        self.phases = PhaseMeters(device)
        self.clock = TrainClock(device, self.phases.meters["training"])
        self.step_times, self._built = StepTimes(device), 0.0
        augment = Augment(cell.augment, dataset.image_size, cell.seed)
        self.dropper = LayerDropper(
            model,
            self.optimizer,
            data.train,
            stream=stream,
            batch_size=cell.batch_size,
            total_steps=self.course[-1].end,
            policy=policy,
            execution=method.execution,
            seed=cell.seed,
            check_every=cell.check_every,
            store=StoreOptions(cell.cache_dtype, cell.cache_budget, folder, dataset.fingerprint),
            costs=costs,
            channels_last=cell.channels_last,
            compile=cell.compile,
            autocast=self.autocast,
            augment=augment if augment.active else None,
            criterion=self.criterion,
            hooks=Hooks(on_batch, functools.partial(self.phases.span, "cache_building")),
            accumulate=1,
            drop_frozen=method.stops,
            refresh_statistics=bool(cell.refresh_statistics),
            views=cell.cache_views,
            refresh_views=cell.refresh_views,
            change_features=Changes.named(cell.change_features or ()).strengths,
            decide_by="flops" if cell.decide_by == "flops" else "time",
            pruning=build_pruning(cell.method, cell.policy),
        )
        self.dropper.count_flops((dataset.channels, dataset.image_size, dataset.image_size))
        self._epoch_spans: dict[int, tuple[int, int]] = {}
        self._in_shared = False  # the epoch that runs began in a window of the one before
        self._shared: set[int] = set()  # epochs without an energy window of their own
        # First window of the epoch that runs; None where that began in an earlier process or in a shared window.
        self._first_span: int | None = 0
        self.rows: list[dict[str, Any]] = []
        self.loss_sum, self.summed = torch.zeros((), device=device), 0
        self.eval_seconds = self.compile_seconds = 0.0
        self.correct: Tensor | None = None
        self._energy_before: Energy | None = None
        self._seconds_before = 0.0
        self.identity: dict[str, Any] = {
            "config_hash": cell.config_hash,
            "data_fingerprint": dataset.fingerprint,
            "replay": replay,
        }
        if initial is not None:
            self.identity["init_sha256"] = self.beginning["init_sha256"]

    @property
    def costs(self) -> CostTable:
        """The cost table that drops are decided by."""
        return self.dropper.costs.table

    def loss(self, output: Tensor, targets: Tensor, index: Tensor) -> Any:
        """The loss of a minibatch of the samples ``index``; where samples sit out, the mean of the weighted ones."""
        if self.dropper.pruning is None:
            return self.criterion(output, targets)
        losses = self.each(output, targets)
        self.dropper.saw(index, losses)
        return (self.dropper.weights(index) * losses).mean()

    def begin_steps(self) -> None:
        """Steps follow one another from now on, and their times are taken."""
        self.step_times.begin()
        self._built = self._building()

    def _building(self) -> float:
        return self.dropper.account.building_seconds + self.dropper.account.abandoned_seconds

    def end_step(self, samples: int) -> None:
        """Have the engine end the step, which may drop stages, and take its time without that of building, before the
        minibatch was there too.
        """
        dropper, times = self.dropper, self.step_times
        cut = dropper.cut
        left_out = sum(place >= cut for place in dropper.live.skipped)
        try:
            dropper.step(samples)
        finally:  # the step was made, even where an interruption cuts a drop short
            before, self._built = self._built, self._building()
            sort: Sort = "first" if times.fresh else "check" if dropper.schedule.check_due else "step"
            side = 0 if dropper.resizing is None else dropper.resizing.side
            times.lap(StepKind(cut, sort, left_out, side), self._built - before)
            times.fresh = dropper.cut != cut

    def loss_is_broken(self) -> bool:
        """Whether the loss is not finite any more; looked at when scores are checked, since looking waits for the
        device.
        """
        return self.dropper.step_count % self.dropper.schedule.check_every == 0 and not math.isfinite(
            float(self.loss_sum)
        )

    def epoch_is_over(self) -> bool:
        """Whether the epoch's steps are made, or no further one would mean anything."""
        return self.dropper.schedule.steps_of_plan >= self.epoch.end or self.loss_is_broken()

    def end_epoch(self) -> dict[str, Any]:
        """The row of the epoch whose steps are over, not evaluated yet."""
        dropper, flops = self.dropper, self.dropper.account.flops
        not_evaluated = dict.fromkeys(("test_accuracy", "test_loss", "val_accuracy", "val_loss"))
        return {
            "epoch": len(self.rows),
            "chunk": dropper.chunk,
            "step": dropper.step_count,
            # A weighted mean stands for as many steps as it moves on by: an epoch's losses are those of all samples.
            "train_loss": float(self.loss_sum) / (dropper.schedule.steps_of_plan - self.epoch.first_step),
            **not_evaluated,
            "live_stages": len(dropper.stages) - dropper.cut,
            "dropped_stages": dropper.cut,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "train_seconds": self.clock.seconds,
            "forward_flops": sum(flops.forward),
            "backward_flops": sum(flops.backward),
            "store_bytes": 0 if dropper.store is None else dropper.store.nbytes,
        }

    def begin_epoch(self, row: dict[str, Any]) -> None:
        """Put the finished epoch's row away and start summing the next one's loss."""
        if self.clock.open or (self._first_span is None and self._in_shared):
            self._shared.add(len(self.rows))
        elif self._first_span is not None:
            self._epoch_spans[len(self.rows)] = self._first_span, self.clock.windows
        self._in_shared = self.clock.open
        self._first_span = None if self.clock.open else self.clock.windows
        self.rows.append(row)
        self.loss_sum.zero_()
        self.summed = 0

    def schedule_position(self) -> tuple[float, int]:
        """Step and length of what the learning rate's schedule spans: the whole run, or the chunk that runs.

        Steps are those of the plan, which a shorter epoch passes in longer ones.
        """
        step = self.dropper.schedule.steps_of_plan
        if self.cell.stream_schedule != "chunk":
            return step, self.dropper.total_steps
        begun = self.epoch.chunk_first_step
        return step - begun, self.epoch.chunk_end - begun

    @property
    def epoch(self) -> Epoch:
        """The epoch that runs, or comes next."""
        return self.course[len(self.rows)]

    def epoch_of(self, step: int) -> int:
        """The epoch, of those that are over, that step number ``step`` (from 1) belongs to."""
        return next(number for number, row in enumerate(self.rows) if step <= row["step"])

    def flops(self) -> int:
        """FLOPs executed so far, forward and backward."""
        return self.dropper.account.flops.total

    def energy_record(self) -> dict[str, Any]:
        """The energy fields of the record; every epoch's row gets its own."""
        self.phases.epochs(self.rows, self._epoch_spans, self._shared)
        return self.phases.record(self.energy())

    def energy(self) -> Energy:
        """Energy of all training that was not lost, over every interruption."""
        return add_sessions(self._energy_before, self.clock.energy.total(), self.clock.seconds > self._seconds_before)

    def compile(self) -> None:
        """Run the compiled network once, forward and backward, leaving weights, statistics, gradients as they were."""
        began = time.perf_counter()
        dropper = self.dropper
        buffers, random = [(b, b.clone()) for b in self.model.buffers()], random_states(dropper.device)
        x, y, _ = next(dropper.loader(0, trial=True))
        with self.autocast():
            loss = self.criterion(dropper(x), y)
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        load_random_states(random)
        synchronize(dropper.device)
        self.compile_seconds += time.perf_counter() - began

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, checkpointer: Checkpointer, *, last: bool = False) -> None:
        """Have a checkpoint written between two steps.

        Args:
            last: the process ends right after; a large store is then left to be rebuilt.
        """
        lost = self.dropper.account.take_abandoned_seconds() if checkpointer.folder is not None else 0.0
        self.clock.seconds -= lost  # a store whose building was cut short is built again: that was no training
        store = self.dropper.store

        def state() -> dict[str, Any]:
            if store is not None and not (last and store.nbytes > QUICK_BYTES):
                self.dropper.activations.keep()
            return self.state()

        checkpointer.save(state, self.dropper.step_count, lost)

    def state(self) -> dict[str, Any]:
        """Everything that decides the bits of the steps to come and the figures of the record, between two steps."""
        return {
            "identity": self.identity,
            "model": named_tensors(self.model),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "dropper": self.dropper.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rows": self.rows,
            "loss_sum": self.loss_sum,
            "summed": self.summed,
            "random": random_states(self.dropper.device),
            "train_seconds": self.clock.seconds,
            "step_times": self.step_times.state_dict(),
            "eval_seconds": self.eval_seconds,
            "compile_seconds": self.compile_seconds,
            "energy": dataclasses.asdict(self.energy()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state()`` of an earlier process. Raises ``Damaged`` when it's the state of another network."""
        tensors = named_tensors(self.model)
        if tensors.keys() != state["model"].keys():
            raise Damaged("holds another network")
        for name, tensor in tensors.items():
            copy_into(tensor, state["model"][name])
        self.dropper.load_state_dict(state["dropper"])
        load_optimizer(self.optimizer, self.model, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.rows[:] = state["rows"]
        copy_into(self.loss_sum, state["loss_sum"])
        self.summed = state["summed"]
        self._first_span = None if self.summed else 0
        self.clock.seconds = self._seconds_before = state["train_seconds"]
        self.step_times.load_state_dict(state["step_times"])
        self.eval_seconds = state["eval_seconds"]
        self.compile_seconds = state["compile_seconds"]
        self._energy_before = energy_from(state["energy"])
        load_random_states(state["random"])
