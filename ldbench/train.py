"""The one training loop: every method of every cell runs through it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.config import Cell
from ldbench.costs import CostTable, synchronize
from ldbench.data import Augment, Dataset, ResidentSplit, derive_seed
from ldbench.dropping import Drop, LayerDropper
from ldbench.meters import PhaseMeters, TrainClock, peak_memory, reset_peak_memory
from ldbench.methods import build_policy, get_method
from ldbench.models import ModelSpec, build_model, describe_model
from ldbench.policies import Policy
from ldbench.record import SCHEMA_VERSION, environment, pack_bits

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Resident:
    """A data set's splits on the device, normalised there; shared by all cells of the data set."""

    dataset: Dataset
    train: ResidentSplit
    val: ResidentSplit | None
    test: ResidentSplit
    seconds: float


def model_spec(cell: Cell, dataset: Dataset) -> ModelSpec:
    """The architecture of a cell, fitted to its data."""
    return ModelSpec(cell.model, dataset.channels, dataset.image_size, dataset.classes, cell.width, cell.dropout)


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of the forward pass: automatic mixed precision for bf16 and fp16, nothing for fp32."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup_fraction: float) -> float:
    """Factor on the base rate at ``step`` of ``total_steps``: linear warm-up, then cosine to 0, constant, or 0.1x at 1/2 and 3/4."""
    warmup = int(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total_steps - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.01 if progress >= 0.75 else 0.1 if progress >= 0.5 else 1.0
    return 1.0


def build_optimizer(cell: Cell, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer of a cell's recipe, one parameter group per entry of ``groups``."""
    parameters = [{"params": list(group)} for group in groups]
    if cell.optimizer == "sgd":
        nesterov = cell.momentum > 0
        return torch.optim.SGD(parameters, cell.lr, cell.momentum, weight_decay=cell.weight_decay, nesterov=nesterov)
    kind = torch.optim.AdamW if cell.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, cell.lr, weight_decay=cell.weight_decay)


def _stage_groups(stages: Sequence[Sequence[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """Each parameter once, with the last stage that uses it."""
    owner = {id(p): s for s, stage in enumerate(stages) for p in stage}
    seen: set[int] = set()
    groups: list[list[nn.Parameter]] = [[] for _ in stages]
    for stage in stages:
        for p in stage:
            if id(p) not in seen:
                seen.add(id(p))
                groups[owner[id(p)]].append(p)
    return groups


@torch.no_grad()
def evaluate(
    model: nn.Module, split: ResidentSplit, autocast: Callable[[], AbstractContextManager[Any]], batch_size: int = 512
) -> tuple[float, float, Tensor]:
    """Accuracy, mean cross-entropy, and per image whether it was right (bool [N], CPU), of the whole network."""
    model.eval()
    losses, hits = [], []
    for indices in torch.split(torch.arange(len(split)), batch_size):
        x, y = split.batch(indices)
        with autocast():
            logits = model(x)
        losses.append(nn.functional.cross_entropy(logits.float(), y, reduction="sum"))
        hits.append(logits.argmax(1) == y)
    model.train()
    correct = torch.cat(hits).cpu()
    return float(correct.double().mean()), float(torch.stack(losses).double().sum()) / len(split), correct


@dataclass
class CellRun:
    """What ``run_cell`` hands back for the record."""

    result: dict[str, Any]
    epochs: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    model: nn.Module


class Diverged(Exception):
    """The training loss is not finite any more."""


def run_cell(
    cell: Cell, data: Resident, costs: CostTable, folder: Path, *, device: torch.device,
    replay: Sequence[Sequence[int]] | None = None,
    on_epoch: Callable[[dict[str, Any], list[dict[str, Any]]], None] = lambda row, rows: None,
) -> CellRun:  # fmt: skip
    """Train one cell and measure it.

    Args:
        replay: recorded drops (step, stages) for a method that repeats another's.
        folder: existing folder for a memory-mapped store.
        on_epoch: called after every epoch with its row and all rows so far.
    """
    dataset, method = data.dataset, get_method(cell.method)
    torch.manual_seed(derive_seed(cell.seed, "weights"))
    model = build_model(model_spec(cell, dataset)).to(device).train()
    if cell.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
    policy = build_policy(cell.method, cell.policy, replay)
    full_steps = cell.epochs * (len(data.train) // min(cell.batch_size, len(data.train)))
    total_steps = max(1, round(full_steps * (cell.budget or 1.0)))
    autocast = autocast_for(cell.precision, device)
    criterion = nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing)
    optimizer = build_optimizer(cell, [list(model.parameters())])
    augment = Augment(cell.augment, dataset.image_size, cell.seed)
    dropper = LayerDropper(
        model, optimizer, data.train, batch_size=cell.batch_size, total_steps=total_steps, policy=policy,
        execution=method.execution, seed=cell.seed, check_every=cell.check_every, cache_dtype=cell.cache_dtype,
        cache_budget=cell.cache_budget, folder=folder, costs=costs, channels_last=cell.channels_last,
        compile=cell.compile, autocast=autocast, augment=augment if augment.active else None,
        refresh_statistics=method.refresh_statistics, criterion=criterion,
    )  # fmt: skip
    if policy.lr_scales(0.0, len(dropper.stages)) is not None:  # one group per stage, each with its own rate
        dropper.optimizer = optimizer = build_optimizer(cell, _stage_groups(dropper.stage_parameters))
    ledger = dropper.count_flops((dataset.channels, dataset.image_size, dataset.image_size))
    scaler = torch.amp.GradScaler(device.type, enabled=cell.precision == "fp16" and device.type == "cuda")
    compile_seconds = _compile(dropper, data.train, criterion) if cell.compile else 0.0
    reset_peak_memory(device)
    phases = PhaseMeters(device)
    clock = TrainClock(device, phases.meters["training"])
    dropper.around_building = lambda: phases.span("cache_building")
    eval_seconds, rows = 0.0, list[dict[str, Any]]()
    status, error, correct = "finished", None, None
    loss_sum = torch.zeros((), device=device)
    summed = epoch = 0

    try:
        while dropper.step_count < total_steps:
            with clock.running():
                for x, y, _ in dropper.loader(epoch):
                    _set_learning_rate(optimizer, cell, policy, dropper.step_count / total_steps, total_steps, dropper)
                    optimizer.zero_grad(set_to_none=True)
                    with autocast():
                        loss = criterion(dropper(x), y)
                    scaler.scale(loss).backward()
                    if cell.clip_norm is not None:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(model.parameters(), cell.clip_norm)
                    scaler.step(optimizer)
                    scaler.update()
                    loss_sum += loss.detach()
                    summed += 1
                    dropper.step(len(y))
                    if dropper.step_count >= total_steps:
                        break
                    if dropper.step_count % dropper.check_every == 0 and not math.isfinite(float(loss_sum)):
                        break
            train_loss, summed = float(loss_sum) / summed, 0
            loss_sum.zero_()
            last = dropper.step_count >= total_steps
            row = {
                "epoch": epoch, "step": dropper.step_count, "train_loss": train_loss,
                "test_accuracy": None, "test_loss": None, "val_accuracy": None, "val_loss": None,
                "live_stages": dropper.live_stages, "dropped_stages": dropper.cut, "lr": optimizer.param_groups[-1]["lr"],
                "train_seconds": clock.seconds, "forward_flops": sum(ledger.forward), "backward_flops": sum(ledger.backward),
            }  # fmt: skip
            rows.append(row)
            if not math.isfinite(train_loss):
                raise Diverged(f"the training loss is not finite after {dropper.step_count} steps; try a lower --lr")
            if last or (cell.eval_every != "last" and (epoch + 1) % int(cell.eval_every) == 0):
                began = time.perf_counter()
                with phases.span("evaluation"):
                    for name, split in (("val", data.val), ("test", data.test if last or data.val is None else None)):
                        if split is not None:
                            row[f"{name}_accuracy"], row[f"{name}_loss"], correct = evaluate(model, split, autocast)
                eval_seconds += time.perf_counter() - began
            on_epoch(row, rows)
            epoch += 1
    except Diverged as reason:
        status, error = "diverged", str(reason)
    finally:
        dropper.close()
    result = _result(cell, data, costs, dropper, clock, rows, status, full_steps, device)
    phases.epochs(rows)
    result |= phases.record() | {"error": error, "eval_seconds": eval_seconds, "compile_seconds": compile_seconds}
    if status == "finished" and correct is not None:
        result["test_correct_base64"] = pack_bits(correct.tolist())
    scores = [{**check, "epoch": (check["step"] - 1) // dropper.steps_per_epoch} for check in dropper.checks]
    return CellRun(result, rows, scores, model)


def _set_learning_rate(
    optimizer: torch.optim.Optimizer,
    cell: Cell,
    policy: Policy,
    progress: float,
    total_steps: int,
    dropper: LayerDropper,
) -> None:
    scales = policy.lr_scales(progress, len(dropper.stages))
    if scales is None:
        rate = cell.lr * learning_rate_factor(cell.schedule, dropper.step_count, total_steps, cell.warmup_fraction)
        optimizer.param_groups[0]["lr"] = rate
        return
    warmup = learning_rate_factor("constant", dropper.step_count, total_steps, cell.warmup_fraction)
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group["lr"] = cell.lr * warmup * scale


def _compile(dropper: LayerDropper, split: ResidentSplit, criterion: nn.Module) -> float:
    """Run the compiled network once forward and backward, leaving weights, statistics and gradients as they were."""
    began = time.perf_counter()
    buffers = {name: buffer.clone() for name, buffer in dropper.model.named_buffers()}
    x, y = split.batch(torch.arange(dropper.batch_size))
    with dropper.autocast():
        loss = criterion(dropper(x), y)
    loss.backward()
    dropper.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in dropper.model.named_buffers():
            buffer.copy_(buffers[name])
    synchronize(dropper.device)
    return time.perf_counter() - began


def _result(
    cell: Cell, data: Resident, costs: CostTable, dropper: LayerDropper, clock: TrainClock, rows: list[dict[str, Any]],
    status: str, full_steps: int, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    dataset, ledger, last = data.dataset, dropper.ledger, rows[-1]
    assert ledger is not None
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
        }
        for name, parameters, flops, forward, backward in zip(
            dropper.stage_names, dropper.stage_parameters, ledger.table, ledger.forward, ledger.backward, strict=True
        )
    ]  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION, "cell_id": cell.cell_id, "model": cell.model, "dataset": cell.dataset,
        "method": cell.method, "budget": cell.budget, "seed": cell.seed, "status": status, "error": None,
        "test_accuracy": accuracy, "test_loss": last["test_loss"] if accuracy is not None else None,
        "val_accuracy": last["val_accuracy"], "test_images": len(test), "test_correct_base64": None,
        "chance_accuracy": chance, "at_chance": accuracy is not None and accuracy <= limit,
        "steps": dropper.step_count, "epochs": len(rows), "batch_size": dropper.batch_size, "train_size": len(data.train),
        "train_seconds": clock.seconds, "cache_build_seconds": dropper.cache_build_seconds,
        "scoring_seconds": dropper.scoring_seconds, "store_read_seconds": dropper.store_read_seconds,
        "kernel_time_share": (dropper.scoring_seconds + dropper.store_read_seconds) / max(clock.seconds, 1e-9),
        "data_seconds": data.seconds,
        "cost_table_seconds": costs.seconds_to_measure,
        "forward_flops": sum(ledger.forward), "backward_flops": sum(ledger.backward), "cache_build_flops": ledger.building,
        "forward_flops_full": samples * sum(s.forward for s in ledger.table),
        "backward_flops_full": samples * (ledger.table[0].backward_first + sum(s.backward for s in ledger.table[1:])),
        "predicted_saved_seconds": _predicted_saving(cell, costs, dropper, full_steps),
        "peak_memory_bytes": memory[0], "peak_memory_kind": memory[1],
        "store_bytes": dropper.peak_store_bytes, "store_tier": dropper.drops[-1].store_tier if dropper.drops else None,
        "dropped_stages": dropper.cut, "stages": stages,
        "drops": [{**dataclasses.asdict(d), "epoch": (d.step - 1) // dropper.steps_per_epoch} for d in dropper.drops],
        "declined": dropper.declined,
        "augmentation": cell.augment, "augmentation_after_drop": _after_drop(cell, dropper),
        "precision": cell.precision, "width": cell.width, "padded_from": dataset.padded_from,
        "synthetic": dataset.synthetic, "data_fingerprint": dataset.fingerprint,
        **describe_model(model_spec(cell, dataset)), "image_size": dataset.image_size, "environment": environment(device),
    }  # fmt: skip


def _after_drop(cell: Cell, dropper: LayerDropper) -> str:
    if cell.augment == "none" or not dropper.drops:
        return "not applicable"
    return "stopped: the store holds one unaugmented view" if dropper.execution == "store" else "continues"


def _predicted_saving(cell: Cell, costs: CostTable, dropper: LayerDropper, full_steps: int) -> float:
    """Seconds the cost table says these drops, or this shorter run, save against full training."""
    skipped = (full_steps - dropper.step_count) * costs.step_seconds(0) if cell.budget is not None else 0.0
    if dropper.execution == "store":
        return skipped + sum(drop.predicted_saving_seconds for drop in dropper.drops)
    return skipped + sum(_frozen_saving(costs, dropper, drop, before) for before, drop in _with_previous(dropper.drops))


def _with_previous(drops: Sequence[Drop]) -> list[tuple[int, Drop]]:
    return list(zip([0, *(drop.cut for drop in drops)], drops, strict=False))


def _frozen_saving(costs: CostTable, dropper: LayerDropper, drop: Drop, before: int) -> float:
    """Freezing keeps the forward pass: the stages between the two cuts run in inference instead of training."""
    gain = costs.step_seconds(before) - costs.step_seconds(drop.cut) - sum(costs.inference[before : drop.cut])
    return (dropper.total_steps - drop.step) * gain
