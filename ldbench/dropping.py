"""Layer dropping for any training loop: ``LayerDropper`` feeds the loop, watches the parameters and drops stages."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldbench.activations import Activations
from ldbench.averages import WeightAverages
from ldbench.cache import ActivationStore, StoreBudget, Tier, resolve_budget, store_bytes
from ldbench.costs import STATISTICS_SAMPLES, CostTable, StorePlan, best_cut, synchronize
from ldbench.data import derive_seed, sample_order
from ldbench.errors import UserError
from ldbench.feeds import as_feed
from ldbench.flops import FlopLedger, count_stage_flops
from ldbench.methods import Execution
from ldbench.optim import stage_groups
from ldbench.policies import LearnAndDrop, Observation, Policy
from ldbench.prefix import NoRoom, refresh_statistics, release, remember, retire
from ldbench.residual import RandomDepth
from ldbench.scores import ScoreTracker
from ldbench.spending import StepCosts
from ldbench.stages import has_randomness, legal_cuts, split_stages, stage_parameters
from ldbench.timing import measure_costs
from ldbench.watchers import make_watchers


@dataclass(frozen=True)
class Drop:
    """One drop as the record tells it.

    ``cut`` counts the leading stages gone from now on; ``store_relative_error`` is the root mean square error that the
    store's dtype brings into the activations, relative to theirs. ``extra_steps`` were added to the run for what the drop
    saves; what they cost is no part of ``predicted_saving_seconds``.
    """

    step: int
    cut: int
    reason: str
    store_tier: str | None
    store_bytes: int
    store_dtype: str | None
    store_relative_error: float
    build_seconds: float
    predicted_saving_seconds: float
    extra_steps: int = 0


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
        policy: when to drop; ``LearnAndDrop()`` by default. Where it has rates of its own (``lr_scales``) or adds steps
            (``spend``), the loop has to follow: rates at ``progress``, until ``step_count`` is ``total_steps``.
        execution: "store" skips the dropped stages' forward pass too, "freeze" their backward pass alone.
        seed: of the sample order and of dropout.
        check_every: steps between two checks of the scores; 4 checks an epoch by default.
        cache_dtype: "fp32", "bf16", "fp16" or "int8".
        cache_budget: see ``resolve_budget``.
        folder: where a memory-mapped store may lie; a temporary folder by default.
        costs: a cost table measured before; measured on the spot when a drop is first considered otherwise.
        autocast: gives the context the forward pass runs in.
        augment: draws augmentation per step; used while images are read, so it stops when the store takes over.
        refresh_statistics: re-estimate BatchNorm statistics of the stages being dropped.
        criterion: used to measure the cost table.
        identity: names the data's content; with it a memory-mapped store can be taken up again after an interruption.

    ``state_dict`` and ``load_state_dict`` carry a run over an interruption.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, *, batch_size: int, epochs: int | None = None,
        total_steps: int | None = None, policy: Policy | None = None, execution: Execution = "store", seed: int = 0,
        check_every: int | None = None, cache_dtype: str = "fp32", cache_budget: str | StoreBudget | None = None,
        folder: Path | None = None, costs: CostTable | None = None, channels_last: bool = False, compile: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext, augment: Any = None,
        refresh_statistics: bool = True, criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        identity: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.execution = model, optimizer, execution
        self.device = next(model.parameters()).device
        self.around_building: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # a meter's window
        self.feed = as_feed(data, self.device)
        self.samples = len(self.feed)
        self.batch_size = min(batch_size, self.samples)
        self.steps_per_epoch = self.samples // self.batch_size
        if total_steps is None and epochs is None:
            raise ValueError("give epochs or total_steps: drops are weighed against the steps that remain")
        self.planned_steps = total_steps if total_steps is not None else (epochs or 0) * self.steps_per_epoch
        self.total_steps = self.planned_steps  # grows where a policy spends what it saved
        self.stretched: tuple[int, float] | None = None  # step and progress where it last grew
        self.policy = policy if policy is not None else LearnAndDrop()
        self.seed, self.check_every = seed, check_every or max(1, self.steps_per_epoch // 4)
        self.cache_dtype, self.channels_last, self.compile = cache_dtype, channels_last, compile
        self.autocast, self.augment, self.criterion = autocast, augment, criterion
        self.refresh_statistics, self.costs = refresh_statistics, costs
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ldbench-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self.budget = cache_budget

        self.stages = split_stages(model)
        self.stage_names = [str(stage.stage_name) for stage in self.stages]
        self.legal = legal_cuts(self.stages)
        self.stage_parameters = stage_parameters(self.stages)
        self._random = [has_randomness(stage) for stage in self.stages]
        self.tracker = ScoreTracker(self.stage_parameters) if "scores" in self.policy.needs else None
        self.ledger: FlopLedger | None = None
        self.activations = Activations(
            self.stages, self.feed, batch_size=self.batch_size, dtype=cache_dtype, device=self.device, folder=folder,
            channels_last=channels_last, autocast=autocast, identity=identity,
        )  # fmt: skip
        self.activations.tell = self.tell
        self.watchers = make_watchers(self)
        self.averages = (
            WeightAverages(stage_groups(self.stage_parameters), round(self.policy.average * self.planned_steps))
            if self.policy.average
            else None
        )
        self.depth = RandomDepth(self.stages, seed) if self.policy.survival(0.0, 1) is not None else None
        if self.depth is not None and compile:
            raise UserError("stochastic depth runs another network at every step: leave --compile off")
        self.cut = self.step_count = self.epoch_count = 0
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
        order = sample_order(self.samples, self.seed, epoch)
        for start in range(first * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
            indices = order[start : start + self.batch_size]
            if self.store is None:
                draw = self.augment.draw(self.step_count, len(indices)) if self.augment is not None else None
                yield (*self.feed.batch(indices, draw), indices)
            else:
                began = time.perf_counter()
                x, y = self.activations.batch(indices)
                self.store_read_seconds += time.perf_counter() - began
                yield x, y, indices

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
        return self._check()

    def count_flops(self, sample_shape: tuple[int, ...]) -> FlopLedger:
        """Start counting executed FLOPs, for samples of ``sample_shape`` (C, H, W)."""
        table = self.costs.flops if self.costs is not None else count_stage_flops(self.stages, sample_shape)
        self.ledger = FlopLedger.empty(table)
        if self.depth is not None:
            self.ledger.shortcuts = self.depth.shortcut_flops(table, sample_shape)
        return self.ledger

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

    # --- deciding ----------------------------------------------------------------------------------------------------

    def _check(self) -> Drop | None:
        synchronize(self.device)
        began = time.perf_counter()
        scores = {} if self.tracker is None else asdict(self.tracker.check(self.summed_lr))
        self.summed_lr = 0.0
        for name, watcher in self.watchers.items():
            scores[name] = watcher.check(self.progress)
            if self.ledger is not None:
                self.ledger.add_scoring(watcher.probed, 0 if self.execution == "freeze" else self.cut, watcher.flops)
        saving = self._step_costs().savings(self.cut) if "saving" in self.policy.needs else ()
        progress = None if self.stretched is None else self.progress
        seen = Observation(
            self.step_count, self.total_steps, self.cut, len(self.stages), **scores, saving=saving, stretched=progress
        )
        stopped = self.policy.stopped(seen)
        if scores:
            self.checks.append({"step": self.step_count, "dropped": self.cut, **scores})
        self.scoring_seconds += time.perf_counter() - began
        return self._consider(stopped) if stopped > self.cut else None

    def _consider(self, stopped: int) -> Drop | None:
        if not 0 <= stopped < len(self.stages):
            raise ValueError(f"the policy wants {stopped} of {len(self.stages)} stages gone; the last one has to stay")
        remaining = self.total_steps - self.step_count
        if self.execution == "freeze":
            cut = max((c for c in range(self.cut, stopped + 1) if self.legal[c]), default=self.cut)
            if cut == self.cut:
                return None
            saving = 0.0
            if self.costs is not None:
                costs = self._step_costs()
                saving = remaining * (costs.seconds(self.cut) - costs.seconds(cut))
            return self._drop(cut, "frozen", saving, None)
        table, plan = self._cost_table(), self._store_plan()
        choice = best_cut(table, plan, self.cut, stopped, remaining, self.legal, self.policy.exact)
        if choice.cut == self.cut:
            entry = {"step": self.step_count, "cut": stopped, "reason": choice.reason}
            if not self.declined or self.declined[-1]["cut"] != stopped:
                self.declined.append(entry)
            return None
        with self.around_building():
            return self._drop(choice.cut, choice.reason, choice.saving_seconds, choice.tier)

    def _cost_table(self) -> CostTable:
        if self.costs is None:
            indices = torch.arange(self.batch_size)
            self.costs = measure_costs(
                self.stages, self.stage_names, lambda: self.feed.batch(indices), self.optimizer, self.criterion,
                device=self.device, folder=self.folder, cache_dtype=self.cache_dtype, autocast=self.autocast,
            )  # fmt: skip
        return self.costs

    def _store_plan(self) -> StorePlan:
        tier: Tier = self.store.tier if self.store is not None else "device"
        return StorePlan(self.samples, self.cache_dtype, self._resolved_budget(), tier)

    def _step_costs(self) -> StepCosts:
        return StepCosts(self._cost_table(), self._store_plan() if self.execution == "store" else None)

    def _resolved_budget(self) -> StoreBudget:
        if not isinstance(self.budget, StoreBudget):
            self.budget = resolve_budget(self.budget, self.device, self.folder)
        return self.budget

    # --- dropping ----------------------------------------------------------------------------------------------------

    def finish_drop(self) -> Drop | None:
        """Make the drop that an interruption cut short, if there was one."""
        if self.pending is None:
            return None
        with self.around_building():
            return self._drop(**self.pending)

    def _drop(self, cut: int, reason: str, saving: float, tier: Tier | None) -> Drop | None:
        synchronize(self.device)
        began = time.perf_counter()
        self.pending = {"cut": cut, "reason": reason, "saving": saving, "tier": tier}
        segment = self.stages[self.cut : cut]
        undo = remember(segment)
        undo_weights = self.averages.put_into(cut) if self.averages is not None else None
        before, forward_from = self.cut, 0 if self.execution == "freeze" else self.cut
        passed = 0
        store, error = None, 0.0
        try:
            if self.refresh_statistics or self.averages is not None:
                batches = self._statistics_batches()
                passed = refresh_statistics(segment, batches, self.activations.source, self.autocast)
            if tier is not None:
                store, error = self.activations.fill(cut, tier)
                passed += self.samples
        except NoRoom as full:
            undo()
            if undo_weights is not None:
                undo_weights()
            self._decline_for_room(cut, full)
        except BaseException:
            undo()
            if undo_weights is not None:
                undo_weights()
            self.abandoned_seconds += time.perf_counter() - began
            raise
        self.pending = None
        if self.ledger is not None:
            self.ledger.add_forward(passed, forward_from, cut)
        if tier is not None and store is None:
            self.cache_build_seconds += time.perf_counter() - began
            return None
        self.retire(cut)
        if store is not None and tier is not None:
            self.activations.take(store, cut, tier)
            self.peak_store_bytes = max(self.peak_store_bytes, store.nbytes)
        self.rebuild_live()
        synchronize(self.device)
        seconds = time.perf_counter() - began
        self.cache_build_seconds += seconds
        size, dtype = (store.nbytes, store.dtype) if store is not None else (0, None)
        used = store.tier if store is not None else None
        extra, saving = self._spend(before, saving, passed, tier)
        drop = Drop(self.step_count, cut, reason, used, size, dtype, error, seconds, saving, extra)
        self.drops.append(drop)
        return drop

    def _spend(self, before: int, saving: float, passed: int, tier: Tier | None) -> tuple[int, float]:
        """Add the steps that the policy spends a drop's saving on; returns them, and the seconds that are left of it."""
        if not self.policy.spend:
            return 0, saving
        costs, remaining = self._step_costs(), self.total_steps - self.step_count
        if self.execution == "freeze":
            saving = remaining * (costs.seconds(before) - costs.seconds(self.cut))
        first = 0 if self.execution == "freeze" else before
        building = passed * sum(stage.forward for stage in costs.table.flops[first : self.cut])
        extra = costs.extra_steps(self.policy.spend, before, self.cut, remaining, saving, building)
        if extra:
            self.stretched = self.step_count, self.progress
            self.total_steps += extra
        return extra, saving - extra * costs.seconds(self.cut, tier)

    def _statistics_batches(self) -> list[Tensor]:
        order = sample_order(self.samples, 0, 0)[:STATISTICS_SAMPLES]
        return [indices for indices in torch.split(order, self.batch_size) if len(indices) == self.batch_size]

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

    def _decline_for_room(self, cut: int, full: NoRoom) -> None:
        """No tier had room: train on with nothing dropped, and ask for no store of that size again."""
        size = store_bytes(self.samples, full.shape, self.cache_dtype)
        budget = self._resolved_budget()
        self.budget = StoreBudget(*(min(free, size - 1) for free in astuple(budget)))
        self.declined.append({"step": self.step_count, "cut": cut, "reason": f"no room for its store: {full}"})
        self.tell(f"no room for a store of {size} bytes ({full}): training goes on with nothing more dropped")

    def tell(self, what: str) -> None:
        """Note an incident."""
        self.incidents.append({"step": self.step_count, "what": what})

    # --- going on after an interruption ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the engine needs, beside model and optimizer, to go on with the same bits: JSON values and tensors."""
        from ldbench.dropstate import dropper_state

        return dropper_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s answer, on a fresh dropper whose model holds its saved weights already.

        Dropped stages leave the optimizer here, so its own state is loaded after this. A store is taken from its file
        where that can be proven right, else rebuilt from the dropped stages, which takes as long as building it did.
        """
        from ldbench.dropstate import load_dropper_state

        load_dropper_state(self, state)

    def rebuild_live(self) -> None:
        """A fresh callable for the live stages: compiled code that assumed the old network is never reused."""
        first, live = self.cut, list(self.stages)[self.cut :]
        random = self._random[first:]
        base = derive_seed(self.seed, "dropout")

        def run(x: Tensor) -> Tensor:
            for offset, stage in enumerate(live):
                if random[offset]:  # a stream per step and stage: the same masks whatever else was dropped
                    torch.manual_seed((base + self.step_count * 1_000_003 + (first + offset) * 7919) % 2**63)
                x = stage(x) if self.depth is None else self.depth.run(first + offset, stage, x)
            return x

        def run_compiled(x: Tensor) -> Tensor:
            if any(random):
                torch.manual_seed((base + self.step_count * 1_000_003) % 2**63)
            return compiled(x)  # type: ignore[no-any-return]

        compiled: Any = torch.compile(nn.Sequential(*live)) if self.compile else None
        self._live: Callable[[Tensor], Tensor] = run_compiled if self.compile else run
