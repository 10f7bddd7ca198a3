"""What a finished run comes to: every figure of a cell's record."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ldbench.costs.table import CostTable
from ldbench.dropping.engine import LayerDropper
from ldbench.experiment.config import Cell
from ldbench.io.checksums import SCHEMA_VERSION
from ldbench.meters import peak_memory
from ldbench.models.zoo import describe_model
from ldbench.records.environment import environment
from ldbench.training.setup import Resident, model_spec

if TYPE_CHECKING:
    from ldbench.training.run_state import Training


def cell_result(run: Training, data: Resident, status: str) -> dict[str, Any]:
    """A cell's ``result.json``, up to its energy and what only its caller knows."""
    cell, costs, dropper, rows = run.cell, run.costs, run.dropper, run.rows
    train_seconds, full_steps = run.clock.seconds, run.full_steps
    dataset, ledger, last = data.dataset, dropper.ledger, rows[-1]
    assert ledger is not None
    device = dropper.device
    memory = peak_memory(device)
    test = dataset.test.labels
    chance = float(test.bincount().max()) / len(test)
    accuracy = last["test_accuracy"] if status == "finished" and not dataset.synthetic else None
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / len(test))
    samples = full_steps * dropper.batch_size
    stages = [
        {
            "name": name, "parameters": sum(p.numel() for p in parameters), "output_shape": flops.output_shape,
            "activation_bytes": 4 * math.prod(flops.output_shape), "forward_flops": flops.forward,
            "backward_flops": flops.backward, "executed_forward_flops": forward, "executed_backward_flops": backward,
            "skipped_steps": steps,
        }
        for name, parameters, flops, forward, backward, steps in zip(
            dropper.stage_names, dropper.stage_parameters, ledger.table, ledger.forward, ledger.backward,
            dropper.depth.skipped_steps if dropper.depth is not None else [0] * len(ledger.table), strict=True
        )
    ]  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION, "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset,
        "scenario": cell.scenario, "method": cell.method, "budget": cell.budget, "seed": cell.seed, "status": status, "error": None,
        "test_accuracy": accuracy, "test_loss": last["test_loss"] if accuracy is not None else None,
        "val_accuracy": last["val_accuracy"], "test_images": len(test), "test_correct_base64": None,
        "chance_accuracy": chance, "at_chance": accuracy is not None and accuracy <= limit,
        "steps": dropper.step_count, "epochs": len(rows), "batch_size": dropper.batch_size, "train_size": len(data.train),
        "train_seconds": train_seconds, "cache_build_seconds": dropper.cache_build_seconds,
        "scoring_seconds": dropper.scoring_seconds, "store_read_seconds": dropper.store_read_seconds,
        "kernel_time_share": (dropper.scoring_seconds + dropper.store_read_seconds) / max(train_seconds, 1e-9),
        "data_seconds": data.seconds,
        "cost_table_seconds": costs.seconds_to_measure,
        "forward_flops": sum(ledger.forward), "backward_flops": sum(ledger.backward), "cache_build_flops": ledger.building,
        "scoring_flops": ledger.scoring,
        "forward_flops_full": samples * sum(s.forward for s in ledger.table),
        "backward_flops_full": samples * (ledger.table[0].backward_first + sum(s.backward for s in ledger.table[1:])),
        "predicted_saved_seconds": _predicted_saving(cell, costs, dropper, full_steps),
        "peak_memory_bytes": memory[0], "peak_memory_kind": memory[1],
        "store_bytes": dropper.peak_store_bytes, "store_tier": dropper.drops[-1].store_tier if dropper.drops else None,
        "dropped_stages": dropper.cut, "stages": stages,
        "drops": [{**dataclasses.asdict(d), "epoch": run.epoch_of(d.step)} for d in dropper.drops],
        "declined": dropper.declined, **_chunks(run, accuracy is not None),
        "augmentation": cell.augment, "augmentation_after_drop": _after_drop(cell, dropper),
        "precision": cell.precision, "width": cell.width, "padded_from": dataset.padded_from,
        "synthetic": dataset.synthetic, "data_fingerprint": dataset.fingerprint,
        **describe_model(model_spec(cell, dataset)), "image_size": dataset.image_size, "environment": environment(device),
    }  # fmt: skip


def _chunks(run: Training, scored: bool) -> dict[str, Any]:
    """What each chunk of a stream came to, on the whole test set; nothing where all data were there from the beginning."""
    stream, told = run.dropper.stream, []
    if run.cell.chunks is None:
        return {"chunks": [], "average_accuracy": None, "memory_size": None, "chunk_size": None}
    for row in run.rows:
        if not run.course[row["epoch"]].closes_chunk:
            continue
        new = len(stream.arrivals(row["chunk"]))
        told.append({
            "chunk": row["chunk"], "step": row["step"], "images_seen": new * (row["chunk"] + 1),
            "remembered": len(stream.sets[row["chunk"]]) - new,
            **{key: row[key] for key in ("test_accuracy", "test_loss", "train_seconds", "forward_flops", "backward_flops",
               "dropped_stages", "store_bytes")},
        })  # fmt: skip
    accuracies = [entry["test_accuracy"] for entry in told]
    return {
        "chunks": told, "average_accuracy": sum(accuracies) / len(accuracies) if scored else None,
        "memory_size": stream.capacity - len(stream.sets[0]), "chunk_size": len(stream.sets[0]),
    }  # fmt: skip


def _after_drop(cell: Cell, dropper: LayerDropper) -> str:
    if cell.augment == "none" or not dropper.drops:
        return "not applicable"
    return "stopped: the store holds one unaugmented view" if dropper.execution == "store" else "continues"


def _predicted_saving(cell: Cell, costs: CostTable, dropper: LayerDropper, full_steps: int) -> float:
    """Seconds the cost table says these drops, or this shorter run, save against full training."""
    skipped = (full_steps - dropper.step_count) * costs.step_seconds(0) if cell.budget is not None else 0.0
    if dropper.depth is not None:
        both = [forward + backward for forward, backward in zip(costs.forward, costs.backward, strict=True)]
        skipped += sum(s * seconds for s, seconds in zip(dropper.depth.skipped_steps, both, strict=True))
    return skipped + sum(drop.predicted_saving_seconds for drop in dropper.drops)
