"""Makes weights to fine-tune from: one ordinary ``full`` run on a source data set, kept beside the cells and shared by
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ldbench.costs.table import CostTable
from ldbench.data.datasets import Dataset
from ldbench.errors import UserError
from ldbench.experiment.config import Cell
from ldbench.io.checksums import set_aside, write_sealed, write_sealed_lines
from ldbench.io.locks import folder_lock
from ldbench.io.tensors import save_model
from ldbench.models.initial_weights import InitialWeights, weights_from_file
from ldbench.models.recipes import default_recipe
from ldbench.models.zoo import build_model
from ldbench.records.cell_files import read_json
from ldbench.records.integrity import mend_cell
from ldbench.stages.flops import count_stage_flops
from ldbench.stages.split import split_stages
from ldbench.training.checkpointing import Checkpointer
from ldbench.training.loop import run_cell
from ldbench.training.setup import Resident, model_spec

PRETRAINED, WEIGHTS = "pretrained", "model.safetensors"  # the folder beside "cells", and the file in a run's own


def source_cell(cell: Cell, image_size: int) -> Cell:
    """The run that makes the weights ``cell`` begins with: the family's recipe from scratch, on the source data.

    It depends on nothing that tells methods or fine-tuning recipes apart, so all of a seed begin with the same weights.
    """
    assert cell.pretrain_dataset is not None
    assert cell.pretrain_epochs is not None
    return dataclasses.replace(
        cell,
        dataset=cell.pretrain_dataset,
        method="full",
        budget=None,
        epochs=cell.pretrain_epochs,
        **dataclasses.asdict(default_recipe(cell.model)),
        compile=False,
        train_size=cell.pretrain_size,
        test_size=None,
        val_size=0,
        image_size=image_size,
        eval_every="last",
        save_model="final",
        cache_dtype="fp32",
        cache_budget=None,
        check_every=None,
        policy={},
        freeze_to=None,
        refresh_statistics=None,
        cache_views=1,
        refresh_views=0.0,
        change_features=None,
        decide_by=None,
        scenario="scratch",
        init=None,
        pretrain_dataset=None,
        pretrain_epochs=None,
        pretrain_size=None,
        chunks=None,
        memory=None,
        stream=None,
        allocation=None,
    )


@dataclass(frozen=True)
class Pretrained:
    """Weights that a source run left, and its record."""

    weights: InitialWeights
    result: Mapping[str, Any]

    def for_classes(self, class_names: Sequence[str]) -> InitialWeights:
        """The weights to begin with on a data set of these classes: the head is kept only where the source's are the
        same.
        """
        told = self.result
        facts = {
            "pretrain_seconds": told["train_seconds"],
            "pretrain_dataset": told["dataset"],
            "pretrain_epochs": told["epochs"],
            "pretrain_images": told["train_size"],
            "pretrain_accuracy": told["test_accuracy"],
        }
        new_head = list(told["class_names"]) != list(class_names)
        return dataclasses.replace(self.weights, new_head=new_head, facts=facts)


def pretrained(
    cell: Cell,
    out: Path,
    load: Callable[[Cell], Resident],
    checkpointer: Callable[[Path], Checkpointer],
    note: Callable[[str], None],
) -> Pretrained:
    """What ``cell``, a ``source_cell``, leaves: from the results folder where it is there and whole, else trained now.

    Whoever comes second waits for the first. An interrupted run goes on from its checkpoint.

    Args:
        load: makes the source data resident.
        checkpointer: keeps checkpoints in the folder given.

    Raises:
        UserError: the source data are not to be had, or training on them diverged.
        Interrupted: a signal came; a checkpoint holds everything.
    """
    folder = out / PRETRAINED / cell.cell_id
    with folder_lock(folder, note, f"pre-training {cell.model} on {cell.dataset}, seed {cell.seed}"):
        found = _kept(cell, folder, note)
        if found is None:
            _train(cell, folder, load(cell), checkpointer(folder), note)
            found = _kept(cell, folder, note)
        assert found is not None, "it was just written"
        return found


def _kept(cell: Cell, folder: Path, note: Callable[[str], None]) -> Pretrained | None:
    """What an earlier run left in ``folder``; damaged files are set aside and named. Raises ``UserError`` where it
    diverged.
    """
    mend_cell(folder, note)
    result = read_json(folder / "result.json")
    if result is None:
        return None
    if result["status"] != "finished":
        raise UserError(f"pre-training {cell.model} on {cell.dataset} {result['status']}: {result['error']}")
    path = folder / WEIGHTS
    try:
        return Pretrained(weights_from_file(path, f"pre-trained on {cell.dataset}"), result)
    except UserError as damaged:
        aside = f"; set aside as {set_aside(path).name}" if path.exists() else ""
        note(f"{damaged}{aside}, they are made again")
        return None


def refuse_other_source(cell: Cell, out: Path, dataset: Dataset) -> None:
    """Raises ``UserError`` where weights kept in ``out`` were made on other images than ``dataset`` now holds."""
    result = read_json(out / PRETRAINED / cell.cell_id / "result.json") or {}
    if result.get("status") == "finished" and result.get("data_fingerprint") not in (None, dataset.fingerprint):
        raise UserError(
            f"{cell.dataset}: its files have changed since {cell.cell_id} was pre-trained in {out}; restore them, or "
            "choose another --out"
        )


def blank_weights(cell: Cell, dataset: Dataset) -> InitialWeights:
    """Weights of the shapes that the source run would leave, to try beforehand whether they fit."""
    model = build_model(model_spec(cell, dataset))
    return InitialWeights(f"pre-trained on {cell.dataset}", model.state_dict(), new_head=True)


def _train(cell: Cell, folder: Path, data: Resident, checkpointer: Checkpointer, note: Callable[[str], None]) -> None:
    dataset = data.dataset
    note(f"pre-training {cell.model} on {cell.dataset}, seed {cell.seed}: {cell.epochs} epochs")
    shape = {"channels": dataset.channels, "classes": dataset.classes, "image_size": dataset.image_size}
    write_sealed(folder / "config.json", dataclasses.asdict(cell) | shape)
    stages = split_stages(build_model(model_spec(cell, dataset)))
    flops = count_stage_flops(stages, (dataset.channels, dataset.image_size, dataset.image_size))
    run = run_cell(
        cell,
        data,
        CostTable.untimed(flops, cell.batch_size),
        folder,
        device=data.train.device,
        checkpointer=checkpointer,
    )
    write_sealed_lines(folder / "epochs.jsonl", run.epochs)
    save_model(run.model, folder / WEIGHTS)
    result = run.result | {"class_names": list(dataset.class_names)}
    result["finished_at"] = datetime.now(UTC).isoformat(timespec="microseconds")
    write_sealed(folder / "result.json", result)
    checkpointer.clear()
    if result["test_accuracy"] is not None:
        note(
            f"pre-trained in {result['train_seconds']:.1f} s, accuracy on {cell.dataset} {result['test_accuracy']:.4f}"
        )
