"""The one training loop: every method of every cell runs through it, and goes on from a checkpoint with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.costs.table import CostTable
from ldbench.experiment.config import Cell
from ldbench.io.checksums import Damaged
from ldbench.meters import reset_peak_memory
from ldbench.models.initial_weights import InitialWeights
from ldbench.records.cell_files import pack_bits
from ldbench.training.checkpointing import Keeper
from ldbench.training.evaluate import evaluate
from ldbench.training.interrupts import Interrupted
from ldbench.training.optim import set_learning_rate
from ldbench.training.result import cell_result
from ldbench.training.run_state import Training
from ldbench.training.setup import Resident

OnEpoch = Callable[[dict[str, Any], list[dict[str, Any]]], None]


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
    replay: Sequence[Sequence[int]] | None = None, on_epoch: OnEpoch = lambda row, rows: None,
    keeper: Keeper | None = None, initial: InitialWeights | None = None,
) -> CellRun:  # fmt: skip
    """Train one cell and measure it.

    Args:
        replay: recorded drops (step, stages) for a method that repeats another's.
        folder: existing folder for a memory-mapped store.
        on_epoch: called after every epoch with its row and all rows so far.
        keeper: keeps checkpoints, and may hold one to go on from.
        initial: weights to begin with; None for random ones.

    Raises:
        Interrupted: a signal came; a checkpoint holds everything.
    """
    keeper = keeper if keeper is not None else Keeper(None)
    run = _start(lambda: Training(cell, data, costs, folder, device, replay, initial), keeper)
    if cell.compile:
        run.compile()
    reset_peak_memory(device)
    interrupted = False
    run.dropper.activations.on_batch = keeper.stop.check
    status, error = "finished", None
    try:
        with keeper.stop.deferred():
            try:
                _train(run, keeper, on_epoch)
            except Diverged as reason:
                status, error = "diverged", str(reason)
            except Interrupted:
                interrupted = True
                run.clock.pause()
                keeper.save(run, last=True)
                raise
    finally:
        run.clock.pause()
        run.dropper.close(keep_store_file=interrupted)
    dropper = run.dropper
    result = cell_result(run, data, status)
    result |= (
        run.beginning
        | run.energy_record()
        | {
            "error": error,
            "eval_seconds": run.eval_seconds,
            "compile_seconds": run.compile_seconds,
        }
    )
    result |= keeper.account() | {"incidents": keeper.incidents + dropper.incidents}
    if status == "finished" and run.correct is not None:
        result["test_correct_base64"] = pack_bits(run.correct.tolist())
    scores = [{**check, "epoch": run.epoch_of(check["step"])} for check in dropper.checks]
    return CellRun(result, run.rows, scores, run.model)


def _start(build: Callable[[], Training], keeper: Keeper) -> Training:
    """A run at its beginning, or where a checkpoint left it."""
    run = build()
    saved = keeper.load(run.identity)
    if saved is not None:
        try:
            run.restore(saved)
        except (Damaged, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            run.dropper.close()
            keeper.refuse(error)
            run = build()
    keeper.begin(run)
    return run


def _train(run: Training, keeper: Keeper, on_epoch: OnEpoch) -> None:
    while len(run.rows) < len(run.course):
        while _train_span(run, keeper):
            run.clock.pause()
            keeper.save(run)
        row = run.end_epoch()
        if not math.isfinite(row["train_loss"]):
            run.rows.append(row)
            raise Diverged(f"the training loss is not finite after {row['step']} steps; try a lower --lr")
        _evaluate_epoch(run, row, keeper.stop.check)
        run.begin_epoch(row)
        on_epoch(row, run.rows)


def _train_span(run: Training, keeper: Keeper) -> bool:
    """Train to the end of the epoch, or up to a step after which a checkpoint is due (True)."""
    dropper, first = run.dropper, run.dropper.step_count - run.epoch.first_step
    with run.clock.running():
        dropper.finish_drop()
        if dropper.chunk != run.epoch.chunk:
            dropper.begin_chunk(run.epoch.chunk)
        if dropper.step_count >= run.epoch.end or run.loss_is_broken():
            return False
        for x, y, _ in dropper.loader(len(run.rows), first):
            _step(run, x, y)
            keeper.stop.check()
            if dropper.step_count >= run.epoch.end or run.loss_is_broken():
                return False
            if keeper.due(run):
                return True
    return False


def _step(run: Training, x: Tensor, y: Tensor) -> None:
    cell, dropper, optimizer, scaler = run.cell, run.dropper, run.optimizer, run.scaler
    set_learning_rate(optimizer, cell, dropper.policy, run.schedule_position(), dropper.progress, len(dropper.stages))
    optimizer.zero_grad(set_to_none=True)
    with run.autocast():
        loss = run.criterion(dropper(x), y)
    scaler.scale(loss).backward()
    if cell.clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), cell.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    run.loss_sum += loss.detach()
    run.summed += 1
    dropper.step(len(y))


def _evaluate_epoch(run: Training, row: dict[str, Any], on_batch: Callable[[], None]) -> None:
    """Fill in the row's accuracies where an evaluation is due, as it is after every chunk.

    The test set waits for the end of a chunk where there is a validation set.
    """
    every, last = run.cell.eval_every, run.course[row["epoch"]].closes_chunk
    if not last and (every == "last" or (row["epoch"] + 1) % int(every) != 0):
        return
    run.clock.pause()
    began = time.perf_counter()
    with run.phases.span("evaluation"):
        for name, split in (("val", run.data.val), ("test", run.data.test if last or run.data.val is None else None)):
            if split is not None:
                accuracy, loss, run.correct = evaluate(run.model, split, run.autocast, on_batch=on_batch)
                row |= {f"{name}_accuracy": accuracy, f"{name}_loss": loss}
    run.eval_seconds += time.perf_counter() - began
