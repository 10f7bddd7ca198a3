"""Layer dropping for any training loop: ``LayerDropper`` feeds the loop, watches the parameters and drops stages."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldbench.costs.table import CostTable
from ldbench.data.batch_source import as_feed
from ldbench.data.stream import Stream, full_steps, mean_steps
from ldbench.dropping.account import FlopLedger
from ldbench.dropping.deciding import check
from ldbench.dropping.drop import Drop, make_drop
from ldbench.dropping.feeding import begin_chunk, minibatches
from ldbench.dropping.live_network import live_network
from ldbench.dropping.monitors import make_watchers
from ldbench.dropping.retirement import release, retire
from ldbench.dropping.scores import ScoreTracker
from ldbench.dropping.weighing import cost_table
from ldbench.dropping.weight_average import WeightAverages
from ldbench.policies.base import Policy
from ldbench.policies.baselines import AutoFreeze
from ldbench.policies.registry import Execution
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.residual import random_depth
from ldbench.stages.split import legal_cuts, split_stages, stage_groups, stage_parameters
from ldbench.store.activation_store import ActivationStore
from ldbench.store.activations import Activations
from ldbench.store.budget import StoreBudget, Tier


class LayerDropper:
    """Trains on while leading stages leave the network.

    Use it in a loop of your own::

        dropper = LayerDropper(model, optimizer, (images, targets), batch_size=128, epochs=20)
        for epoch in range(20):
            for x, y, index in dropper:  # images, or cached activations once stages were dropped
                ...  # loss = criterion(dropper(x), y); backward; optimizer.step()
                dropper.step()

    Evaluate and save ``model`` itself, which stays whole.

    Args:
        model: a network ``torch.fx`` can trace; it is on its device already.
        optimizer: over the model's parameters; those of dropped stages leave it, state included.
        data: (images [N, C, H, W], targets [N]) tensors, a map-style data set, or a feed.
        batch_size: samples per minibatch; the last, smaller one of an epoch is left out.
        epochs: length of the run; ``total_steps`` says it in steps instead.
        policy: when to drop; ``AutoFreeze()`` by default, which was ahead of the others where they were compared. Where it
            has rates of its own (``lr_scales``) or adds steps (``spend``), the loop has to follow: rates at ``progress``,
            until ``step_count`` is ``total_steps``.
        execution: "store" skips the dropped stages' forward pass too, "freeze" their backward pass alone.
        seed: of the sample order and of dropout.
        check_every: steps between two checks of the scores; 4 checks an epoch by default.
        cache_dtype: "fp32", "bf16", "fp16" or "int8".
        cache_budget: see ``resolve_budget``.
        folder: where a memory-mapped store may lie; a temporary folder by default.
        costs: a cost table measured before; measured on the spot when a drop is first considered otherwise.
        autocast: gives the context the forward pass runs in.
        augment: draws augmentation per step; used while images are read, so it stops when the store takes over.
        refresh_statistics: re-estimate BatchNorm statistics of the stages being dropped; as the policy wants by default.
        criterion: used to measure the cost table.
        stream: sets of samples that can be drawn one after another, see ``begin_chunk``; all samples all the time by default.
        identity: names the data's content; with it a memory-mapped store can be taken up again after an interruption.

    ``state_dict`` and ``load_state_dict`` carry a run over an interruption.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, *, batch_size: int, epochs: int | None = None,
        total_steps: int | None = None, policy: Policy | None = None, execution: Execution = "store", seed: int = 0,
        check_every: int | None = None, cache_dtype: str = "fp32", cache_budget: str | StoreBudget | None = None,
        folder: Path | None = None, costs: CostTable | None = None, channels_last: bool = False, compile: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext, augment: Any = None,
        refresh_statistics: bool | None = None, criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        stream: Stream | None = None, identity: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.execution = model, optimizer, execution
        self.device = next(model.parameters()).device
        self.around_building: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # a meter's window
        self.feed = as_feed(data, self.device)
        self.samples = len(self.feed)
        self.stream = stream if stream is not None else Stream.whole(self.samples)
        self.batch_size = min(batch_size, *map(len, self.stream.sets))
        if total_steps is None and epochs is None:
            raise ValueError("give epochs or total_steps: drops are weighed against the steps that remain")
        whole = full_steps(self.stream, self.batch_size, epochs or 0)
        self.planned_steps = total_steps if total_steps is not None else whole
        self.total_steps = self.planned_steps  # grows where a policy spends what it saved
        self.stretched: tuple[int, float] | None = None  # step and progress where it last grew
        self.policy = policy if policy is not None else AutoFreeze()
        self.seed, self.check_every = seed, check_every or max(1, mean_steps(self.stream, self.batch_size) // 4)
        self.cache_dtype, self.channels_last, self.compile = cache_dtype, channels_last, compile
        self.autocast, self.augment, self.criterion = autocast, augment, criterion
        self.refresh_statistics = self.policy.refreshes if refresh_statistics is None else refresh_statistics
        self.costs = costs
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ldbench-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self.budget = cache_budget

        self.stages = split_stages(model)
        self.stage_names = [str(stage.stage_name) for stage in self.stages]
        self.legal = legal_cuts(self.stages)
        self.stage_parameters = stage_parameters(self.stages)
        self.tracker = ScoreTracker(self.stage_parameters) if "scores" in self.policy.needs else None
        self.ledger: FlopLedger | None = None
        self.activations = Activations(
            self.stages, self.feed, self.stream, batch_size=self.batch_size, dtype=cache_dtype, device=self.device, folder=folder,
            channels_last=channels_last, autocast=autocast, identity=identity,
        )  # fmt: skip
        self.activations.tell = self.tell
        self.watchers = make_watchers(self)
        self.averages = (
            WeightAverages(stage_groups(self.stage_parameters), round(self.policy.average * self.planned_steps))
            if self.policy.average
            else None
        )
        self.depth = random_depth(self.stages, seed, compile) if self.policy.survival(0.0, 1) is not None else None
        self.cut = self.waiting = self.step_count = self.epoch_count = 0
        self.drops: list[Drop] = []
        self.declined: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.cache_build_seconds = self.scoring_seconds = self.summed_lr = 0.0
        self.store_read_seconds = 0.0  # host seconds: on a GPU the time to launch the reads
        self.peak_store_bytes = 0
        self.incidents: list[dict[str, Any]] = []  # what went wrong without ending the run, for people
        self.abandoned_seconds = 0.0  # building a store that an exception cut short
        self.pending: dict[str, Any] | None = None
        self.rebuild_live()

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The next epoch's minibatches, see ``loader``."""
        self.epoch_count += 1
        return self.loader(self.epoch_count - 1)

    def loader(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Minibatches (images or activations [B, ...], targets [B], sample indices int64 [B] on the CPU) of an epoch."""
        return minibatches(self, epoch, first)

    def begin_chunk(self, chunk: int) -> None:
        """Draw from set ``chunk`` of the stream, the next one, from now on.

        What is new in it passes once through the dropped stages and joins the store; what is not in it any more leaves.
        """
        begin_chunk(self, chunk)

    def __call__(self, x: Tensor) -> Tensor:
        """The live stages' output for a minibatch of the loader."""
        if self.depth is not None:
            survival = self.policy.survival(self.progress, len(self.depth.places))
            self.depth.draw(self.step_count, survival or [])
        if self.execution == "freeze" and self.cut:
            with torch.no_grad():
                for stage in self.stages[: self.cut]:
                    x = stage(x)
        return self._live(x)

    def step(self, samples: int | None = None) -> Drop | None:
        """Call after ``optimizer.step()``: counts the step, checks the scores when due, drops what has stopped."""
        if self.ledger is not None:
            forward_from = 0 if self.execution == "freeze" else self.cut
            left_out = self.depth.skipped if self.depth is not None else frozenset()
            self.ledger.add_step(samples or self.batch_size, self.cut, forward_from, left_out)
        if self.depth is not None:
            self.depth.count()
        for observer in (*self.watchers.values(), self.averages):
            if observer is not None:
                began = time.perf_counter()
                observer.after_step()
                self.scoring_seconds += time.perf_counter() - began
        self.step_count += 1
        self.summed_lr += float(self.optimizer.param_groups[-1]["lr"])  # the last stage's, which is never annealed
        if self.step_count % self.check_every or self.step_count >= self.total_steps:
            return None
        return check(self)

    def count_flops(self, sample_shape: tuple[int, ...]) -> FlopLedger:
        """Start counting executed FLOPs, for samples of ``sample_shape`` (C, H, W)."""
        table = self.costs.flops if self.costs is not None else count_stage_flops(self.stages, sample_shape)
        self.ledger = FlopLedger.empty(table)
        if self.depth is not None:
            self.ledger.shortcuts = self.depth.shortcut_flops(table, sample_shape)
        return self.ledger

    @property
    def chunk(self) -> int:
        """The set of the stream that is drawn from now."""
        return self.activations.chunk

    @property
    def active(self) -> Tensor:
        """The samples that can be drawn now, int64 ascending on the CPU."""
        return self.activations.active

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the samples that can be drawn now."""
        return len(self.active) // self.batch_size

    @property
    def store(self) -> ActivationStore | None:
        """The activation store that is read now; None while images are."""
        return self.activations.store

    @property
    def progress(self) -> float:
        """Where the run is on its schedule, in [0, 1]: share of the steps made, as far as none were added."""
        if self.stretched is None:
            return self.step_count / self.total_steps
        began, progress = self.stretched
        return progress + (1 - progress) * (self.step_count - began) / (self.total_steps - began)

    @property
    def schedule_step(self) -> float:
        """The step of ``planned_steps`` at which a learning rate schedule stands now."""
        return self.step_count if self.stretched is None else self.progress * self.planned_steps

    @property
    def live_stages(self) -> int:
        """Stages still in the training network."""
        return len(self.stages) - self.cut

    def close(self, *, keep_store_file: bool = False) -> None:
        """Free the store and give the model back its ordinary behaviour (``train`` and ``requires_grad``)."""
        self.activations.close(keep_file=keep_store_file)
        release(self.stages[: self.cut])

    # --- what a drop does --------------------------------------------------------------------------------------------

    def finish_drop(self) -> Drop | None:
        """Make the drop that an interruption cut short, if there was one."""
        if self.pending is None:
            return None
        with self.around_building():
            return make_drop(self, **self.pending)

    def _drop(self, cut: int, reason: str, saving: float, tier: Tier | None) -> Drop | None:
        return make_drop(self, cut, reason, saving, tier)  # by this name the benchmarks know it in every commit

    def _cost_table(self) -> CostTable:
        return cost_table(self)

    def retire(self, cut: int) -> None:
        """Stages up to ``cut`` leave training for good."""
        gone = [p for stage in self.stage_parameters[self.cut : cut] for p in stage]
        retire(self.stages[self.cut : cut], gone, self.optimizer)
        self.cut = self.activations.cut = cut
        if self.tracker is not None:
            self.tracker.drop(cut)
        for observer in (*self.watchers.values(), self.averages):
            if observer is not None:
                observer.drop(cut)

    def rebuild_live(self) -> None:
        """Run the stages that are left from now on."""
        self._live = live_network(self)

    def tell(self, what: str) -> None:
        """Note an incident."""
        self.incidents.append({"step": self.step_count, "what": what})

    # --- going on after an interruption ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the engine needs, beside model and optimizer, to go on with the same bits: JSON values and tensors."""
        from ldbench.dropping.dropstate import dropper_state

        return dropper_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s answer, on a fresh dropper whose model holds its saved weights already.

        Dropped stages leave the optimizer here, so its own state is loaded after this. A store is taken from its file
        where that can be proven right, else rebuilt from the dropped stages, which takes as long as building it did.
        """
        from ldbench.dropping.dropstate import load_dropper_state

        load_dropper_state(self, state)
