"""The training loop: every method of every cell runs through it, and goes on from a checkpoint with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldbench.costs.table import CostTable
from ldbench.experiment.config import Cell
from ldbench.io.checksums import Damaged
from ldbench.meters import reset_peak_memory
from ldbench.models.initial_weights import InitialWeights
from ldbench.records.cell_files import pack_bits
from ldbench.training.checkpointing import Checkpointer
from ldbench.training.evaluate import evaluate
from ldbench.training.interrupts import Interrupted
from ldbench.training.optim import set_learning_rates
from ldbench.training.result import cell_result
from ldbench.training.run_state import RunState
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
    cell: Cell,
    data: Resident,
    costs: CostTable,
    folder: Path,
    *,
    device: torch.device,
    replay: Sequence[Sequence[int]] | None = None,
    on_epoch: OnEpoch = lambda row, rows: None,
    checkpointer: Checkpointer | None = None,
    initial: InitialWeights | None = None,
) -> CellRun:
    """Train one cell and measure it.

    Args:
        replay: recorded drops (step, stages) for a method that repeats another's.
        folder: existing folder for a memory-mapped store.
        on_epoch: called after every epoch with its row and all rows so far.
        checkpointer: keeps checkpoints, and may hold one to go on from.
        initial: weights to begin with; None for random ones.

    Raises:
        Interrupted: a signal came; a checkpoint holds everything.
    """
    checkpointer = checkpointer if checkpointer is not None else Checkpointer(None)
    stop = checkpointer.stop
    run = _start(
        lambda: RunState(cell, data, costs, folder, device, replay, initial, stop.check_deferred), checkpointer
    )
    if cell.compile:
        run.compile()
    reset_peak_memory(device)
    interrupted, status, error = False, "finished", None
    try:
        with stop.deferred():
            try:
                _train(run, checkpointer, on_epoch)
            except Diverged as reason:
                status, error = "diverged", str(reason)
            except Interrupted:
                interrupted = True
                run.clock.pause()
                run.save(checkpointer, last=True)
                raise
    finally:
        run.clock.pause()
        run.dropper.close(keep_store_file=interrupted)
    result = cell_result(run, status, error) | checkpointer.account()
    result["incidents"] = checkpointer.incidents + run.dropper.account.incidents
    scores = [{**check, "epoch": run.epoch_of(check["step"])} for check in run.dropper.checks]
    return CellRun(result, run.rows, scores, run.model)


def _start(build: Callable[[], RunState], checkpointer: Checkpointer) -> RunState:
    """A run at its beginning, or where a checkpoint left it."""
    run = build()
    saved = checkpointer.load(run.identity)
    if saved is not None:
        try:
            run.restore(saved)
        except (Damaged, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            run.dropper.close()
            checkpointer.refuse(error)
            run = build()
    checkpointer.begin(run.flops)
    return run


def _train(run: RunState, checkpointer: Checkpointer, on_epoch: OnEpoch) -> None:
    """Every epoch that is left: its steps, interrupted by checkpoints where they are due, and its evaluation."""
    while len(run.rows) < len(run.course):
        while _train_until_due(run, checkpointer):
            run.clock.pause()
            run.save(checkpointer)
        row = run.end_epoch()
        if not math.isfinite(row["train_loss"]):
            run.rows.append(row)
            raise Diverged(f"the training loss is not finite after {row['step']} steps; try a lower --lr")
        _evaluate_epoch(run, row, checkpointer.stop.check)
        run.begin_epoch(row)
        on_epoch(row, run.rows)


def _train_until_due(run: RunState, checkpointer: Checkpointer) -> bool:
    """Train to the end of the epoch, or up to a step after which a checkpoint is due (True)."""
    cell, dropper, optimizer, scaler, epoch = run.cell, run.dropper, run.optimizer, run.scaler, run.epoch
    first = dropper.step_count - (run.rows[-1]["step"] if run.rows else 0)
    with run.clock.running():
        dropper.finish_drop()
        if dropper.chunk != epoch.chunk:
            dropper.begin_chunk(epoch.chunk)
        if run.epoch_is_over():
            return False
        run.begin_steps()
        for x, y, index in dropper.loader(len(run.rows), first):
            scales = dropper.policy.lr_scales(dropper.progress, len(dropper.stages))
            made, length = run.schedule_position()
            set_learning_rates(optimizer, cell, scales, (made, length))
            optimizer.zero_grad(set_to_none=True)
            with run.autocast():
                loss = run.loss(dropper(x, made / length), y, index)
            scaler.scale(loss).backward()
            if cell.clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(run.model.parameters(), cell.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            run.loss_sum += loss.detach()
            run.summed += 1
            run.end_step(len(y))

            checkpointer.stop.check()
            if run.epoch_is_over():
                return False
            if checkpointer.due():
                return True
    return False


def _evaluate_epoch(run: RunState, row: dict[str, Any], on_batch: Callable[[], None]) -> None:
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
    if last and run.cell.chunks is not None and run.correct is not None:
        row["test_correct_base64"] = pack_bits(run.correct.tolist())
    run.eval_seconds += time.perf_counter() - began
