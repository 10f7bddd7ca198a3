"""The choice among what was tried: read from the records of the tuning's runs, written down in ``tuning.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldbench.errors import UserError
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.tuning import (
    Group,
    Variant,
    best_trial,
    edge_keys,
    mean_accuracy,
    tuned_like,
    values_text,
    variant,
)
from ldbench.io.checksums import plain, read_or_set_aside, write_sealed
from ldbench.io.locks import folder_lock
from ldbench.policies.registry import replay_source
from ldbench.records.cell_files import read_json
from ldbench.records.tuning import RESOLVED, RUNS, TUNING, group_key, read_tuning


def record_choices(
    out: Path, experiment: Experiment, groups: Sequence[Group], planned: Sequence[Cell], note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Choose the values of every group, whose runs are all over, and write them to ``tuning.json``.

    What an earlier experiment in the folder chose for other groups is kept. Returns the groups of this one as
    ``read_tuning`` gives them; tells ``note`` of each that is new.

    Raises:
        UserError: nothing that was tried for a group can be chosen.
        OSError: the file cannot be written.
    """
    entries = [_chosen(out, group) for group in groups]
    entries += _repeated(out, groups, planned, entries)
    with folder_lock(out / RUNS, note):
        told = read_or_set_aside(out / TUNING, note) or {}
        before = read_tuning(out)
        ours = {entry["key"] for entry in entries}
        kept = [entry for entry in before if entry["key"] not in ours]
        value = {"seeds": list(experiment.seeds_to_tune), "groups": [*kept, *entries]}
        if any(told.get(key) != item for key, item in value.items()):
            write_sealed(out / TUNING, value)
    for entry in entries:
        if entry not in before:
            _tell(entry, note)
    return entries


def chosen_values(entries: Sequence[Mapping[str, Any]]) -> dict[Variant, dict[str, Any]]:
    """What was chosen, by whom it was chosen for."""
    return {
        (entry["model"], entry["dataset"], entry["scenario"], entry["method"], entry["budget"]): entry["chosen"]
        for entry in entries
    }


def accuracy(folder: Path) -> float | None:
    """A run's accuracy on validation images, of a stream the mean over its chunks; None where it did not finish."""
    record = read_json(folder / "result.json")
    if record is None or record.get("status") != "finished":
        return None
    found = record.get("average_val_accuracy" if record.get("chunks") else "val_accuracy")
    return float(found) if isinstance(found, int | float) else None


def choice(out: Path, group: Group) -> dict[str, Any] | None:
    """The entry of a group whose runs are all over; None where none of them got anywhere."""
    cells = out / RUNS / "cells"
    tried = [[accuracy(cells / cell.cell_id) for cell in trial.cells] for trial in group.trials]
    means = [mean_accuracy(accuracies) for accuracies in tried]
    best = best_trial(group, means)
    if best is None:
        return None
    chosen = group.trials[best].values
    told = [
        {"values": trial.values, "val_accuracy": found, "mean": mean, "cells": [cell.cell_id for cell in trial.cells]}
        for trial, found, mean in zip(group.trials, tried, means, strict=True)
    ]
    entry = _entry(group.own, group, cells) | {"chosen": chosen, "edge": edge_keys(group, chosen)}
    seeds = [cell.seed for cell in group.trials[best].cells]
    whole: dict[str, Any] = plain(entry | {"seeds": seeds, "tried": told})
    return whole


def _chosen(out: Path, group: Group) -> dict[str, Any]:
    entry = choice(out, group)
    if entry is None:
        values = "; ".join(values_text(trial.values) for trial in group.trials)[:300]
        raise UserError(
            f"tuning {_title(dataclasses.asdict(group.own))}: every run failed or diverged ({values}): see their "
            f"result.json in {out / RUNS / 'cells'}, and try other values"
        )
    return entry


def _title(group: Mapping[str, Any]) -> str:
    budget = "" if group["budget"] is None else f" {group['budget']:g}"
    return f"{group['method']}{budget} of {group['model']} on {group['dataset']}, {group['scenario']}"


def _entry(cell: Cell, group: Group, cells: Path) -> dict[str, Any]:
    """Whom a choice is for: the cells like ``cell``, of which those of ``group`` were tried."""
    config = dataclasses.asdict(cell)
    recorded = (read_json(cells / run.cell_id / "config.json") for trial in group.trials for run in trial.cells)
    config |= next(({key: found[key] for key in RESOLVED} for found in recorded if found is not None), {})
    names = ("model", "dataset", "scenario", "method", "budget", "policy")
    return {name: config[name] for name in names} | {"key": group_key(config, group.keys), "keys": list(group.keys)}


def _repeated(
    out: Path, groups: Sequence[Group], planned: Sequence[Cell], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The entries of methods that repeat another's drops and take its values."""
    source_of = {variant(group.own): (group, entry) for group, entry in zip(groups, entries, strict=True)}
    found: dict[Variant, dict[str, Any]] = {}
    for cell in planned:
        if replay_source(cell.method) is None or variant(cell) in found or tuned_like(cell) not in source_of:
            continue
        group, entry = source_of[tuned_like(cell)]
        taken = {"as": entry["method"], **{key: entry[key] for key in ("chosen", "edge", "seeds")}, "tried": []}
        found[variant(cell)] = plain(_entry(cell, group, out / RUNS / "cells") | taken)
    return list(found.values())


def _tell(entry: Mapping[str, Any], note: Callable[[str], None]) -> None:
    if "as" in entry:
        note(f"tuned {_title(entry)}: as {entry['as']}")
        return
    mean = next(trial["mean"] for trial in entry["tried"] if trial["values"] == entry["chosen"])
    lost = sum(value is None for trial in entry["tried"] for value in trial["val_accuracy"])
    broken = f"; {lost} of its runs failed or diverged" if lost else ""
    edge = ", ".join(entry["edge"])
    beyond = f"; {edge} lies at the edge of what was tried: a better one may lie beyond" if edge else ""
    note(
        f"tuned {_title(entry)}: {values_text(entry['chosen'])}, accuracy on validation images {mean:.4f}{broken}{beyond}"
    )
