"""Do scores decide better than a timetable? Every rule that goes by a score, against the timetable fitted to its own drops.

A rule is run over networks, data sets, recipes and seeds. From where it dropped each stage the mean share of the run is
taken, network by network, over all of these: that is the timetable which drops as much, as late, at the same cost in the
mean, and knows nothing of a run. ``schedule`` runs it with the same seeds. What is left between the two is what the rule
gains by looking: the difference of their leads over training less, each at its own cost, seed by seed.

    python -m benches.matched --out OUT --data-root DATA              # makes the runs, goes on where it was stopped
    python -m benches.matched --out OUT --report                      # the table alone

Two processes may share OUT. Of the data root Fashion-MNIST is needed, and ``cifar10-jpeg`` (``train`` and ``test``, a folder
per class each). The runs of OUT can be packed into text files (``ldbench pack``), which ``--report`` reads as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from benches.leads import Place, leads_of_all
from ldbench import load_results
from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.config import Cell, Experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import write_sealed
from ldbench.records.cell_files import open_results
from ldbench.reporting.stats import Estimate, t_interval
from ldbench.runner.cell_runs import CellRuns
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.training.interrupts import StopRequest

# What each rule's score is; learn-and-drop without its pace, which would be a timetable itself.
RULES: dict[str, tuple[str, dict[str, Any], str]] = {
    "learn-and-drop": ("learn-and-drop", {"pace": 1000.0, "earliest": 0.1}, "movement and directness of parameters"),
    "autofreeze": ("autofreeze+store", {}, "change of the summed gradient"),
    "egeria": ("egeria+store", {}, "plasticity: similarity of activations to a recent snapshot's"),
    "simfreeze": ("simfreeze+store", {}, "CKA of activations with the initial network's"),
}
_COLOUR = "cifar10-jpeg=folder:cifar10-jpeg"
# Narrow networks that one core trains in seconds. Recipes of different length, difficulty and beginning, where one
# timetable has to be wrong somewhere. Nothing was chosen on these seeds, and nothing is chosen by them.
COMMON: dict[str, Any] = {
    "batch_size": 64, "train_size": 2000, "threads": 1, "eval_every": "last", "lr": 0.025,
    "seeds": [300, 301, 302, 303, 304], "method": ["full", "short"],
}  # fmt: skip
NETWORKS = {"vgg11_bn": 0.1875, "resnet18": 0.125}
RECIPES: dict[str, dict[str, Any]] = {
    "grey-6": {"dataset": ["fashion-mnist[5-9]"], "epochs": 6},
    "grey-16": {"dataset": ["fashion-mnist[5-9]"], "epochs": 16},
    "colour-tuned-8": {
        "dataset": [f"{_COLOUR}[5-9]"], "epochs": 8, "scenario": ["fine-tune"],
        "pretrain_dataset": f"{_COLOUR}[0-4]", "pretrain_epochs": 8, "pretrain_size": 5000,
    },
}  # fmt: skip


def experiment(model: str, recipe: str, data_root: str | None, **changes: Any) -> Experiment:
    """The experiment of one network and recipe."""
    table = COMMON | RECIPES[recipe] | {"model": [model], "width": NETWORKS[model], "data_root": data_root} | changes
    return experiment_from_dict({key: value for key, value in table.items() if value is not None})


def run(out: Path, asked: Sequence[Experiment]) -> None:
    """The cells of some experiments over the same data, in one folder."""
    open_results(out)
    write_sealed(out / "experiment.json", asked[0].to_dict() | {"data_root": None})
    progress, stop = ConsoleProgress(Console(stderr=True), quiet=True), StopRequest()
    cells: dict[str, Cell] = {cell.cell_id: cell for one in asked for cell in plan(one)}
    with stop.listening():
        preparation = Preparation(asked[0], out, torch.device("cpu"), progress.note)
        CellRuns(out, sorted(cells.values(), key=lambda cell: cell.seed), preparation, progress, stop).all_cells()


def policies(rule: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What an experiment has to say of a rule alone."""
    return {"method": [rule], "policy": {rule: dict(options)} if options else {}}


def timetable(runs: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """For each stage that was ever dropped the mean share of the run after which it left, 1 where it stayed: the pairs
    (share, stages gone) that ``schedule`` takes.
    """
    leaves: dict[int, list[float]] = defaultdict(list)
    known = list(runs)
    most = max((drop["cut"] for run in known for drop in run["drops"]), default=0)
    for run in known:
        for stage in range(most):
            gone = (drop["step"] / run["steps"] for drop in run["drops"] if drop["cut"] > stage)
            leaves[stage].append(min(gone, default=1.0))
    mean = [float(np.mean(leaves[stage])) for stage in range(most)]
    # Several stages often leave together; of those with one time the last one counts.
    return [[round(at, 4), stage + 1] for stage, at in enumerate(mean) if stage + 1 == most or mean[stage + 1] > at]


def cells_of(out: Path, model: str, recipe: str) -> pd.DataFrame | None:
    """The finished cells of a network and recipe, from a folder or a packed file."""
    for place in (out / f"{model}-{recipe}", out / f"{model}-{recipe}.jsonl"):
        if place.exists():
            frame = load_results(place)
            return frame[frame["status"] == "finished"]
    return None


def fitted(out: Path, model: str, rule: str) -> list[list[float]]:
    """The timetable of a rule on a network."""
    method, options, _ = RULES[rule]
    wanted = json.dumps(options, sort_keys=True)
    runs: list[Mapping[str, Any]] = []
    for recipe in RECIPES:
        frame = cells_of(out, model, recipe)
        if frame is not None:
            some = frame[(frame["method"] == method) & (frame["policy"].map(_plain) == wanted)]
            runs += some[["drops", "steps"]].to_dict("records")
    return timetable(runs)


def _plain(policy: str) -> str:
    return json.dumps(json.loads(policy), sort_keys=True)


def make(out: Path, data_root: str | None, models: Sequence[str]) -> None:
    """All runs: controls and rules, then the timetables fitted to them."""
    for model in models:
        for recipe in RECIPES:
            asked = [experiment(model, recipe, data_root)]
            asked += [experiment(model, recipe, data_root, **policies(*RULES[rule][:2])) for rule in RULES]
            run(out / f"{model}-{recipe}", asked)
        for recipe in RECIPES:
            tables = [fitted(out, model, rule) for rule in RULES]
            matched = [
                experiment(model, recipe, data_root, **policies("schedule", {"drops": drops}))
                for drops in tables
                if drops and drops[0][0] < 1
            ]
            run(out / f"{model}-{recipe}", [experiment(model, recipe, data_root), *matched])


def differences(out: Path, rule: str, axis: str) -> tuple[dict[str, Estimate], dict[str, tuple[float, float]]]:
    """By network, and for "both", how much further ahead the rule is than its timetable, in points, the mean over the
    recipes of a seed; and what share of full training's cost each took.
    """
    method, options, _ = RULES[rule]
    ours, by_seed = (method, json.dumps(options, sort_keys=True)), dict[str, dict[int, list[float]]]()
    shares: dict[str, tuple[float, float]] = {}
    for model in NETWORKS:
        drops = fitted(out, model, rule)
        theirs = ("schedule", json.dumps({"drops": drops}, sort_keys=True))
        costs: dict[tuple[str, str], list[float]] = defaultdict(list)
        for recipe in RECIPES:
            frame = cells_of(out, model, recipe)
            found = {} if frame is None else leads_of_all(frame, axis)
            named = {(name, _plain(policy)): runs for (name, policy), runs in found.items()}
            if ours not in named or theirs not in named:
                continue
            for place in named[ours].keys() & named[theirs].keys():
                gained = named[ours][place] - named[theirs][place]
                by_seed.setdefault(model, defaultdict(list))[place.seed].append(gained)
            for one in (ours, theirs):
                costs[one] += shares_of(frame, *one, named[one])
        if costs:
            shares[model] = float(np.mean(costs[ours])), float(np.mean(costs[theirs]))
    estimates = {
        model: t_interval(float(np.mean(some)) for some in seeds.values() if len(some) == len(RECIPES))
        for model, seeds in by_seed.items()
    }
    every = [
        float(np.mean([np.mean(seeds[seed]) for seeds in by_seed.values()]))
        for seed in sorted(set.intersection(*(set(seeds) for seeds in by_seed.values())))
    ] if len(by_seed) == len(NETWORKS) else []  # fmt: skip
    return estimates | ({"both": t_interval(every)} if len(every) > 1 else {}), shares


def shares_of(frame: pd.DataFrame | None, method: str, policy: str, places: Mapping[Place, float]) -> list[float]:
    """What share of full training's FLOPs the runs of a method took, seed by seed."""
    assert frame is not None, "it has leads"
    cost = frame["forward_flops"] + frame["backward_flops"]
    full = cost[frame["method"] == "full"].mean()
    mine = (frame["method"] == method) & (frame["policy"].map(_plain) == policy)
    return [float(value) / float(full) for value in cost[mine & frame["seed"].isin({place.seed for place in places})]]


def table(out: Path) -> list[str]:
    """The Markdown table of what rules gain by looking."""
    lines = [
        "| score | network | gain over its timetable, points by FLOPs | n | cost of the rule | of the timetable |",
        "|---|---|---|---|---|---|",
    ]
    for rule, (_, _, score) in RULES.items():
        found, shares = differences(out, rule, "flops")
        for place, it in found.items():
            ours, theirs = (f"{100 * share:.0f} %" for share in shares[place]) if place in shares else ("", "")
            lines.append(
                f"| {rule}: {score} | {place} | {it.mean:+.2f} [{it.low:+.2f}, {it.high:+.2f}] | {it.n} | {ours} | {theirs} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs, one of results for each network and recipe"
    )
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--model", action="append", choices=sorted(NETWORKS), help="only this network")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    if not options.report:
        make(options.out, options.data_root, options.model or list(NETWORKS))
    print("\n".join(table(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
