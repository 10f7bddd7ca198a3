"""From records to the figures of one comparison: what is averaged, which run stands for its kind, the captions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldbench.errors import clean
from ldbench.io.checksums import Damaged
from ldbench.records.results import bounded, read_lines, read_object
from ldbench.records.stored import Place
from ldbench.reporting.comparisons import Record, comparison_title, total_flops, variant
from ldbench.reporting.formatting import FLOPS_UNITS
from ldbench.reporting.markup import Html, picture
from ldbench.reporting.plots import Bar, Curve, Point, breakdown_figure, cost_figure, score_figure, stages_figure
from ldbench.reporting.tradeoff import COST_AXES

CURVE_SEEDS = 8  # seeds whose epochs are read per method: enough for a band, cheap for a large experiment
MOST_CHECKS = 240  # columns of a heatmap; more would be finer than the page shows


def comparison_figures(
    place: Place, rows: Sequence[Record], cells: Sequence[Record], detailed: bool = True
) -> list[Html]:
    """The figures of one comparison: accuracy against cost, and where ``detailed`` what happened on the way.

    ``rows``: the comparison's summary, ``cells``: its runs, ``place``: the results.
    """
    by_label: dict[str, list[Record]] = defaultdict(list)
    labels = {variant(row): str(row["label"]) for row in rows}
    for cell in cells:
        if cell["status"] == "finished":
            by_label[labels[variant(cell)]].append(cell)
    shown = [row for row in rows if by_label[str(row["label"])]]
    name = clean(comparison_title(rows[0]))
    candidates = [_cost(shown, by_label, name)]
    if detailed:
        candidates += [_stages(place, shown, by_label, name), _breakdown(shown, name)]
        candidates += [_scores(place, by_label, name)]
    return [figure for figure in candidates if figure is not None]


def _cost(rows: Sequence[Record], by_label: Mapping[str, Sequence[Record]], name: str) -> Html | None:
    counts = "average_accuracy" if rows and rows[0]["streamed"] else "test_accuracy"
    rows = [row for row in rows if row[f"{counts}_percent_n"] and row["total_flops_n"] and row["train_seconds_n"]]
    if not rows:
        return None
    most = max(float(row["total_flops_mean"]) for row in rows)
    unit, unit_name = next(((size, text) for size, text in FLOPS_UNITS if most >= size), FLOPS_UNITS[-1])
    hours = max(float(row["train_seconds_mean"]) for row in rows) >= 7200
    clock, clock_name = (3600.0, "h") if hours else (1.0, "s")
    panels = {
        f"total training FLOPs ({unit_name})": ("total_flops", unit),
        f"training time ({clock_name})": ("train_seconds", clock),
    }
    if all(row["energy_joules_n"] for row in rows):
        heavy = max(float(row["energy_joules_mean"]) for row in rows) >= 2e4
        panels[f"training energy ({'kJ' if heavy else 'J'})"] = ("energy_joules", 1e3 if heavy else 1.0)
    drawn, axis_of = {}, {column: axis for axis, column in COST_AXES.items()}
    for title, (column, scale) in panels.items():
        points = []
        for row in rows:
            runs = [(_price(cell, column) / scale, 100 * cell[counts]) for cell in by_label[row["label"]]]
            runs = [run for run in runs if all(map(math.isfinite, run))]
            x, y = _interval(row, column, scale), _interval(row, f"{counts}_percent", 1.0)
            front = axis_of[column] in row["pareto"].split("; ")
            points.append(Point(row["label"], row["verdict"] == "control", x, y, runs, front))
        drawn[title] = points
    caption = (
        "Accuracy (of a stream its mean over the chunks) against what training cost, by FLOPs, by time and, where "
        "metered, by energy. Squares: the two controls, shortened training at each budget and full training, joined to "
        "the frontier. A method earns its keep only above the line in every panel. Rings: the Pareto front, rows that "
        "no other matches in mean accuracy for less. Bars: 95 % intervals (they may run off the axes where seeds are "
        "few); dots: single runs, where they are few."
    )
    what = "accuracy %" if counts == "test_accuracy" else "mean accuracy over the chunks, %"
    figures = [cost_figure(title, points, what) for title, points in drawn.items()]
    return picture(figures, f"accuracy against cost, {name}", caption, "wide")


def _price(cell: Record, column: str) -> float:
    return total_flops(cell) if column == "total_flops" else float(cell[column])


def _interval(row: Record, name: str, scale: float) -> tuple[float, float, float]:
    mean, low, high = (float(row[f"{name}_{part}"]) / scale for part in ("mean", "low", "high"))
    return mean, low, high


def _stages(place: Place, rows: Sequence[Record], by_label: Mapping[str, Sequence[Record]], name: str) -> Html | None:
    curves: dict[str, Curve] = {}
    methods = [str(row["label"]) for row in rows if row["verdict"] != "control"]
    for label in methods:
        cells = by_label[label]
        if not any(cell["dropped_stages"] > 0 for cell in cells):
            continue
        live: dict[int, list[float]] = defaultdict(list)
        for cell in cells[:CURVE_SEEDS]:
            for line in read_lines(place, f"cells/{cell['cell']}/epochs.jsonl"):
                epoch, stages = bounded(line.get("epoch")), bounded(line.get("live_stages"))
                if math.isfinite(epoch) and math.isfinite(stages):
                    live[int(epoch)].append(stages)
        if live:
            epochs = sorted(live)
            values = [live[epoch] for epoch in epochs]
            curves[label] = (
                epochs,
                [sum(v) / len(v) for v in values],
                [min(v) for v in values],
                [max(v) for v in values],
            )
    if not curves:
        return None
    most = int(max(cell["stage_count"] for cells in by_label.values() for cell in cells))
    some = f" The first {CURVE_SEEDS} seeds are shown." if max(map(len, by_label.values())) > CURVE_SEEDS else ""
    caption = (
        f"Stages still in the training network after each epoch: mean over seeds, band from smallest to largest.{some}"
    )
    return picture([stages_figure(curves, most, methods)], f"live stages over epochs, {name}", caption, "half")


def _breakdown(rows: Sequence[Record], name: str) -> Html | None:
    bars = []
    for row in rows:
        build, scoring, total = (
            _zero(row[f"{key}_mean"]) for key in ("cache_build_seconds", "scoring_seconds", "train_seconds")
        )
        parts = {"training steps": max(0.0, total - build - scoring), "store building": build, "scoring": scoring}
        apart = sum(_zero(row[f"{key}_seconds_mean"]) for key in ("data", "compile", "cost_table"))
        bars.append(
            Bar(
                str(row["label"]),
                parts,
                {"evaluation": _zero(row["eval_seconds_mean"]), "data, compile, cost table": apart},
            )
        )
    if not bars:
        return None
    caption = (
        "Mean seconds per run. The thick bars are the training time of the tables. Hatched beneath: timed apart and "
        "not part of it. Data preparation and cost table are paid once and shared by the runs of an experiment."
    )
    return picture([breakdown_figure(bars)], f"cost breakdown, {name}", caption, "half")


def _zero(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0


def _scores(place: Place, by_label: Mapping[str, Sequence[Record]], name: str) -> Html | None:
    """Heatmaps of one cell: the lowest seed with scores, of learn-and-drop where there is one."""
    cells = [(label, cell) for label, group in by_label.items() for cell in group]
    for label, cell in sorted(cells, key=lambda c: (c[1]["method"] != "learn-and-drop", c[1]["seed"], c[0])):
        folder = f"cells/{cell['cell']}"
        checks = [
            line
            for line in read_lines(place, f"{folder}/scores.jsonl")
            if math.isfinite(bounded(line.get("step"))) and "change" in line
        ]
        if len(checks) < 2:
            continue
        try:
            stages = read_object(place, f"{folder}/result.json").get("stages")
        except Damaged:
            continue
        names = (
            [clean(stage.get("name", "?")) for stage in stages if isinstance(stage, dict)]
            if isinstance(stages, list)
            else []
        )
        every = max(1, math.ceil(len(checks) / MOST_CHECKS))
        checks = checks[::every]
        if not names or len(checks) < 2:
            continue
        change, ahead = (
            np.array([_levels(line.get(key), len(names)) for line in checks]) for key in ("change", "continuation")
        )
        thinned = f" Every {every}th check is shown." if every > 1 else ""
        caption = (
            f"Scores of one run ({label}, seed {cell['seed']}), first stage on top. Grey: dropped, or too early for a "
            f"score. Layer change: relative movement since the last check per unit of learning rate. Continuation: "
            f"how directly the stage still moves (1: straight on, 0: a random walk).{thinned}"
        )
        steps = [int(line["step"]) for line in checks]
        figures = [score_figure("layer change (logarithmic)", names, steps, change, logarithmic=True)]
        figures.append(score_figure("continuation", names, steps, ahead, logarithmic=False))
        return picture(figures, f"scores per stage, {name}", caption, "wide")
    return None


def _levels(values: Any, count: int) -> NDArray[np.float64]:
    listed = values if isinstance(values, list) and len(values) == count else [None] * count
    return np.array([bounded(value) for value in listed], dtype=np.float64)
