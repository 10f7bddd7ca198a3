"""What cells share and what can be known before training: device, plan, data sets, cost tables."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldbench.costs.table import CostTable
from ldbench.costs.timing import measure_costs
from ldbench.data.augment import Augment
from ldbench.data.datasets import Dataset, load_dataset
from ldbench.data.loader import ResidentSplit
from ldbench.data.names import own_name
from ldbench.dropping.network import check_changes
from ldbench.dropping.resizing import Resizing
from ldbench.errors import UserError
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.scenarios import SCENARIOS, TORCHVISION
from ldbench.io.checksums import plain, read_or_set_aside, write_sealed
from ldbench.io.locks import folder_lock
from ldbench.io.places import expanded
from ldbench.models.initial_weights import InitialWeights, torchvision_weights, weights_from_file
from ldbench.models.zoo import build_model
from ldbench.policies.base import Policy
from ldbench.policies.registry import build_policy, get_method
from ldbench.records.environment import environment
from ldbench.runner.cost_tables import COSTS, given_table, table_name
from ldbench.runner.pretraining import Pretrained, blank_weights, pretrained, refuse_other_source, source_cell
from ldbench.seeds import derive_seed
from ldbench.stages.flops import StageFlops, count_stage_flops
from ldbench.stages.freezing import freeze_stages
from ldbench.stages.residual import random_depth
from ldbench.stages.split import split_stages
from ldbench.store.budget import resolve_budget, store_bytes
from ldbench.store.changes import Changes
from ldbench.training.checkpointing import Checkpointer
from ldbench.training.epochs import epoch_lengths
from ldbench.training.optim import autocast_for, build_optimizer
from ldbench.training.setup import Resident, model_spec, stream_of


class Preparation:
    """Data sets and cost tables, each made once and shared by the cells."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        device: torch.device,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.experiment, self.folder, self.device, self.note = experiment, folder, device, note
        self._given = {own_name(text): text for text in experiment.datasets_named}
        self._data: dict[tuple[str, int | None], Resident] = {}  # by name and size of the images
        self._flops: dict[tuple[str, str, str], list[StageFlops]] = {}
        self._resized: set[tuple[Any, ...]] = set()  # for which networks it is known that they take smaller images
        self._pretrained: dict[str, Pretrained] = {}

    def data(self, cell: Cell) -> Resident:
        """The splits of a cell's data set, resident on the device."""
        sizes = {name: getattr(cell, name) for name in ("image_size", "train_size", "test_size", "val_size")}
        key = cell.dataset, cell.image_size
        if key not in self._data:
            for other in [held for held in self._data if held[0] != cell.dataset]:
                del self._data[other]  # one data set at a time: cells of one data set follow each other
            self._data[key] = self._resident(cell.dataset, **sizes)
        return self._data[key]

    def epoch_lengths(self, cell: Cell) -> list[int]:
        """Steps of an epoch over each chunk of a cell's data. Raises ``UserError`` where a chunk fills no minibatch."""
        return epoch_lengths(stream_of(cell, self.data(cell).dataset), cell.batch_size)

    def _load(self, name: str, **sizes: Any) -> Dataset:
        options = self.experiment
        root = Path(options.data_root) if options.data_root else None
        dataset = load_dataset(self._given.get(name, name), root=root, download=options.download, **sizes)
        for note in dataset.notes:
            self.note(note)
        return dataset

    def _resident(self, name: str, **sizes: Any) -> Resident:
        began = time.perf_counter()
        dataset, layout = self._load(name, **sizes), self.experiment.channels_last
        here = [split for held in self._data.values() for split in (held.train, held.val, held.test) if split]

        def resident(split: Any) -> ResidentSplit:
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
            room = room_for_images(free, sum(some.device_bytes for some in here))
            made = ResidentSplit(split, dataset.mean, dataset.std, self.device, channels_last=layout, budget_bytes=room)
            here.append(made)
            return made

        val = resident(dataset.val) if len(dataset.val.labels) else None
        splits = resident(dataset.train), val, resident(dataset.test)
        return Resident(dataset, *splits, time.perf_counter() - began)

    def initial(self, cell: Cell, checkpointer: Callable[[Path], Checkpointer]) -> InitialWeights | None:
        """The weights a cell begins with, made now where they have to be; None for random ones.

        ``checkpointer`` keeps the checkpoints of a pre-training. Raises ``UserError`` where there are no such weights.
        """
        if not SCENARIOS[cell.scenario].tuned:
            return None
        if cell.pretrain_dataset is None:
            return self._given_weights(cell)
        target = self.data(cell).dataset
        source = source_cell(cell, target.image_size)
        if source.cell_id not in self._pretrained:
            self._pretrained.clear()  # a seed's cells follow each other
            self._pretrained[source.cell_id] = pretrained(
                source, self.folder, lambda c: self._resident(c.dataset, **_source_sizes(c)), checkpointer, self.note
            )
        return self._pretrained[source.cell_id].for_classes(target.class_names)

    def _given_weights(self, cell: Cell) -> InitialWeights:
        init = self.experiment.init
        assert init is not None, "the experiment's own check asks for it"
        if init == TORCHVISION:
            return torchvision_weights(cell.model, self.experiment.download)
        return weights_from_file(expanded(init), Path(init).name)

    def _check_beginning(self, cell: Cell, model: torch.nn.Module) -> None:
        """Hold the weights a cell would begin with against its network, made or not. Raises ``UserError``."""
        dataset = self.data(cell).dataset
        if cell.pretrain_dataset is None:
            weights = self._given_weights(cell)
        else:
            source = source_cell(cell, dataset.image_size)
            images = self._load(source.dataset, **_source_sizes(source))
            for seed in (*self.experiment.seeds, *self.experiment.seeds_to_tune):
                refuse_other_source(dataclasses.replace(source, seed=seed), self.folder, images)
            weights = blank_weights(source, images)
        weights.put_into(model, model_spec(cell, dataset))

    def costs(self, cell: Cell) -> CostTable:
        """The cost table of a cell: from the results folder if it was measured there, else measured."""
        data = self.data(cell)
        machine = {
            key: value
            for key, value in environment(self.device).items()
            if key not in ("git_commit", "ldbench", "platform")
        }
        names = ("model", "dataset", "batch_size", "optimizer", "precision", "channels_last", "width", "dropout")
        what = {name: getattr(cell, name) for name in (*names, "cache_dtype", "label_smoothing")}
        if cell.freeze_to is not None:
            what["freeze_to"] = cell.freeze_to
        if cell.augment != "none":
            what["augment"] = cell.augment
        what["shape"] = [data.dataset.channels, data.dataset.image_size, data.dataset.classes, len(data.train)]
        if self.experiment.cost_table is not None:
            return given_table(expanded(self.experiment.cost_table), plain(what), machine)
        folder = self.folder / COSTS
        path = folder / f"{table_name(what, machine)}.json"
        with folder_lock(folder, self.note):  # who comes second waits, and decides by the same table
            saved = read_or_set_aside(path, self.note)
            if saved is not None:
                return CostTable.from_dict(saved["table"])
            table = self._measure(cell, data, machine)
            write_sealed(path, {"what": what, "table": table.to_dict()})
        return table

    def _measure(self, cell: Cell, data: Resident, machine: dict[str, Any]) -> CostTable:
        torch.manual_seed(derive_seed(0, "weights"))
        model = build_model(model_spec(cell, data.dataset)).to(self.device).train()
        if cell.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        if cell.freeze_to is not None:
            freeze_stages(model, cell.freeze_to)
        stages = split_stages(model)
        indices = torch.randperm(len(data.train))[: cell.batch_size]
        return measure_costs(
            stages,
            [str(stage.stage_name) for stage in stages],
            functools.partial(_read, data, indices, Augment(cell.augment, data.dataset.image_size, cell.seed)),
            build_optimizer(cell, [[p for p in model.parameters() if p.requires_grad]]),
            torch.nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing),
            device=self.device,
            folder=self.folder,
            cache_dtype=cell.cache_dtype,
            autocast=autocast_for(cell.precision, self.device),
            machine=machine,
        )

    def check(self, cell: Cell) -> list[StageFlops]:
        """Build a cell's network and count its FLOPs, so that what cannot run is said before anything runs."""
        data = self.data(cell)
        stream = stream_of(cell, data.dataset)
        key = cell.model, cell.dataset, cell.scenario  # what methods share, and what takes seconds
        if key not in self._flops:
            model, size = build_model(model_spec(cell, data.dataset)), data.dataset.image_size
            if cell.channels_last and self.device.type == "cpu":
                _check_channels_last(model)
            if cell.freeze_to is not None:
                freeze_stages(model, cell.freeze_to)
            _read(data, torch.arange(1), Augment(cell.augment, size, cell.seed))
            if SCENARIOS[cell.scenario].tuned:
                self._check_beginning(cell, model)
            self._flops[key] = count_stage_flops(split_stages(model), (data.dataset.channels, size, size))
        flops = self._flops[key]
        if self.experiment.cost_table is not None:
            self.costs(cell)
        method, policy = get_method(cell.method), build_policy(cell.method, cell.policy)
        if policy.image_side(0.0, 64) is not None:
            self._check_resizing(cell, policy)
        if cell.change_features is not None:
            stages = split_stages(build_model(model_spec(cell, data.dataset)))
            check_changes(Changes.named(cell.change_features), stages, flops)
        if policy.survival(0.0, 1) is not None:
            random_depth(split_stages(build_model(model_spec(cell, data.dataset))), cell.seed, cell.compile)
        if method.execution == "store" and method.stops:
            budget = resolve_budget(cell.cache_budget, self.device, self.folder)
            smallest = min(
                store_bytes(stream.capacity * cell.cache_views, f.output_shape, cell.cache_dtype) for f in flops[:-1]
            )
            if budget.tier_for(smallest) is None:
                raise UserError(
                    f"cache budget: the smallest store of {cell.model} on {cell.dataset} takes {smallest} bytes and "
                    f"fits neither the device ({budget.device}), the host ({budget.pinned}) nor the disk "
                    f"({budget.disk}); raise --cache-budget or choose --cache-dtype fp16"
                )
        return flops

    def _check_resizing(self, cell: Cell, policy: Policy) -> None:
        """Refuse a network that cannot be trained on smaller images, once for all seeds. Raises ``UserError``."""
        key = cell.model, cell.dataset, cell.method, str(cell.policy), cell.compile
        if key not in self._resized:
            spec = model_spec(cell, self.data(cell).dataset)
            shape = spec.channels, spec.image_size, spec.image_size
            Resizing(split_stages(build_model(spec)), shape, policy.image_side, cell.compile)
            self._resized.add(key)


def room_for_images(free: int, held: int) -> int:
    """Bytes of a GPU that further images may take: 40 % of what they and training share, less what images ``held`` take of it.

    Args:
        free: bytes that are free on the device now.
    """
    return max(int(0.4 * (free + held)) - held, 0)


def _read(data: Resident, indices: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    """A minibatch as training reads it from images."""
    return data.train.batch(indices, augment.draw(0, len(indices)))


def _check_channels_last(model: torch.nn.Module) -> None:
    """Refuse what PyTorch's CPU backend cannot do without harm, seen in torch 2.11 and 2.14 with one thread: the
    backward pass of a strided 1 x 1 convolution of 2 to 7 channels in channels_last writes beyond its buffer.
    """
    for name, layer in model.named_modules():
        if (
            isinstance(layer, torch.nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and max(layer.stride) > 1
            and layer.in_channels < 8
        ):
            raise UserError(
                f"channels_last on a CPU: layer {name} is a strided 1 x 1 convolution of {layer.in_channels} channels, "
                "for which PyTorch writes beyond its memory; choose a larger --width, or leave --channels-last out"
            )


def _source_sizes(cell: Cell) -> dict[str, Any]:
    return {"image_size": cell.image_size, "train_size": cell.train_size}
