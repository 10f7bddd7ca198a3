"""Runs the cells of an experiment one after another: skips finished ones, records failed ones, goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ldbench.cache import resolve_budget, store_bytes
from ldbench.config import Cell, Experiment, cells
from ldbench.costs import CostTable
from ldbench.data import ResidentSplit, derive_seed
from ldbench.errors import UserError, nearest
from ldbench.flops import StageFlops, count_stage_flops
from ldbench.methods import build_policy, get_method, replay_source
from ldbench.models import build_model, default_recipe, model_names
from ldbench.record import (
    SCHEMA_VERSION,
    environment,
    finished,
    open_results,
    plain,
    read_json,
    write_json,
    write_lines,
)
from ldbench.sources import check_dataset_name, load_dataset
from ldbench.stages import split_stages
from ldbench.timing import measure_costs
from ldbench.train import PRECISIONS, Resident, autocast_for, build_optimizer, model_spec, run_cell


class Progress(Protocol):
    """Where a run tells how far it is."""

    def note(self, text: str) -> None:
        """A line worth keeping."""
        ...

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins; ``number`` counts from 1."""
        ...

    def epoch(self, row: dict[str, Any], total_epochs: int) -> None:
        """An epoch is over."""
        ...

    def cell_ended(self, result: dict[str, Any]) -> None:
        """A cell is over, whatever its status."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Counts over the cells of a run."""

    finished: int
    skipped: int
    diverged: int
    failed: int


def resolve_device(name: str) -> torch.device:
    """The device to train on; "auto" takes CUDA where there is one. Raises ``UserError``."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "this torch sees no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
        raise UserError(f"--device {name}: {built}; use --device cpu or auto")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device


def plan(experiment: Experiment) -> list[Cell]:
    """All cells of the grid, names and options checked. Raises ``UserError``."""
    for model in experiment.model:
        if ":" not in model and model not in model_names():
            raise UserError(f"unknown model {model!r}: {nearest(model, model_names())}")
    for dataset in experiment.dataset:
        check_dataset_name(dataset)
    for method in experiment.method:
        get_method(method)
    for method, options in experiment.policy.items():
        build_policy(method, options)
    return list(cells(experiment, default_recipe))


class Preparation:
    """Data sets and cost tables, each made once and shared by the cells."""

    def __init__(self, experiment: Experiment, folder: Path, device: torch.device) -> None:
        self.experiment, self.folder, self.device = experiment, folder, device
        self._data: dict[str, Resident] = {}

    def data(self, name: str) -> Resident:
        """The splits of a data set, resident on the device."""
        if name not in self._data:
            self._data.clear()  # one data set at a time: cells of one data set follow each other
            began = time.perf_counter()
            options = self.experiment
            root = Path(options.data_root) if options.data_root else None
            dataset = load_dataset(
                name, root=root, download=options.download, image_size=options.image_size,
                train_size=options.train_size, test_size=options.test_size, val_size=options.val_size,
            )  # fmt: skip
            budget = int(torch.cuda.mem_get_info(self.device)[0] * 0.4) if self.device.type == "cuda" else None

            def resident(split: Any) -> ResidentSplit:
                layout = options.channels_last
                return ResidentSplit(
                    split, dataset.mean, dataset.std, self.device, channels_last=layout, budget_bytes=budget
                )

            val = resident(dataset.val) if len(dataset.val.labels) else None
            splits = resident(dataset.train), val, resident(dataset.test)
            self._data[name] = Resident(dataset, *splits, time.perf_counter() - began)
        return self._data[name]

    def costs(self, cell: Cell) -> CostTable:
        """The cost table of a cell's model and data: from the results folder if it was measured there, else measured."""
        data = self.data(cell.dataset)
        machine = {
            key: value
            for key, value in environment(self.device).items()
            if key not in ("git_commit", "ldbench", "platform")
        }
        names = ("model", "dataset", "batch_size", "optimizer", "precision", "channels_last", "width", "dropout")
        what = {name: getattr(cell, name) for name in (*names, "cache_dtype", "label_smoothing")}
        what["shape"] = [data.dataset.channels, data.dataset.image_size, data.dataset.classes, len(data.train)]
        if self.experiment.cost_table is not None:
            return _given_table(Path(self.experiment.cost_table), plain(what))
        path = self.folder / "costs" / f"{_table_name(what, machine)}.json"
        saved = read_json(path)
        if saved is not None:
            return CostTable.from_dict(saved["table"])
        table = self._measure(cell, data, machine)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"schema_version": SCHEMA_VERSION, "what": what, "table": table.to_dict()})
        return table

    def _measure(self, cell: Cell, data: Resident, machine: dict[str, Any]) -> CostTable:
        torch.manual_seed(derive_seed(0, "weights"))
        model = build_model(model_spec(cell, data.dataset)).to(self.device).train()
        if cell.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        stages = split_stages(model)
        indices = torch.randperm(len(data.train))[: cell.batch_size]
        return measure_costs(
            stages, [str(stage.stage_name) for stage in stages], lambda: data.train.batch(indices),
            build_optimizer(cell, [list(model.parameters())]),
            torch.nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing), device=self.device, folder=self.folder,
            cache_dtype=cell.cache_dtype, autocast=autocast_for(cell.precision, self.device), machine=machine,
        )  # fmt: skip

    def check(self, cell: Cell) -> list[StageFlops]:
        """Build a cell's network and count its FLOPs, so that what cannot run is said before anything runs."""
        data = self.data(cell.dataset)
        model = build_model(model_spec(cell, data.dataset))
        stages = split_stages(model)
        size = data.dataset.image_size
        flops = count_stage_flops(stages, (data.dataset.channels, size, size))
        if self.experiment.cost_table is not None:
            self.costs(cell)
        if get_method(cell.method).execution == "store" and cell.method not in ("full", "short"):
            budget = resolve_budget(cell.cache_budget, self.device, self.folder)
            smallest = min(store_bytes(len(data.train), f.output_shape, cell.cache_dtype) for f in flops[:-1])
            if budget.tier_for(smallest) is None:
                raise UserError(
                    f"cache budget: the smallest store of {cell.model} on {cell.dataset} takes {smallest} bytes and fits "
                    f"neither the device ({budget.device}), the host ({budget.pinned}) nor the disk ({budget.disk}); "
                    "raise --cache-budget or choose --cache-dtype fp16"
                )
        return flops


def _given_table(path: Path, what: dict[str, Any]) -> CostTable:
    """The table for ``what`` in a file or folder of an earlier run."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        saved = read_json(file)
        if saved is not None and saved.get("what") == what:
            return CostTable.from_dict(saved["table"])
    raise UserError(f"cost table: {path} holds none for {what['model']} on {what['dataset']} with these settings")


def _table_name(what: dict[str, Any], machine: dict[str, Any]) -> str:
    text = json.dumps(plain([what, machine]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_plan(planned: Sequence[Cell], preparation: Preparation) -> None:
    """Everything about a plan that can be known before training: models, data, stores, replays. Raises ``UserError``."""
    seen: set[tuple[str, ...]] = set()
    wanted = {(cell.model, cell.dataset, cell.method, str(cell.seed)) for cell in planned}
    for cell in planned:
        source = replay_source(cell.method)
        if source is not None and (cell.model, cell.dataset, source, str(cell.seed)) not in wanted:
            raise UserError(f"method {cell.method} repeats the drops of {source}: add --method {source}")
        key = (cell.model, cell.dataset, cell.method)
        if key not in seen:
            seen.add(key)
            preparation.check(cell)
    if preparation.device.type == "cpu" and any(PRECISIONS[cell.precision] is torch.float16 for cell in planned):
        raise UserError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")


def run_experiment(experiment: Experiment, out: Path, progress: Progress) -> Outcome:
    """Run every cell that is not finished yet and write its folder. Raises ``UserError`` before anything runs."""
    planned = plan(experiment)
    device = resolve_device(experiment.device)
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    open_results(out)
    preparation = Preparation(experiment, out, device)
    try:
        check_plan(planned, preparation)
    except UserError:
        if made:  # leave nothing behind where nothing was run
            (out / "cells").rmdir()
            for folder in made:
                folder.rmdir()
        raise
    write_json(out / "experiment.json", experiment.to_dict())
    counts = {"finished": 0, "skipped": 0, "diverged": 0, "failed": 0}
    for number, cell in enumerate(sorted(planned, key=lambda c: planned_order(c, planned)), 1):
        folder = out / "cells" / cell.cell_id
        if finished(folder):
            counts["skipped"] += 1
            continue
        progress.cell_started(cell, number, len(planned))
        result = _run_one(cell, preparation, folder, out, planned, progress)
        counts[result["status"]] += 1
        progress.cell_ended(result)
    return Outcome(**counts)


def planned_order(cell: Cell, planned: Sequence[Cell]) -> int:
    """Cells of one data set together (it stays resident), otherwise as planned."""
    datasets = list(dict.fromkeys(c.dataset for c in planned))
    return datasets.index(cell.dataset)


def _run_one(
    cell: Cell, preparation: Preparation, folder: Path, out: Path, planned: Sequence[Cell], progress: Progress
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    data = preparation.data(cell.dataset)
    config = dataclasses.asdict(cell) | {
        "channels": data.dataset.channels, "classes": data.dataset.classes, "image_size": data.dataset.image_size
    }  # fmt: skip
    write_json(folder / "config.json", config)

    def on_epoch(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        write_lines(folder / "epochs.jsonl", rows)
        progress.epoch(row, cell.epochs)

    try:
        costs = preparation.costs(cell)
        replay = _recorded_drops(cell, planned, out)
        run = run_cell(cell, data, costs, folder, device=preparation.device, replay=replay, on_epoch=on_epoch)
        write_lines(folder / "epochs.jsonl", run.epochs)
        write_lines(folder / "scores.jsonl", run.scores)
        if cell.save_model == "final" and run.result["status"] == "finished":
            save_model(run.model, folder / "model.safetensors")
        result = run.result
    except KeyboardInterrupt:
        raise
    except Exception as error:  # a failed cell is recorded with its error and the others go on
        text = " ".join(str(error).split()) or type(error).__name__
        result = {
            "schema_version": SCHEMA_VERSION, "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset,
            "method": cell.method, "budget": cell.budget, "seed": cell.seed, "status": "failed",
            "error": text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
            "traceback": None if isinstance(error, UserError) else traceback.format_exc(),
            "environment": environment(preparation.device),
        }  # fmt: skip
    result["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "result.json", result)
    return result


def _recorded_drops(cell: Cell, planned: Sequence[Cell], out: Path) -> list[tuple[int, int]] | None:
    source = replay_source(cell.method)
    if source is None:
        return None
    key = (cell.model, cell.dataset, source, cell.seed)
    origin = next(c for c in planned if (c.model, c.dataset, c.method, c.seed) == key)
    recorded = read_json(out / "cells" / origin.cell_id / "result.json")
    if recorded is None or recorded.get("status") != "finished":
        raise UserError(f"{cell.method} repeats the drops of {source} for seed {cell.seed}, which did not finish")
    return [(drop["step"], drop["cut"]) for drop in recorded["drops"]]


def save_model(model: torch.nn.Module, path: Path) -> None:
    """The whole network as safetensors; tensors that share memory are stored once under the first name."""
    from safetensors.torch import save_model as save

    temporary = path.with_name(f".{path.name}.part")
    save(model, str(temporary))
    temporary.replace(path)
