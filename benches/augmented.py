"""Augmentation and the store: what may be done once layers are gone, each against training less with augmentation.

A cached activation cannot be augmented. What is done instead is an arm. The suite is made first, which declares what it sets
out to show; then every arm into the same folder, with the same seeds and controls, its rate chosen in the same way; then the
suite once more, which has nothing left to run, so that the folder says what was declared.

    python -m benches.augmented SUITE --out OUT --data-root DATA   # makes the runs, goes on where it was stopped
    python -m benches.augmented SUITE --out OUT --report           # the table alone; OUT may be a packed file

SUITE is ``evidence-augment``, small images from scratch, or ``evidence-photographs``, larger ones, fine-tuned, with fewer arms.
Two processes may share OUT. Of the data root ``cifar10-jpeg`` is needed, of the second ``clothing-128`` too (each with
``train`` and ``test``, a folder per class in both).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benches.lab_tables import line
from benches.leads import Overall, Place, Rule, figures, leads_of_all, mean_difference, ranking
from ldbench import load_results
from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError
from ldbench.experiment.files import read_experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.records.results import canonical
from ldbench.reporting.columns import columns
from ldbench.reporting.formatting import spanned
from ldbench.reporting.formatting import speed_up as cheaper
from ldbench.reporting.stats import t_interval
from ldbench.reporting.verdicts import AXES
from ldbench.runner.run_grid import run_experiment
from ldbench.training.interrupts import Interrupted

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
    "maps mirrored": ("paced", {}, {"change_features": ["mirror=0.5"]}),
    "rectangles of maps cut out": ("paced", {}, {"change_features": ["cutout=0.1"]}),
    "channels dropped": ("paced", {}, {"change_features": ["dropout=0.1"]}),
    "channels scaled": ("paced", {}, {"change_features": ["contrast=0.2"]}),
    "stored activations mixed": ("paced", {}, {"change_features": ["mixup=0.5"]}),
}
# Measured, and gone since: they made next to no difference, or harm (commit bf27a8c0 made the runs).
GONE = ("channels dropped", "channels scaled", "stored activations mixed")
# By suite the arms that were run.
SUITES: dict[str, tuple[str, ...]] = {
    "evidence-augment": tuple(ARMS),
    "evidence-photographs": ("augmentation stops", "4 views", "rectangles of maps cut out"),
}


def tables(name: str) -> Iterator[dict[str, Any]]:
    """A suite, an experiment for each of its arms that is no part of it and can still be run, and the suite again."""
    suite = read_experiment(name)
    yield suite
    for arm in SUITES[name]:
        if arm in GONE:
            continue
        method, _, store = ARMS[arm]
        told = options_of(suite, arm)
        if (method, told, store) != (suite["claims"]["method"], options_of(suite, SUITES[name][0]), {}):
            recipe = {key: value for key, value in suite.items() if key != "claims"}
            yield recipe | {"method": ["full", "short", method], "policy": {method: told} if told else {}} | store
    yield suite


def options_of(suite: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The timetable that an arm drops by."""
    return {**suite.get("policy", {}).get(suite["claims"]["method"], {}), **ARMS[arm][1]}


def run(name: str, out: Path, data_root: str | None) -> None:
    """Make what is not there yet."""
    progress = ConsoleProgress(Console(stderr=True), quiet=True)
    for one in tables(name):
        run_experiment(
            experiment_from_dict(one | ({} if data_root is None else {"data_root": data_root})), out, progress
        )


def table(name: str, cells: pd.DataFrame) -> list[str]:
    """The Markdown table of all arms, over each network and over all."""
    head = [
        "what is done", "network", "n", "points to full", "points to the same drops with augmentation throughout",
        "FLOPs ÷ full", "time ÷ full", "points ahead of training less", "further ahead than if augmentation stops",
        "times cheaper at equal accuracy, by FLOPs", "by time", "store, MB", "building it, % of the time",
    ]  # fmt: skip
    lines, suite = [line(head), line(["---"] * len(head))], read_experiment(name)
    networks = sorted(cells["model"].unique())
    parts = {model: cells[cells["model"] == model] for model in networks}
    parts |= {"all": cells} if len(networks) > 1 else {}
    found = {model: _Part.of(some) for model, some in parts.items()}
    for arm in SUITES[name]:
        options = canonical(options_of(suite, arm))
        rule = ARMS[arm][0], canonical(options_of(suite, arm) | ARMS[arm][2])
        for model, part in found.items():
            if rule in part.rules:
                lines.append(line([arm + " (gone since)" * (arm in GONE), model, *part.row(rule, options)]))
    return lines


@dataclass(frozen=True)
class _Part:
    """The runs of one network, or of all.

    Attributes:
        points: by rule what its runs reached, in percent.
        ahead: by rule how many points its runs are ahead of training less, by FLOPs.
    """

    cells: pd.DataFrame
    rules: Mapping[Rule, Overall]
    points: Mapping[Rule, Mapping[Place, float]]
    ahead: Mapping[Rule, Mapping[Place, float]]

    @classmethod
    def of(cls, cells: pd.DataFrame) -> _Part:
        points: dict[Rule, dict[Place, float]] = defaultdict(dict)
        for run in cells.itertuples():
            place = Place(str(run.model), str(run.dataset), str(run.scenario), int(run.seed))
            points[str(run.method), str(run.policy)][place] = 100 * float(run.test_accuracy)
        rules = {(one.method, one.policy): one for one in ranking(cells)}
        return cls(cells, rules, points, leads_of_all(cells, "flops"))

    def row(self, rule: Rule, options: str) -> list[str]:
        """A rule's figures, beside what drops by the same timetable and augments to the end, or not at all any more."""
        one = self.rules[rule]
        lead = t_interval(100 * float(lead) for lead in one.leads["flops"].differences)
        row = figures(one) | columns("lead", lead)
        texts = [str(len(one.leads["flops"].seeds)), spanned(row, "to_full")]
        texts += [_difference(self.points, rule, ("paced+freeze", options))]
        texts += [spanned(row, f"share_{axis}", "") for axis in AXES]
        texts += [spanned(row, "lead"), _difference(self.ahead, rule, ("paced", options))]
        texts += [cheaper(row, axis) for axis in AXES]
        runs = self.cells[(self.cells["method"] == one.method) & (self.cells["policy"] == one.policy)]
        building = (runs["cache_build_seconds"] / runs["train_seconds"]).mean()
        return [*texts, f"{runs['store_bytes'].mean() / 1e6:.0f}", f"{100 * building:.1f}"]


def _difference(of: Mapping[Rule, Mapping[Place, float]], rule: Rule, other: Rule) -> str:
    if rule == other or other not in of:
        return "-"
    return spanned(columns("by", mean_difference(of[rule], of[other])), "by")


def main(arguments: list[str] | None = None) -> int:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted(SUITES), help="what is run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, or with --report a packed file")
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    if not options.report:
        try:
            run(options.suite, options.out, options.data_root)
        except Interrupted as stop:
            print(f"{stop}; the same command goes on", file=sys.stderr)
            return stop.exit_code
        except UserError as error:
            parser.error(str(error))
    try:
        cells = load_results(options.out)
    except UserError as error:
        parser.error(str(error))
    print("\n".join(table(options.suite, cells[cells["status"] == "finished"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
