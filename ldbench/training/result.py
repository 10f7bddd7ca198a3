"""What a finished run comes to: every figure of a cell's record."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ldbench.dropping.account import FlopLedger
from ldbench.dropping.engine import LayerDropper
from ldbench.experiment.config import Cell
from ldbench.io.checksums import SCHEMA_VERSION
from ldbench.meters import peak_memory
from ldbench.models.zoo import describe_model
from ldbench.records.cell_files import pack_bits
from ldbench.records.environment import environment
from ldbench.training.run_state import RunState
from ldbench.training.setup import model_spec

OF_THE_CELL = ("cell_id", "model", "dataset", "scenario", "method", "budget", "seed", "precision", "width")
OF_A_CHUNK = (
    "test_accuracy", "test_loss", "val_accuracy", "train_seconds", "forward_flops", "backward_flops", "dropped_stages",
    "store_bytes", "test_correct_base64",
)  # fmt: skip


def cell_result(run: RunState, status: str, error: str | None) -> dict[str, Any]:
    """A cell's ``result.json``, up to what only its caller knows."""
    cell, data, costs, dropper, account = run.cell, run.data, run.costs, run.dropper, run.dropper.account
    dataset, flops, last, train_seconds = data.dataset, account.flops, run.rows[-1], run.clock.seconds
    memory_bytes, memory_kind = peak_memory(dropper.device)
    labels = dataset.test.labels
    chance = float(labels.bincount().max()) / len(labels)
    accuracy = last["test_accuracy"] if status == "finished" and not dataset.synthetic else None
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / len(labels))
    samples = run.full_steps * dropper.batch_size
    whole = FlopLedger.empty(flops.table)
    whole.add_step(samples, 0, 0, frozen=set(range(run.frozen)))
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(cell, name) for name in OF_THE_CELL},
        "status": status,
        "error": error,
        "test_accuracy": accuracy,
        "test_loss": last["test_loss"] if accuracy is not None else None,
        "val_accuracy": last["val_accuracy"],
        "test_images": len(labels),
        "test_correct_base64": pack_bits(run.correct.tolist())
        if status == "finished" and run.correct is not None
        else None,
        "chance_accuracy": chance,
        "at_chance": accuracy is not None and accuracy <= limit,
        "steps": dropper.step_count,
        "epochs": len(run.rows),
        "batch_size": dropper.batch_size,
        "train_size": len(data.train),
        "train_seconds": train_seconds,
        "typical_train_seconds": run.step_times.typical_seconds(account.building_seconds),
        "step_seconds": run.step_times.record(),
        "eval_seconds": run.eval_seconds,
        "compile_seconds": run.compile_seconds,
        "cache_build_seconds": account.building_seconds,
        "scoring_seconds": account.scoring_seconds,
        "store_read_seconds": account.reading_seconds,
        "kernel_time_share": (account.scoring_seconds + account.reading_seconds) / max(train_seconds, 1e-9),
        "data_seconds": data.seconds,
        "cost_table_seconds": costs.seconds_to_measure,
        "forward_flops": sum(flops.forward),
        "backward_flops": sum(flops.backward),
        "cache_build_flops": flops.building,
        "scoring_flops": flops.scoring,
        "forward_flops_full": sum(whole.forward),
        "backward_flops_full": sum(whole.backward),
        "predicted_saved_seconds": _predicted_saving(run),
        "peak_memory_bytes": memory_bytes,
        "peak_memory_kind": memory_kind,
        "store_bytes": account.peak_store_bytes,
        "store_tier": account.drops[-1].store_tier if account.drops else None,
        "frozen_stages": run.frozen,
        "dropped_stages": dropper.cut,
        "stages": _stages(dropper),
        "drops": [{**dataclasses.asdict(drop), "epoch": run.epoch_of(drop.step)} for drop in account.drops],
        "declined": account.declined,
        **_chunks(run, accuracy is not None),
        "augmentation": cell.augment,
        "augmentation_after_drop": _after_drop(cell, dropper),
        "padded_from": dataset.padded_from,
        "synthetic": dataset.synthetic,
        "data_fingerprint": dataset.fingerprint,
        **describe_model(model_spec(cell, dataset)),
        "image_size": dataset.image_size,
        "environment": environment(dropper.device),
        **run.beginning,
        **run.energy_record(),
    }


def _stages(dropper: LayerDropper) -> list[dict[str, Any]]:
    flops, told = dropper.account.flops, dropper.explain().stages
    columns = told, dropper.stage_parameters, flops.table, flops.forward, flops.backward
    return [
        {
            "name": report.name,
            "parameters": sum(p.numel() for p in parameters),
            "output_shape": each.output_shape,
            "activation_bytes": 4 * math.prod(each.output_shape),
            "forward_flops": each.forward,
            "backward_flops": each.backward,
            "executed_forward_flops": forward,
            "executed_backward_flops": backward,
            "skipped_steps": steps,
            "why": report.why if report.dropped_at is None else "",
        }
        for report, parameters, each, forward, backward, steps in zip(*columns, dropper.live.skipped_steps, strict=True)
    ]


def _chunks(run: RunState, scored: bool) -> dict[str, Any]:
    """What each chunk of a stream came to, on the whole test set; nothing where all data were there from the
    beginning.
    """
    stream, told = run.dropper.stream, []
    if run.cell.chunks is None:
        averages = dict.fromkeys(("average_accuracy", "average_val_accuracy"))
        return {"chunks": [], **averages, "memory_size": None, "chunk_size": None}
    for row in run.rows:
        if not run.course[row["epoch"]].closes_chunk:
            continue
        chunk, new = row["chunk"], len(stream.arrivals(row["chunk"]))
        seen = {"images_seen": new * (chunk + 1), "remembered": len(stream.sets[chunk]) - new}
        told.append({"chunk": chunk, "step": row["step"], **seen, **{key: row.get(key) for key in OF_A_CHUNK}})
    accuracies, val_accuracies = ([entry[key] for entry in told] for key in ("test_accuracy", "val_accuracy"))
    validated = len(told) == len(stream) and None not in val_accuracies
    first = len(stream.sets[0])
    return {
        "chunks": told,
        "average_accuracy": sum(accuracies) / len(accuracies) if scored else None,
        "average_val_accuracy": sum(val_accuracies) / len(val_accuracies) if validated else None,
        "memory_size": stream.capacity - first,
        "chunk_size": first,
    }


def _after_drop(cell: Cell, dropper: LayerDropper) -> str:
    if not dropper.drops or (cell.augment == "none" and not cell.change_features):
        return "not applicable"
    if dropper.execution == "freeze":
        return "continues"
    told = [] if cell.augment == "none" else ["stopped: the store holds one unaugmented view"]
    if cell.cache_views > 1:
        told = [f"{cell.cache_views} stored views"]
    if cell.refresh_views:
        told.append(f"{cell.refresh_views:.3g} of them made anew every epoch")
    if cell.change_features:
        told.append(f"stored features changed ({', '.join(cell.change_features)})")
    return ", ".join(told)


def _predicted_saving(run: RunState) -> float | None:
    """Seconds the cost table says these drops, this shorter run, or its shorter epochs, save against full training.

    None where it has none.
    """
    costs, left_out = run.costs, run.full_steps - run.dropper.step_count
    shorter = run.cell.budget is not None or run.dropper.pruning is not None
    skipped = left_out * costs.step_seconds(0) if shorter else 0.0
    both = [forward + backward for forward, backward in zip(costs.forward, costs.backward, strict=True)]
    skipped += sum(steps * seconds for steps, seconds in zip(run.dropper.live.skipped_steps, both, strict=True))
    told = [drop.predicted_saving_seconds for drop in run.dropper.drops]
    return None if None in told else skipped + sum(filter(None, told))
