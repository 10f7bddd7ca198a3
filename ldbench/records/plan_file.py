"""Answers "is this whole experiment finished?" without torch, so that a finished grid is skipped in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ldbench.experiment.config import Experiment
from ldbench.experiment.scenarios import init_identity
from ldbench.io.checksums import plain, write_sealed
from ldbench.records.cell_files import finished, read_json
from ldbench.records.integrity import cell_problems
from ldbench.records.tuning import RUNS, read_tuning

PLAN = "plan.json"


@dataclass(frozen=True)
class Outcome:
    """Counts over the cells of a run. ``skipped`` were finished before, ``elsewhere`` by another process meanwhile;
    ``tuning`` counts the runs that tried values, which are no cells of the experiment.
    """

    finished: int = 0
    skipped: int = 0
    diverged: int = 0
    failed: int = 0
    elsewhere: int = 0
    tuning: int = 0


def _key(experiment: Experiment) -> dict[str, Any]:
    """What decides the cells of a plan: the experiment, the weights it begins with, and the default recipes."""
    recipes = (resources.files("ldbench.models") / "recipes.py").read_bytes()
    init = init_identity(experiment.init)
    of_models = {model: experiment.options_for(model) for model in experiment.model}  # the order of its patterns counts
    told = {"experiment": experiment.to_dict(), "for_model": of_models, "init": init}
    whole: dict[str, Any] = plain(told | {"recipes": hashlib.sha256(recipes).hexdigest()})
    return whole


def write_plan(
    out: Path,
    experiment: Experiment,
    cell_ids: Sequence[str],
    tuning_ids: Sequence[str] = (),
    groups: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Note the cells of an experiment, the runs that tuned it, and what the ``groups`` chose. Raises ``OSError``."""
    chosen = {group["key"]: group["chosen"] for group in groups}
    write_sealed(out / PLAN, _key(experiment) | {"cells": list(cell_ids), "tuning": list(tuning_ids), "chosen": chosen})


def all_finished(out: Path, experiment: Experiment) -> int | None:
    """How many cells the experiment has, when every one of them is finished and undamaged in ``out``, and so is all
    that its values were chosen by; else None.
    """
    noted = read_json(out / PLAN)
    if noted is None or any(noted.get(key) != value for key, value in _key(experiment).items()):
        return None
    chosen = noted.get("chosen", {})
    if chosen:
        found = {group["key"]: group["chosen"] for group in read_tuning(out)}
        if any(found.get(key) != values for key, values in chosen.items()):
            return None
    folders = [out / "cells" / name for name in noted["cells"]]
    for folder in (*folders, *(out / RUNS / "cells" / name for name in noted.get("tuning", []))):
        if not finished(folder) or next(cell_problems(folder, tensors=False), None) is not None:
            return None
    return len(folders)
