"""Layer dropping for any training loop: ``LayerDropper`` feeds the loop, watches the parameters and drops stages.

A training loop, and where in it things happen::

    with LayerDropper(model, optimizer, (images, targets), batch_size=128, epochs=20) as dropper:
        # The model is cut into stages (stages/split). The policy says what it needs measured (dropping/monitors).
        for epoch in range(20):
            for x, y, index in dropper:    # images; once stages were dropped, their stored output (store/activations)
                loss = criterion(dropper(x), y)  # the live stages alone (dropping/live_network)
                loss.backward()
                optimizer.step()           # gradients are read here (dropping/optimizer_link)
                optimizer.zero_grad()
                dropper.step()
                # Counts the step. At every ``check_every``-th one the monitors give a figure per stage and the policy
                # (policies/) says how many leading stages have stopped. The cost model (costs/model) says which cut
                # among them pays, building the store included. That cut is dropped: BatchNorm's statistics are
                # re-estimated where that is wanted, the store is filled (dropping/drop), and parameters leave
                # the optimizer, the monitors and the live network.
    model.eval()                           # the model itself stayed whole: evaluate and save that

Leaving the ``with`` block frees the store, and puts optimizer and ``requires_grad`` back as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ldbench.costs.break_even import STATISTICS_SAMPLES, CutChoice
from ldbench.costs.model import CostModel, DecideBy
from ldbench.costs.table import CostTable
from ldbench.costs.timing import Criterion
from ldbench.data.batch_source import TensorSource
from ldbench.data.dataset_source import DatasetSource
from ldbench.data.stream import Stream, full_steps, mean_steps
from ldbench.dropping.account import Account, FlopLedger
from ldbench.dropping.decider import Decider
from ldbench.dropping.drop import Built, Drop, build_drop
from ldbench.dropping.explain import Explanation, explain_stages
from ldbench.dropping.forward_context import ForwardContext
from ldbench.dropping.hooks import Hooks
from ldbench.dropping.live_network import LiveNetwork
from ldbench.dropping.measuring import count_on_the_spot, measure_on_the_spot
from ldbench.dropping.minibatches import Minibatch, Minibatches
from ldbench.dropping.monitors import Monitors
from ldbench.dropping.network import bypassed, check_changes, plain_network
from ldbench.dropping.optimizer_link import OptimizerLink
from ldbench.dropping.pruned_schedule import PrunedSchedule
from ldbench.dropping.pruning import Pruning
from ldbench.dropping.resizing import Resizing
from ldbench.dropping.schedule import Schedule
from ldbench.dropping.statistics import moving_statistics
from ldbench.dropping.user_data import Several, open_user_data, try_network
from ldbench.errors import UserError
from ldbench.io.places import temporary_folder
from ldbench.policies.base import DEFAULT_METHOD, Policy
from ldbench.policies.infobatch import InfoBatch
from ldbench.policies.registry import Execution, get_method
from ldbench.seeds import preserved_streams, sample_order
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.residual import random_depth
from ldbench.stages.split import cut_obstacles, split_stages, stage_parameters
from ldbench.store.activation_store import ActivationStore
from ldbench.store.activations import Activations
from ldbench.store.budget import StoreOptions, Tier, resolve_budget, store_bytes
from ldbench.store.changes import Changes
from ldbench.store.fill import PROBED

_log = logging.getLogger(__name__)
# The dropper that is at work on a model: a second one would take what the first froze for frozen by the user.
_at_work: weakref.WeakKeyDictionary[nn.Module, weakref.ref[LayerDropper]] = weakref.WeakKeyDictionary()


class LayerDropper:
    """Trains on while leading stages leave the network; the module's docstring has the loop.

    Evaluate, copy and save ``model`` itself, which stays whole and ordinary. Dropped stages are put into evaluation
    mode whenever the engine runs them, so a ``model.train()`` does not disturb them; a forward pass of the whole model
    in train mode does move their BatchNorm statistics, as in any model.

    Stages in front that have no parameter to train, such as a frozen backbone, leave at the first step, whatever the
    policy, if their cost table says that it pays. What the user holds frozen, in evaluation mode, or scaled by a
    gradient scaler stays that way; ``close`` puts back what the engine changed.

    What loops have, and how it goes together (``docs/loops.md`` has each as code):

    * mixed precision: nothing to say; the store is made under the autocast of the loop's last forward pass;
    * accumulated gradients: call ``step`` with the optimizer's steps; minibatches are counted;
    * schedulers: ``len(dropper)`` minibatches an epoch; a group whose parameters have left stays, empty;
    * averaged weights: of ``model``, which stays whole;
    * resuming: ``state_dict`` beside those of model and optimizer, loaded in any order, from the middle of an epoch too;
    * a loss of your own, targets of any shape: of ``dropper(x)``; ``criterion=`` has it timed, too;
    * data beyond memory: a data set or ``DataLoader`` with workers, and ``store=StoreOptions(budget=...)``.

    Args:
        model: a network ``torch.fx`` can trace; it is on its device already. A compiled one is taken out of its
            wrapper and its live stages are compiled.
        optimizer: over the model's parameters, or a wrapper of such a one; those of dropped stages leave it, state
            included.
        data: (images [N, C, H, W], targets [N, ...]) tensors or arrays, a map-style data set, a ``DataLoader`` that
            shuffles such a one, or a ``BatchSource``.
        batch_size: samples per minibatch; the last, smaller one of an epoch is left out. A ``DataLoader`` brings its
            own.
        epochs: length of the run; ``total_steps`` says it in optimizer steps instead.
        policy: when to drop; ``Paced()`` by default, which was furthest ahead of training less where they were
            compared.
            Where it has learning rates of its own (``lr_scales``), the loop has to follow.
        execution: "store" skips the dropped stages' forward pass too, "freeze" their backward pass alone.
        seed: of the sample order and of dropout.
        check_every: optimizer steps between two checks; 4 checks an epoch by default.
        store: what the activation store may be.
        costs: a cost table measured before; measured on the spot when a drop is first considered otherwise.
        channels_last: the memory format of images and activations.
        compile: compile the live stages, anew after every drop.
        autocast: gives the context that forward passes run in, those of ``dropper(x)`` included; by default stores are
            made under the automatic mixed precision that the loop's own last forward pass ran under.
        augment: draws augmentation per minibatch for a ``BatchSource`` that applies it; used while images are read, so it
            stops when the store takes over, unless ``views`` are stored.
        criterion: the loss of output and targets, used to measure the cost table; by default something that takes as
            long.
        stream: sets of samples that can be drawn one after another, see ``begin_chunk``; all samples all the time by
            default.
        hooks: what is called while the engine works.
        accumulate: minibatches whose gradients make one optimizer step, with one call of ``step``; counted by default.
        on_drop: called with every ``Drop`` after it was made, for a logger of experiments say.
        drop_frozen: let stages in front without a parameter to train leave at the first step.
        to_xy: makes (image, target) of a data set's item; of a collated minibatch where ``collate_fn`` is given.
        collate_fn, num_workers, pin_memory: how a data set is read, as by ``DataLoader``; such a one brings its own.
        store_data: the same samples as ``data`` in the view that is stored, where ``data`` has random transforms.
        views: how many views of each sample a store holds; each step reads one of them, drawn anew. They are what random
            transforms of ``store_data``, else of ``data``, give when a sample is read so many times, or what ``augment``
            draws (``of_view(samples, view)``).
        refresh_views: share of the views that is made anew before every epoch, by turns.
        change_features: random changes of what is read from the store, and their strengths: {"mirror": 0.5}; see
            ``ldbench.store.changes``.
        refresh_statistics: re-estimate BatchNorm's population statistics of the stages that leave, in forward passes of
            their own before the store is made; by default the running averages of training stay as they are then.
        decide_by: what a cut is chosen by, building the store included: "time", of a cost table, or "flops", which are the
            same everywhere, so that runs repeat; see ``ldbench.costs.by_flops``.
        pruning: leaves samples out of epochs by their losses; the loop tells those to ``saw`` and multiplies them by
            ``weights``. By default all take part.

    Attributes:
        cut: leading stages that are gone.
        pruning: which samples sit the epoch out that runs; None where none does.
        resizing: scales images for a policy that trains on small ones first; None for all others.
        schedule, minibatches, monitors, costs, decider, activations, live, account: the engine's parts, each with a
            state of its own.

    Raises:
        UserError: the model, the optimizer or the data is something that layers cannot be dropped from; the message
            says what to give instead.

    ``state_dict`` and ``load_state_dict`` carry a run over an interruption.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        data: Any,
        *,
        batch_size: int | None = None,
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
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
        augment: Any = None,
        criterion: Criterion | None = None,
        stream: Stream | None = None,
        hooks: Hooks | None = None,
        accumulate: int | None = None,
        on_drop: Callable[[Drop], None] | None = None,
        drop_frozen: bool = True,
        to_xy: Callable[[Any], Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        store_data: Any = None,
        views: int = 1,
        refresh_views: float = 0.0,
        change_features: Mapping[str, float] | None = None,
        refresh_statistics: bool = False,
        decide_by: DecideBy = "time",
        pruning: InfoBatch | None = None,
    ) -> None:
        if execution not in ("store", "freeze"):
            raise ValueError(f"execution is store or freeze, not {execution!r}")
        for name, value in (("check_every", check_every), ("accumulate", accumulate), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} is a whole number from 1 up, not {value}")
        if decide_by not in get_args(DecideBy):
            raise UserError(f"decide_by is flops or time, not {decide_by!r}")
        if isinstance(policy, (type, str)):
            raise UserError(f"policy is a rule such as ldbench.LearnAndDrop(), not {policy!r}")
        self.model, compiled = plain_network(model)
        _take_over(self.model)
        self.execution, self.on_drop, self.refresh_statistics = execution, on_drop, refresh_statistics
        self.policy = get_method(DEFAULT_METHOD).policy() if policy is None else policy
        self.hooks, options = Hooks() if hooks is None else hooks, store or StoreOptions()
        options.check()
        self.device = next(self.model.parameters()).device
        self.link = OptimizerLink(optimizer)
        self.optimizer = self.link.optimizer
        self.stages = split_stages(self.model)
        self.stage_names = [str(stage.stage_name) for stage in self.stages]
        self.stage_parameters = stage_parameters(self.stages)
        if self.link.trained().isdisjoint(self.model.parameters()):
            raise UserError(
                "the optimizer holds no parameter of the model that needs a gradient: there is nothing to train"
            )
        self.autocast = ForwardContext(autocast, self.device)

        reading = {"to_xy": to_xy, "collate_fn": collate_fn, "num_workers": num_workers, "pin_memory": pin_memory}
        stored, changes = execution == "store", Changes({} if change_features is None else change_features, seed)
        several = Several(views, refresh_views, augment)
        if not stored and (several != Several(augment=augment) or changes):
            raise UserError("views, refresh_views and change_features are of a store, and execution='freeze' has none")
        given = open_user_data(data, store_data, self.device, seed, views=several if stored else None, reading=reading)
        if augment is not None and isinstance(given.images, (TensorSource, DatasetSource)):
            raise UserError("augment= is for a BatchSource that applies its draws: put transforms into the data set")
        try_network(self.stages, given, self.device, self.autocast)
        if changes:
            with preserved_streams():
                x, y = given.images.batch(torch.arange(1))
            flops = count_stage_flops(self.stages, x.shape[1:])
            check_changes(changes, self.stages, flops, y.shape[1:])
        self.stream = stream or Stream.whole(len(given.images))
        size = batch_size or given.batch_size
        if size is None:
            raise UserError("give batch_size, the samples of a minibatch")
        self.batch_size = min(size, *map(len, self.stream.sets))
        if total_steps is None and epochs is None:
            raise ValueError("give epochs or total_steps: drops are weighed against the steps that remain")
        length = full_steps(self.stream, self.batch_size, epochs or 0) if total_steps is None else total_steps
        if length < 1:
            raise UserError("the run has no step: give epochs or total_steps from 1 up")
        every = check_every or max(1, mean_steps(self.stream, self.batch_size) // 4)
        units = {"in_steps": total_steps is not None, "checks_in_steps": check_every is not None}
        self.pruning: Pruning | None = None
        self.schedule = Schedule(length, every, **units)
        if pruning is not None:
            lengths = [len(chosen) // self.batch_size for chosen in self.stream.sets]
            minibatches = length if total_steps is None else length * (accumulate or 1)
            thin = pruning.thin_parts(lengths, minibatches / sum(lengths))
            self.schedule = pruned = PrunedSchedule(length, every, **units, thin=thin, rate=1 - pruning.ratio / 2)
            self.pruning = Pruning(pruning, pruned, len(given.images), seed, self.device)
        folder = options.folder or temporary_folder()
        if options.folder is None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

        # None of the parts knows the engine: with the last name for it, it is gone, and what it changed is put back.
        self.cut = 0
        self.account = account = Account(self.device, self.hooks.note)
        self._note: Callable[[str], None] = functools.partial(_note, account, self.schedule)
        probed = (int(settings["samples"]) for settings in self.policy.needs.values() if "samples" in settings)
        self.activations = Activations(
            self.stages,
            given.images,
            self.stream,
            stored_images=given.stored,
            views=given.views,
            probed=max(probed, default=0),
            batch_size=self.batch_size,
            device=self.device,
            dtype=options.dtype,
            folder=folder,
            channels_last=channels_last,
            autocast=self.autocast,
            identity=options.identity,
            on_batch=self.hooks.on_batch,
            note=self._note,
        )
        self.minibatches = Minibatches(
            self.activations,
            self.schedule,
            account,
            augment=augment,
            seed=seed,
            accumulate=accumulate,
            pruning=self.pruning,
            changes=changes,
            before_epoch=functools.partial(_renew_views, self.activations, account, self.hooks),
        )
        self.monitors = monitors = Monitors(self.stages, self.policy.needs, self.activations.probe, self.autocast)
        if self.policy.needs:
            self.link.see_gradients = functools.partial(_see_gradients, account, monitors)
        measure = functools.partial(
            measure_on_the_spot,
            self.stages,
            self.activations,
            self.optimizer,
            criterion,
            self._note,
            self.minibatches.waits,
        )
        count = functools.partial(count_on_the_spot, self.stages, self.activations) if decide_by == "flops" else None
        resolve = functools.partial(resolve_budget, options.budget, self.device, folder)
        self.costs = CostModel(costs, measure, resolve, count)
        depth = None
        if self.policy.survival(0.0, 1) is not None:
            depth = random_depth(self.stages, seed, compile or compiled)
        self.live = LiveNetwork(self.stages, seed, self.device, compiled=compile or compiled, depth=depth)
        self.resizing: Resizing | None = None
        if self.policy.image_side(0.0, 64) is not None:
            sample = given.images.batch(torch.arange(1))[0][0]
            self.resizing = Resizing(self.stages, sample.shape, self.policy.image_side, compile or compiled)
        self.decider = Decider(
            self.policy,
            self.schedule,
            monitors,
            self.costs,
            self.activations,
            self.link,
            account,
            parameters=self.stage_parameters,
            obstacles=cut_obstacles(self.stages),
            stored=execution == "store",
            drop_frozen=drop_frozen,
            refreshed=refresh_statistics,
        )
        self._closed = False
        self._pending: dict[str, Any] | None = None  # a drop that an interruption cut short
        self._moving: list[nn.Module] = []  # BatchNorms whose statistics training moves
        for note in (*given.notes, *bypassed(self.model, self.stages, autocast is not None)):
            self._note(note)
        weakref.finalize(self, _let_go, self.link, self.activations).atexit = False
        _at_work[self.model] = weakref.ref(self)

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def __enter__(self) -> LayerDropper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Minibatches of an epoch, none of whose samples sits out."""
        return len(self.minibatches)

    def __iter__(self) -> Iterator[Minibatch]:
        """The next epoch's minibatches, see ``loader``; after an interruption those that the epoch has left."""
        self._check_open()
        self.finish_drop()
        return iter(self.minibatches)

    def loader(self, epoch: int, first: int = 0, *, trial: bool = False) -> Iterator[Minibatch]:
        """Minibatches (images or activations [B, ...], targets [B, ...], sample indices int64 [B] on the CPU) of an
        epoch.

        Args:
            first: how many are left out at the beginning.
            trial: the epoch is only tried: no views are made anew for it.
        """
        return self.minibatches.epoch(epoch, first, trial)

    def __call__(self, x: Tensor, progress: float | None = None) -> Tensor:
        """The network's output for a minibatch of the loader, whichever stages that has been through.

        ``progress``: share of what the learning rate's schedule spans that is over, for a policy that scales images
        while they are trained on; the run's by default.
        """
        self._check_open()
        minibatch = self.minibatches.handed.arrive(x, self.activations.stored_cut, torch.is_grad_enabled())
        self.live.draw(self.step_count, lambda blocks: self.policy.survival(self.progress, blocks))
        if self.resizing is not None and minibatch.cut == 0 and torch.is_grad_enabled():
            x = self.resizing(x, self.progress if progress is None else progress)
        if minibatch.cut < self._runs_from:  # fetched before the last drop
            self.account.flops.add_forward(len(x), minibatch.cut, self.cut)
        with self.autocast.of_training():
            return self.live(x, minibatch.number, minibatch.cut)

    def step(self, samples: int | None = None) -> Drop | None:
        """Call after ``optimizer.step()``: counts the step, checks when that is due, drops what has stopped.

        ``samples``: that the step was made of; those of the loader's minibatches by default.
        """
        self._check_open()
        beyond = self.schedule.over
        made_of, seen = self.minibatches.handed.step()
        left_out, frozen = self.live.skipped, {s for s, still in enumerate(self.decider.frozen) if still}
        samples = samples or seen or self.batch_size * made_of
        scaled = self.resizing.table if self.resizing is not None and not self.activations.stored_cut else None
        self.account.flops.add_step(samples, self.cut, self._runs_from, left_out, frozen, scaled)
        self.live.count_step()
        if self.policy.needs:
            if not self.link.hears_steps:
                self.link.see_gradients(None)
            self.monitors.after_step(self.link.rate)
        if beyond:
            what = f"the run goes on beyond the {self.schedule.total} it was given: nothing more is dropped"
            self.account.note_once(self.step_count, what)
        if self.schedule.check_due:
            if len(self.stream) > 1:  # a drop may follow in the loop's evaluation
                self._moving = moving_statistics(self.stages)
            return self._make(self.decider.check(self.cut, self._runs_from))
        first = self.step_count == 1 and not self.schedule.over
        return self._make(self.decider.propose_frozen(self.cut)) if first else None

    def weights(self, index: Tensor) -> Tensor:
        """What the losses of the samples ``index`` (int64 [B]) are multiplied by before their mean, float32 [B]; 1
        without ``pruning``.
        """
        return torch.ones(len(index), device=self.device) if self.pruning is None else self.pruning.weights(index)

    def saw(self, index: Tensor, losses: Tensor) -> None:
        """Tell the losses [B] of the samples ``index`` (int64 [B]), not weighted; nothing without ``pruning``.

        Raises:
            UserError: there is another number of losses.
        """
        if self.pruning is not None:
            self.pruning.saw(index, losses)

    def begin_chunk(self, chunk: int) -> None:
        """Draw from set ``chunk`` of the stream, the next one, from now on.

        What is new in it passes once through the dropped stages and joins the store; what is not in it any more leaves.
        """
        if chunk != self.chunk + 1:
            raise ValueError(f"set {chunk} of the stream does not follow set {self.chunk}, which is drawn from now")
        self._make(self.decider.at_chunk_end(self.cut), at_chunk_end=True)
        with self.minibatches.lock:
            if self.store is None:
                self.activations.advance(chunk)
            else:
                with self.hooks.on_build(), self.account.building():
                    passed = self.activations.advance(chunk)
                self.account.flops.add_forward(passed, 0, self.cut)
        self.minibatches.forget()
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
        """Free the store, and put the optimizer's parameters and every ``requires_grad`` back as they were.

        The state that the optimizer had of dropped parameters is gone, and this dropper cannot be trained with any more;
        its account and ``state_dict`` can still be read. Nothing happens the second time.
        """
        self._closed = True
        self.activations.close(keep_file=keep_store_file)
        self.link.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this LayerDropper is closed: its parameters train again; make a new one to go on")

    # --- where the run stands ----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        store = self.store
        where = "" if store is None else f", {store.nbytes / 1e6:.3g} MB in {store.dtype} on {store.tier}"
        return (
            f"<LayerDropper of {type(self.model).__name__}: {self.cut} of {len(self.stages)} stages dropped by "
            f"{type(self.policy).__name__}, step {self.step_count} of {self.total_steps}{where}>"
        )

    def explain(self) -> Explanation:
        """For every stage its figures at the last check, and why it left or is still there; ``print`` it."""
        first_check = f"no check was made yet: one follows every {self.schedule.check_every} "
        first_check += "steps" if self.schedule.checks_in_steps else "minibatches"
        reports = explain_stages(
            self.stage_names, self.drops, self.policy, self.decider.seen, self.decider.frozen, first_check
        )
        account = self.account
        return Explanation(repr(self), tuple(reports), tuple(account.declined), tuple(account.incidents))

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
        """Share of the run that is over, in [0, 1]."""
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

    # --- a drop ------------------------------------------------------------------------------------------------------

    def _make(self, choice: CutChoice | None, at_chunk_end: bool = False) -> Drop | None:
        if choice is None:
            return None
        return self._drop(choice.cut, choice.reason, choice.saving_seconds, choice.tier, at_chunk_end)

    def _drop(
        self, cut: int, reason: str, saving: float | None, tier: Tier | None, at_chunk_end: bool = False
    ) -> Drop | None:
        """Drop the stages up to ``cut``; an exception on the way leaves the network as it was, and the drop pending.

        Args:
            saving: seconds that it is predicted to save; None where no time was measured.
            tier: where the store should lie; None for a drop that skips the backward pass alone.

        Returns:
            the drop, or None where no tier had room for its store, or the store would not hold what the stages compute.
        """
        self._pending = {"cut": cut, "reason": reason, "saving": saving, "tier": tier, "at_chunk_end": at_chunk_end}
        before, gone = self.account.building_seconds, self.cut
        window = self.hooks.on_build() if tier is not None else contextlib.nullcontext()
        with self.minibatches.lock, window, self.account.building():
            built = self._build(cut, tier)
            self._pending = None
            views = len(self.active) * self.activations.views.count
            passed = built.passed + (views + PROBED if built.store is not None else 0)
            self.account.flops.add_forward(passed, self._runs_from, cut)
            if built.store is not None or tier is None:
                self._advance(cut, built.store, tier)
        if self.cut == gone:
            self._decline(cut, built)
            return None
        store, seconds = built.store, self.account.building_seconds - before
        size, where, dtype = (0, None, None) if store is None else (store.nbytes, store.tier, store.dtype)
        error = built.relative_error
        drop = Drop(self.step_count, cut, reason, where, size, dtype, error, seconds, saving, at_chunk_end)
        self.account.add(drop)
        names = ", ".join(self.stage_names[gone:cut])
        place = "" if where is None else f"; a store of {size / 1e6:.3g} MB in {dtype} on {where} took {seconds:.3g} s"
        _log.info("step %d: %s left training (%d of %d): %s%s", drop.step, names, cut, len(self.stages), reason, place)
        if self.on_drop is not None:
            self.on_drop(drop)
        return drop

    def _build(self, cut: int, tier: Tier | None) -> Built:
        statistics: list[Tensor] = []
        segment, norms = self.stages[self.cut : cut], self._moving
        if self.refresh_statistics:
            order = self.active[sample_order(len(self.active), 0, 0)[:STATISTICS_SAMPLES]]
            order = self.activations.views.keys(order)
            statistics = [part for part in torch.split(order, self.batch_size) if len(part) == self.batch_size]
            norms = [norm for norm in norms or moving_statistics(segment) if norm in set(segment.modules())]
        source = functools.partial(self.activations.source, cut=self.cut)
        fill = functools.partial(self.activations.fill, cut, tier) if tier is not None else None
        self.minibatches.cut_off()
        return build_drop(segment, source, self.autocast, statistics, norms, fill)

    def _advance(self, cut: int, store: ActivationStore | None = None, tier: Tier | None = None) -> None:
        """The first ``cut`` stages are gone from now on, for everybody."""
        self.link.retire(parameter for stage in self.stage_parameters[self.cut : cut] for parameter in stage)
        self.cut = cut
        self.monitors.drop(cut)
        if store is not None and tier is not None:
            self.activations.take(store, cut, tier)
        self.live.advance(cut)
        self.decider.look_for_frozen()

    def _decline(self, cut: int, built: Built) -> None:
        """Train on with nothing more dropped, and do not try the same again: no tier had room, or rows would be wrong."""
        if built.no_room is None:
            reason = built.unfit or ""
            self.decider.refuse(cut, reason)
            self.account.decline(self.step_count, cut, reason)
            self._note(f"{built.unfit}: training goes on with nothing more dropped")
            return
        size = store_bytes(self.activations.capacity, built.no_room.shape, self.activations.dtype)
        self.costs.no_room_for(size)
        self.account.decline(self.step_count, cut, f"no room for its store: {built.no_room}")
        self._note(f"no room for a store of {size} bytes ({built.no_room}): training goes on with nothing more dropped")

    # --- going on after an interruption ------------------------------------------------------------------------------

    def finish_drop(self) -> Drop | None:
        """Make the drop that an interruption cut short, if there was one."""
        return None if self._pending is None else self._drop(**self._pending)

    def _parts(self) -> dict[str, Any]:
        names = (
            "schedule",
            "autocast",
            "costs",
            "account",
            "monitors",
            "activations",
            "minibatches",
            "decider",
            "live",
        )
        parts = {name: getattr(self, name) for name in names}
        return parts if self.pruning is None else parts | {"pruning": self.pruning}

    def _facts(self) -> dict[str, Any]:
        """What a saved state and the dropper it is loaded into have in common."""
        return {
            "execution": self.execution,
            "refresh_statistics": self.refresh_statistics,
            "policy": type(self.policy).__qualname__,
            "batch_size": self.batch_size,
            "samples": self.activations.samples,
            "sets of the stream": len(self.stream),
            "stages": list(self.stage_names),
            "store dtype": self.activations.dtype,
            "views": self.activations.views.count if self.activations.views.count > 1 else None,
            "views made anew": self.activations.views.renewed or None,
            "changes of features": [list(pair) for pair in self.minibatches.changes.strengths.items()] or None,
            "pruning": None if self.pruning is None else dataclasses.asdict(self.pruning.rule),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the engine needs, beside model and optimizer, to go on with the same bits: JSON values and tensors."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {
            "facts": self._facts(),
            "cut": self.cut,
            "pending": self._pending,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s answer, on a fresh dropper whose model holds its saved weights already.

        Dropped stages leave the optimizer here; its own state may be loaded before or after. A state that was saved in
        the middle of an epoch goes on there. A store is taken from its file where that can be proven right, else
        rebuilt from the dropped stages, which takes as long as building it did.

        Raises:
            ValueError: it is the state of another policy, data set, batch size, network or execution.
        """
        if self.step_count:
            raise ValueError("load the state into a new LayerDropper: this one has made steps already")
        told, facts = state["facts"], self._facts()
        for name, value in facts.items():
            if told.get(name) != value:
                raise ValueError(
                    f"the saved state has {name} {told.get(name)!r}, this LayerDropper {value!r}: make it as the saved one was"
                )
        self._pending = state["pending"]
        if state["cut"]:
            self._advance(state["cut"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if state["schedule"]["total"] != self.schedule.total:
            self._note(f"the run was to be {state['schedule']['total']} long and is now {self.schedule.total}")


def _take_over(model: nn.Module) -> None:
    """End the work of a dropper that was not closed."""
    reference = _at_work.get(model)
    earlier = reference() if reference is not None else None
    if earlier is not None:
        if earlier.link.holds_any:
            _log.warning("the model had a LayerDropper at work already: that one is closed")
        earlier.close()


def _let_go(link: OptimizerLink, activations: Activations) -> None:
    activations.close(keep_file=activations.identity is not None)  # another process may take it up again
    link.close()


def _renew_views(activations: Activations, account: Account, hooks: Hooks, epoch: int) -> None:
    if activations.chain and activations.views.renewed:
        with hooks.on_build(), account.building():
            passed = activations.renew(epoch)
        account.flops.add_forward(passed, 0, activations.stored_cut)


def _note(account: Account, schedule: Schedule, what: str) -> None:
    account.note(schedule.step, what)


def _see_gradients(account: Account, monitors: Monitors, scale: Any) -> None:
    with account.scoring():
        monitors.see_gradients(scale)
