"""Layer dropping for any training loop: ``LayerDropper`` feeds the loop, watches the parameters and drops stages.

A training loop, and where in it things happen::

    dropper = LayerDropper(model, optimizer, (images, targets), batch_size=128, epochs=20)
    # The model is cut into stages (stages/split). The policy says what it needs measured (dropping/monitors).
    for epoch in range(20):
        for x, y, index in dropper:        # images; once stages were dropped, their stored output (store/activations)
            optimizer.zero_grad()
            loss = criterion(dropper(x), y)  # the live stages alone (dropping/live_network)
            loss.backward()
            optimizer.step()
            dropper.step()
            # Counts the step. At every ``check_every``-th one the monitors give a figure per stage and the policy
            # (policies/) says how many leading stages have stopped. The cost model (costs/model) says which cut among
            # them pays, building the store included. That cut is dropped: BatchNorm's statistics are re-estimated where
            # the policy asks for it, the store is filled (dropping/drop), and parameters leave the optimizer, the
            # monitors and the live network.
    dropper.close()                        # frees the store
    model.eval()                           # the model itself stayed whole: evaluate and save that
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldbench.costs.break_even import STATISTICS_SAMPLES, CutChoice, StorePlan
from ldbench.costs.model import CostModel
from ldbench.costs.table import CostTable
from ldbench.costs.timing import measure_costs
from ldbench.data.batch_source import as_batch_source
from ldbench.data.stream import Stream, full_steps, mean_steps
from ldbench.dropping.account import Account, FlopLedger
from ldbench.dropping.drop import Built, Drop, build_drop
from ldbench.dropping.live_network import LiveNetwork
from ldbench.dropping.monitors import Monitors
from ldbench.dropping.retirement import release, retire
from ldbench.dropping.schedule import Schedule
from ldbench.policies.base import Observation, Policy
from ldbench.policies.baselines import AutoFreeze
from ldbench.policies.registry import Execution
from ldbench.seeds import sample_order
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.residual import random_depth
from ldbench.stages.split import legal_cuts, split_stages, stage_parameters
from ldbench.store.activation_store import ActivationStore
from ldbench.store.activations import Activations
from ldbench.store.budget import StoreOptions, Tier, resolve_budget, store_bytes
from ldbench.store.fill import NoRoom


@dataclass(frozen=True)
class Hooks:
    """What is called while the engine works.

    Attributes:
        on_batch: before every minibatch of a store being built; may raise, and the engine is then as it was before.
        on_build: gives the context in which stores are built, such as a meter's window.
        note: told what went wrong without ending the run.
    """

    on_batch: Callable[[], None] = lambda: None
    on_build: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    note: Callable[[str], None] = lambda what: None


class LayerDropper:
    """Trains on while leading stages leave the network; the module's docstring has the loop.

    Evaluate, copy and save ``model`` itself, which stays whole and ordinary. Dropped stages are put into evaluation
    mode whenever the engine runs them, so a ``model.train()`` does not disturb them; a forward pass of the whole model
    in train mode does move their BatchNorm statistics, as in any model.

    Args:
        model: a network ``torch.fx`` can trace; it is on its device already.
        optimizer: over the model's parameters; those of dropped stages leave it, state included.
        data: (images [N, C, H, W], targets [N]) tensors, a map-style data set, or a ``BatchSource``.
        batch_size: samples per minibatch; the last, smaller one of an epoch is left out.
        epochs: length of the run; ``total_steps`` says it in steps instead.
        policy: when to drop; ``AutoFreeze()`` by default, which was ahead of the others where they were compared.
            Where it has learning rates of its own (``lr_scales``), the loop has to follow.
        execution: "store" skips the dropped stages' forward pass too, "freeze" their backward pass alone.
        seed: of the sample order and of dropout.
        check_every: steps between two checks; 4 checks an epoch by default.
        store: what the activation store may be.
        costs: a cost table measured before; measured on the spot when a drop is first considered otherwise.
        channels_last: the memory format of images and activations.
        compile: compile the live stages, anew after every drop.
        autocast: gives the context the forward pass runs in.
        augment: draws augmentation per step; used while images are read, so it stops when the store takes over.
        criterion: used to measure the cost table.
        stream: sets of samples that can be drawn one after another, see ``begin_chunk``; all samples all the time by
            default.
        hooks: what is called while the engine works.

    Attributes:
        cut: leading stages that are gone.
        schedule, monitors, costs, activations, live, account: the engine's parts, each with a state of its own.

    ``state_dict`` and ``load_state_dict`` carry a run over an interruption.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Any,
        *,
        batch_size: int,
        epochs: int | None = None,
        total_steps: int | None = None,
        policy: Policy | None = None,
        execution: Execution = "store",
        seed: int = 0,
        check_every: int | None = None,
        store: StoreOptions | None = None,
        costs: CostTable | None = None,
        channels_last: bool = False,
        compile: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        augment: Any = None,
        criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        stream: Stream | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if execution not in ("store", "freeze"):
            raise ValueError(f"execution is store or freeze, not {execution!r}")
        self.model, self.optimizer, self.execution, self.seed = model, optimizer, execution, seed
        self.autocast, self.augment, self.criterion = autocast, augment, criterion
        self.policy = AutoFreeze() if policy is None else policy
        self.hooks = Hooks() if hooks is None else hooks
        self.device = next(model.parameters()).device
        images, options = as_batch_source(data, self.device), store or StoreOptions()
        self.stream = stream or Stream.whole(len(images))
        self.batch_size = min(batch_size, *map(len, self.stream.sets))
        if total_steps is None and epochs is None:
            raise ValueError("give epochs or total_steps: drops are weighed against the steps that remain")
        steps = full_steps(self.stream, self.batch_size, epochs or 0) if total_steps is None else total_steps
        every = check_every or max(1, mean_steps(self.stream, self.batch_size) // 4)
        folder = options.folder or Path(tempfile.mkdtemp(prefix="ldbench-"))
        if options.folder is None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

        self.stages = split_stages(model)
        self.stage_names = [str(stage.stage_name) for stage in self.stages]
        self.stage_parameters = stage_parameters(self.stages)
        self._legal = legal_cuts(self.stages)
        self.cut = 0

        self.schedule = Schedule(steps, every)
        self.account = Account(self.device)
        self.monitors = Monitors(self.stages, self.policy.needs, self._probe, autocast)
        self.activations = Activations(
            self.stages,
            images,
            self.stream,
            batch_size=self.batch_size,
            device=self.device,
            dtype=options.dtype,
            folder=folder,
            channels_last=channels_last,
            autocast=autocast,
            identity=options.identity,
            on_batch=self.hooks.on_batch,
            note=self._note,
        )
        self.costs = CostModel(
            costs,
            functools.partial(self._measure_costs, folder, options.dtype),
            functools.partial(resolve_budget, options.budget, self.device, folder),
        )
        depth = random_depth(self.stages, seed, compile) if self.policy.survival(0.0, 1) is not None else None
        self.live = LiveNetwork(self.stages, seed, compiled=compile, runs_dropped=execution == "freeze", depth=depth)
        self._waiting = 0  # stages that have stopped and are dropped when their chunk is over
        self._pending: dict[str, Any] | None = None  # a drop that an interruption cut short

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The next epoch's minibatches, see ``loader``."""
        self.schedule.epoch += 1
        return self.loader(self.schedule.epoch - 1)

    def loader(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Minibatches (images or activations [B, ...], targets [B], sample indices int64 [B] on the CPU) of an epoch.

        ``first``: how many are left out at the beginning.
        """
        order = self.active[sample_order(len(self.active), self.seed, epoch)]
        for indices in torch.split(order, self.batch_size)[first : len(order) // self.batch_size]:
            if self.store is not None:
                with self.account.reading():
                    x, y = self.activations.batch(indices)
            else:
                draw = None if self.augment is None else self.augment.draw(self.step_count, len(indices))
                x, y = self.activations.batch(indices, draw)
            yield x, y, indices

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for a minibatch of the loader."""
        self.live.draw(self.step_count, lambda blocks: self.policy.survival(self.progress, blocks))
        return self.live(x, self.step_count)

    def step(self, samples: int | None = None) -> Drop | None:
        """Call after ``optimizer.step()``: counts the step, checks when that is due, drops what has stopped."""
        self.account.flops.add_step(samples or self.batch_size, self.cut, self._runs_from, self.live.skipped)
        self.live.count_step()
        if self.policy.needs:
            with self.account.scoring():
                self.monitors.after_step(float(self.optimizer.param_groups[-1]["lr"]))
        self.schedule.step += 1
        return self._check() if self.schedule.check_due else None

    def begin_chunk(self, chunk: int) -> None:
        """Draw from set ``chunk`` of the stream, the next one, from now on.

        What is new in it passes once through the dropped stages and joins the store; what is not in it any more leaves.
        """
        if chunk != self.chunk + 1:
            raise ValueError(f"set {chunk} of the stream does not follow set {self.chunk}, which is drawn from now")
        stopped = self.policy.at_chunk_end(self.step_count, self._waiting)
        if stopped > self.cut:
            self._consider(stopped, at_chunk_end=True)
        if self.store is None:
            self.activations.advance(chunk)
        else:
            with self.hooks.on_build(), self.account.building():
                passed = self.activations.advance(chunk)
            self.account.flops.add_forward(passed, 0, self.cut)
        self.monitors.begin_chunk()

    def count_flops(self, sample_shape: tuple[int, ...]) -> FlopLedger:
        """Start counting executed FLOPs, for samples of ``sample_shape`` (C, H, W)."""
        known = self.costs.known
        ledger = FlopLedger.empty(known.flops if known is not None else count_stage_flops(self.stages, sample_shape))
        if self.live.depth is not None:
            ledger.shortcuts = self.live.depth.shortcut_flops(ledger.table, sample_shape)
        self.account.flops = ledger
        return ledger

    def close(self, *, keep_store_file: bool = False) -> None:
        """Free the store and let the parameters of dropped stages be trained again."""
        self.activations.close(keep_file=keep_store_file)
        release(self.stages[: self.cut])

    # --- where the run stands ----------------------------------------------------------------------------------------

    @property
    def step_count(self) -> int:
        """Optimizer steps made."""
        return self.schedule.step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.schedule.total_steps

    @property
    def progress(self) -> float:
        """Share of the steps that were made, in [0, 1]."""
        return self.schedule.progress

    @property
    def drops(self) -> list[Drop]:
        """Drops made so far, in order."""
        return self.account.drops

    @property
    def checks(self) -> list[dict[str, Any]]:
        """What was measured at every check: step, stages dropped, and the figures of each stage by name."""
        return self.monitors.log

    @property
    def chunk(self) -> int:
        """The set of the stream that is drawn from now."""
        return self.activations.chunk

    @property
    def active(self) -> Tensor:
        """The samples that can be drawn now, int64 ascending on the CPU."""
        return self.activations.active

    @property
    def store(self) -> ActivationStore | None:
        """The activation store that is read now; None while images are."""
        return self.activations.store

    @property
    def _runs_from(self) -> int:
        """The first stage that a step runs forward."""
        return 0 if self.execution == "freeze" else self.cut

    # --- a check and what follows from it ----------------------------------------------------------------------------

    def _check(self) -> Drop | None:
        with self.account.scoring(wait=True):
            levels = self.monitors.check(self.progress)
            for samples, own in self.monitors.passes():
                self.account.flops.add_scoring(samples, self._runs_from, own)
            seen = Observation(self.step_count, self.total_steps, self.cut, len(self.stages), **levels)
            stopped = self.policy.stopped(seen)
        if levels:
            self.monitors.log.append({"step": self.step_count, "dropped": self.cut, **levels})
        if self.policy.waits and len(self.stream) > 1:
            self._waiting = max(self._waiting, stopped)
            return None
        return self._consider(stopped) if stopped > self.cut else None

    def _consider(self, stopped: int, at_chunk_end: bool = False) -> Drop | None:
        """Drop as many of the first ``stopped`` stages as pays, or note why none. Raises ``ValueError``."""
        if not 0 <= stopped < len(self.stages):
            raise ValueError(f"the policy wants {stopped} of {len(self.stages)} stages gone; the last one has to stay")
        choice = self._choose(stopped)
        if choice.cut > self.cut:
            return self._drop(choice.cut, choice.reason, choice.saving_seconds, choice.tier, at_chunk_end)
        declined = self.account.declined
        if self.execution == "store" and (not declined or declined[-1]["cut"] != stopped):
            self.account.decline(self.step_count, stopped, choice.reason)
        return None

    def _choose(self, stopped: int) -> CutChoice:
        remaining, exact = self.schedule.remaining, self.policy.exact
        if self.execution == "freeze":
            return self.costs.choose_freeze(self.cut, stopped, remaining, self._legal)
        plan = StorePlan(
            len(self.active),
            self.activations.dtype,
            self.costs.budget,
            self.store.tier if self.store is not None else "device",
            self.stream.capacity,
            self.stream.still_to_come(self.chunk),
        )
        return self.costs.choose_store(self.cut, stopped, remaining, self._legal, exact, plan)

    def _drop(self, cut: int, reason: str, saving: float, tier: Tier | None, at_chunk_end: bool = False) -> Drop | None:
        """Drop the stages up to ``cut``; an exception on the way leaves the network as it was, and the drop pending.

        Args:
            saving: seconds that it is predicted to save.
            tier: where the store should lie; None for a drop that skips the backward pass alone.

        Returns:
            the drop, or None where no tier had room for its store.
        """
        self._pending = {"cut": cut, "reason": reason, "saving": saving, "tier": tier, "at_chunk_end": at_chunk_end}
        before = self.account.building_seconds
        with self.hooks.on_build() if tier is not None else contextlib.nullcontext():
            with self.account.building():
                built = self._build(cut, tier)
                self._pending = None
                passed = built.passed + (len(self.active) if built.store is not None else 0)
                self.account.flops.add_forward(passed, self._runs_from, cut)
                if built.no_room is None:
                    self._advance(cut, built.store, tier)
            if built.no_room is not None:
                self._decline_for_room(cut, built.no_room)
                return None
            store, seconds = built.store, self.account.building_seconds - before
            size, where, dtype = (0, None, None) if store is None else (store.nbytes, store.tier, store.dtype)
            error = built.relative_error
            return self.account.add(
                Drop(self.step_count, cut, reason, where, size, dtype, error, seconds, saving, at_chunk_end)
            )

    def _build(self, cut: int, tier: Tier | None) -> Built:
        statistics: list[Tensor] = []
        if self.policy.refreshes:
            order = self.active[sample_order(len(self.active), 0, 0)[:STATISTICS_SAMPLES]]
            statistics = [part for part in torch.split(order, self.batch_size) if len(part) == self.batch_size]
        source = functools.partial(self.activations.source, cut=self.cut)
        fill = functools.partial(self.activations.fill, cut, tier) if tier is not None else None
        return build_drop(self.stages[self.cut : cut], source, self.autocast, statistics, fill)

    def _advance(self, cut: int, store: ActivationStore | None = None, tier: Tier | None = None) -> None:
        """The first ``cut`` stages are gone from now on, for everybody."""
        gone = [parameter for stage in self.stage_parameters[self.cut : cut] for parameter in stage]
        retire(gone, self.optimizer)
        self.cut = cut
        self.monitors.drop(cut)
        if store is not None and tier is not None:
            self.activations.take(store, cut, tier)
        self.live.advance(cut)

    def _decline_for_room(self, cut: int, full: NoRoom) -> None:
        """No tier had room: train on with nothing dropped, and ask for no store of that size again."""
        size = store_bytes(self.stream.capacity, full.shape, self.activations.dtype)
        self.costs.no_room_for(size)
        self.account.decline(self.step_count, cut, f"no room for its store: {full}")
        self._note(f"no room for a store of {size} bytes ({full}): training goes on with nothing more dropped")

    def _probe(self, samples: int) -> Tensor:
        """What the first live stage reads, for the same samples at every check."""
        return self.activations.peek(self.active[sample_order(len(self.active), 0, 0)[:samples]], self.cut)

    def _measure_costs(self, folder: Path, dtype: str) -> CostTable:
        indices = self.active[: self.batch_size]
        fetch = functools.partial(self.activations.images.batch, indices)
        place: dict[str, Any] = {"device": self.device, "folder": folder, "cache_dtype": dtype}
        return measure_costs(
            self.stages, self.stage_names, fetch, self.optimizer, self.criterion, autocast=self.autocast, **place
        )

    def _note(self, what: str) -> None:
        self.account.incidents.append({"step": self.step_count, "what": what})
        self.hooks.note(what)

    # --- going on after an interruption ------------------------------------------------------------------------------

    def finish_drop(self) -> Drop | None:
        """Make the drop that an interruption cut short, if there was one."""
        return None if self._pending is None else self._drop(**self._pending)

    def _parts(self) -> dict[str, Any]:
        names = ("schedule", "costs", "account", "policy", "monitors", "activations", "live")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What the engine needs, beside model and optimizer, to go on with the same bits: JSON values and tensors."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {
            "execution": self.execution,
            "cut": self.cut,
            "waiting": self._waiting,
            "pending": self._pending,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s answer, on a fresh dropper whose model holds its saved weights already.

        Dropped stages leave the optimizer here, so its own state is loaded after this. A store is taken from its file
        where that can be proven right, else rebuilt from the dropped stages, which takes as long as building it did.
        """
        if self.step_count:
            raise ValueError("load the state into a new LayerDropper: this one has made steps already")
        if state["execution"] != self.execution:
            raise ValueError(f"the state is of execution {state['execution']!r}, not {self.execution!r}")
        self._waiting, self._pending = state["waiting"], state["pending"]
        if state["cut"]:
            self._advance(state["cut"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
