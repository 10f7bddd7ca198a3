"""Augmentation and the store: what may be done once layers are gone, each against training less with augmentation.

A cached activation cannot be augmented. What is done instead is an arm. The suite is made first, which declares what it sets
out to show; then every arm into the same folder, with the same seeds and controls, its rate chosen in the same way; then the
suite once more, which has nothing left to run, so that the folder says what was declared.

    python -m benches.augmented --out OUT --data-root DATA      # makes the runs, goes on where it was stopped
    python -m benches.augmented --out OUT --report              # the table alone; OUT may be a packed file

Two processes may share OUT. Of the data root ``cifar10-jpeg`` is needed (``train`` and ``test``, a folder per class each).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benches.lab_tables import line
from benches.leads import Overall, ranking
from ldbench import load_results
from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.files import read_experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.records.results import canonical
from ldbench.reporting.columns import columns, speed_columns
from ldbench.reporting.comparisons import Record
from ldbench.reporting.formatting import spanned
from ldbench.reporting.formatting import speed_up as cheaper
from ldbench.reporting.stats import Estimate, t_interval
from ldbench.reporting.verdicts import AXES
from ldbench.runner.run_grid import run_experiment
from ldbench.training.interrupts import Interrupted

SUITE = "evidence-augment"
_MAPS = ["mirror=0.5", "shift=0.125"]  # the recipe's flips and crops, made to stored maps
# What is done, in words -> the method, its options beside the suite's, and what the store is to hold.
ARMS: dict[str, tuple[str, dict[str, float], dict[str, Any]]] = {
    "augmentation stops": ("paced", {}, {}),
    "2 views": ("paced", {}, {"cache_views": 2}),
    "4 views": ("paced", {}, {"cache_views": 4}),
    "8 views": ("paced", {}, {"cache_views": 8}),
    "2 views, a tenth made anew every epoch": ("paced", {}, {"cache_views": 2, "refresh_views": 0.1}),
    "maps mirrored and shifted": ("paced", {}, {"change_features": _MAPS}),
    "begun earlier": ("paced", {"earliest": 0.2}, {}),
    "begun earlier, 4 views": ("paced", {"earliest": 0.2}, {"cache_views": 4}),
    "begun earlier, maps mirrored and shifted": ("paced", {"earliest": 0.2}, {"change_features": _MAPS}),
    "begun later, all but the head at once": ("paced", {"earliest": 0.5, "pace": 2.0}, {}),
    "no store, augmentation throughout": ("paced+freeze", {}, {}),
}


def tables() -> Iterator[dict[str, Any]]:
    """The suite, an experiment for each arm that is no part of it, and the suite again."""
    suite = read_experiment(SUITE)
    yield suite
    for arm, (method, _, store) in ARMS.items():
        told = options_of(suite, arm)
        if (method, told, store) != (suite["claims"]["method"], options_of(suite, next(iter(ARMS))), {}):
            recipe = {key: value for key, value in suite.items() if key != "claims"}
            yield recipe | {"method": ["full", "short", method], "policy": {method: told} if told else {}} | store
    yield suite


def options_of(suite: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The timetable that an arm drops by."""
    return {**suite.get("policy", {}).get(suite["claims"]["method"], {}), **ARMS[arm][1]}


def run(out: Path, data_root: str | None) -> None:
    """Make what is not there yet."""
    progress = ConsoleProgress(Console(stderr=True), quiet=True)
    for one in tables():
        run_experiment(
            experiment_from_dict(one | ({} if data_root is None else {"data_root": data_root})), out, progress
        )


def table(cells: pd.DataFrame) -> list[str]:
    """The Markdown table of all arms, over each network and over all."""
    head = [
        "what is done", "network", "n", "points to full", "FLOPs ÷ full", "time ÷ full", "points ahead of training less",
        "times cheaper at equal accuracy, by FLOPs", "by time", "store, MB", "building it, % of the time",
    ]  # fmt: skip
    lines, suite = [line(head), line(["---"] * len(head))], read_experiment(SUITE)
    networks = sorted(cells["model"].unique())
    parts = {name: cells[cells["model"] == name] for name in networks} | ({"all": cells} if len(networks) > 1 else {})
    found = {name: {(one.method, _plain(one.policy)): one for one in ranking(some)} for name, some in parts.items()}
    for arm in ARMS:
        method, policy = ARMS[arm][0], canonical(options_of(suite, arm) | ARMS[arm][2])
        for name, rules in found.items():
            if (method, policy) in rules:
                lines.append(line([arm, name, *_row(rules[method, policy], parts[name])]))
    return lines


def _row(one: Overall, cells: pd.DataFrame) -> list[str]:
    row: Record = columns("to_full", one.to_full) | columns("lead", _points(one))
    for axis in AXES:
        row |= columns(f"share_{axis}", one.share[axis]) | speed_columns(f"speed_up_{axis}", one.speed_ups[axis])
    texts = [str(len(one.leads["flops"].seeds)), spanned(row, "to_full")]
    texts += [spanned(row, f"share_{axis}", "") for axis in AXES]
    texts += [spanned(row, "lead"), *(cheaper(row, axis) for axis in AXES)]
    runs = cells[(cells["method"] == one.method) & (cells["policy"].map(_plain) == _plain(one.policy))]
    building = (runs["cache_build_seconds"] / runs["train_seconds"]).mean()
    return [*texts, f"{runs['store_bytes'].mean() / 1e6:.0f}", f"{100 * building:.1f}"]


def _points(one: Overall) -> Estimate:
    return t_interval(float(lead) for lead in one.leads["flops"].differences).scaled(100)


def _plain(policy: str) -> str:
    return canonical(json.loads(policy))


def main(arguments: list[str] | None = None) -> int:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, or with --report a packed file")
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    if not options.report:
        try:
            run(options.out, options.data_root)
        except Interrupted as stop:
            print(f"{stop}; the same command goes on", file=sys.stderr)
            return 130
    cells = load_results(options.out)
    print("\n".join(table(cells[cells["status"] == "finished"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
