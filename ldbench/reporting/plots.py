"""The report's figures as SVG text: drawn through matplotlib's objects, without pyplot and its global state.

Colours are Okabe and Ito's, told apart by colour-blind readers; every method has a marker of its own besides. Axes are
placed by hand, since automatic layout costs more than drawing and a large experiment has hundreds of them.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ldbench.errors import clean
from ldbench.policies.registry import shortened_methods

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = "oDv^PX*<>hp"
DASHES: tuple[Any, ...] = ("-", (0, (5, 3)), (0, (2, 2)), (0, (7, 2, 2, 2)))
STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.titley": 1.02, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8.5, "svg.hashsalt": "ldbench", "svg.fonttype": "path",
}  # fmt: skip
CONTROL = "#555555"
FRONTIER, FRONT = "frontier of training less", "Pareto front"
MOST_DOTS = 150  # single runs drawn in a panel; beyond, the intervals say it all
Scores = NDArray[np.float64]
Curve = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]


class Point(NamedTuple):
    """A mean with its interval on both axes (NaN where there is none), the single runs behind it, and whether it is on
    the Pareto front. ``label`` begins with the method."""

    label: str
    control: bool
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    runs: Sequence[tuple[float, float]]
    front: bool = False


class Bar(NamedTuple):
    """Mean seconds of one method: the parts of its training, and what was timed beside it."""

    label: str
    parts: Mapping[str, float]
    beside: Mapping[str, float]


class Saving(NamedTuple):
    """Percent saved of a network of so many layers: the mean and its interval (NaN where there is none)."""

    layers: int
    mean: float
    low: float
    high: float


def plain(text: str, width: int = 60) -> str:
    """A name for a figure: harmless, short, and with no mathematics in its dollar signs."""
    return textwrap.shorten(clean(text), width, placeholder="…").replace("$", r"\$") or "…"


def render(figure: Figure) -> str:
    """The figure as SVG; equal figures give equal text."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def cost_figure(title: str, points: Sequence[Point], accuracy: str = "accuracy %") -> str:
    """Accuracy (percent) against the cost in ``title``: methods with error bars, each frontier as a line."""
    with rc_context(STYLE):
        methods = [point.label for point in points if not point.control]
        axes = _canvas(2.55, [*_frontiers(points), FRONT, *methods])
        _cost_panel(axes, points, _styles(methods))
        axes.set_xlabel(title)
        axes.set_title(accuracy, loc="left")
        return _finished(axes)


def cost_grid(panels: Mapping[str, Sequence[Point]], title: str, columns: int = 2) -> str:
    """Several comparisons beside each other, each a panel with its name; ``title`` heads all cost axes.

    Each shows the accuracies around its methods: controls far below them lie outside.
    """
    width, height, top, foot = 4.6, 2.3, 0.4, 0.55
    rows = math.ceil(len(panels) / columns)
    labels = dict.fromkeys(point.label for points in panels.values() for point in points if not point.control)
    with rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * (height + top + foot) + 0.4))
        whole = figure.get_figheight()
        shown: dict[str, Any] = {}
        for place, (name, points) in enumerate(panels.items()):
            row, column = divmod(place, columns)
            bottom = whole - (row + 1) * (height + top + foot) + foot
            spot = ((column + 0.14) / columns, bottom / whole, 0.83 / columns, height / whole)
            axes = figure.add_axes(spot)
            _cost_panel(axes, points, _styles(labels))
            axes.set_title(plain(name), loc="left")
            axes.set(xlabel=title, ylabel="accuracy %")
            inside = [point.y[0] for point in points if not point.control] or [point.y[0] for point in points]
            axes.set_ylim(min(inside) - 2.0, max(point.y[0] for point in points) + 0.6)
            shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        shown.pop(FRONT, None)
        figure.legend(list(shown.values()), list(shown), loc="lower center", ncols=min(6, len(shown)), handlelength=1.6)
        return render(figure)


def _frontiers(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The controls by their way of training less, cheapest first, full training at the end of each."""
    controls = sorted((p for p in points if p.control), key=lambda p: p.x[0])
    early = [p for p in controls if p.label.split(" ")[0] in shortened_methods("early")]
    even = [p for p in controls if p not in early]
    found = {FRONTIER: even} if len(even) > 1 else {}
    return found | ({f"{FRONTIER}, early": early + [p for p in even if p.label == "full"]} if early else {})


def _cost_panel(axes: Axes, points: Sequence[Point], styles: Mapping[str, tuple[str, str]]) -> None:
    controls = sorted((p for p in points if p.control), key=lambda p: p.x[0])
    for (name, line), dashes in zip(_frontiers(points).items(), ("-", "--"), strict=False):
        axes.plot([p.x[0] for p in line], [p.y[0] for p in line], dashes, color=CONTROL, lw=1.4, label=name)
    colours = [CONTROL if point.control else styles[point.label][0] for point in points]
    dots = [(*run, colour) for point, colour in zip(points, colours, strict=True) for run in point.runs]
    if len(dots) <= MOST_DOTS:
        axes.scatter([dot[0] for dot in dots], [dot[1] for dot in dots], 9, [dot[2] for dot in dots], alpha=0.4, lw=0)
    for group in ([point] for point in points if not point.control):
        _errorbars(axes, group, *styles[group[0].label], plain(group[0].label))
    _errorbars(axes, controls, CONTROL, "s", "_")
    for point in controls:
        method, _, budget = point.label.partition(" ")
        name = plain(budget if method in shortened_methods() else point.label, 12)
        _annotate(axes, point, name, (-6, 6), ha="right", color=CONTROL, annotation_clip=True)
    _ring(axes, [point for point in points if point.front])
    # Intervals of few seeds are huge: they may run off the axes, so that the runs stay readable.
    spread = np.array([run for p in points for run in p.runs] + [(p.x[0], p.y[0]) for p in points])
    (left, low), (right, high) = spread.min(axis=0), spread.max(axis=0)
    wide, room = max(0.12 * (right - left), 0.02 * right, 1e-9), max(0.25 * (high - low), 0.5)
    axes.set(xlim=(left - wide, right + wide), ylim=(low - room, high + room))
    axes.locator_params(nbins=6)


def _ring(axes: Axes, front: Sequence[Point]) -> None:
    """Rings around the points of the Pareto front, the methods among them by name."""
    x, y = [point.x[0] for point in front], [point.y[0] for point in front]
    axes.plot(x, y, "o", ms=12.5, mfc="none", mec="black", mew=1.1, zorder=4, label=FRONT)
    for point in front:
        if not point.control:
            _annotate(axes, point, plain(point.label, 28), (0, 10), ha="center", zorder=5)


def _annotate(axes: Axes, point: Point, text: str, points_off: tuple[int, int], **style: Any) -> None:
    axes.annotate(text, (point.x[0], point.y[0]), points_off, textcoords="offset points", fontsize=8, **style)


def _errorbars(axes: Axes, points: Sequence[Point], colour: str, marker: str, label: str) -> None:
    x, y = (np.array([point[axis] for point in points]).reshape(-1, 3).T for axis in (2, 3))
    x_error, y_error = (np.array([mean - low, high - mean]) for mean, low, high in (x, y))
    style: dict[str, Any] = {"marker": marker, "ms": 6.5, "mec": "white", "mew": 0.7, "elinewidth": 1.3, "ls": ""}
    axes.errorbar(x[0], y[0], xerr=x_error, yerr=y_error, color=colour, zorder=3, label=label, **style)


def stages_figure(curves: Mapping[str, Curve], stages: int, methods: Sequence[str]) -> str:
    """Live stages over epochs: per method (epoch, mean, smallest, largest) over its seeds.

    ``methods`` is every method of the comparison in order, so that each keeps the colour it has in the other figure.
    """
    with rc_context(STYLE):
        axes = _canvas(2.0, list(curves))
        styles = _styles(methods)
        for place, (label, (epochs, mean, low, high)) in enumerate(curves.items()):
            colour, marker = styles[label]
            axes.fill_between(epochs, low, high, step="post", color=colour, alpha=0.15, lw=0)
            every = max(1, len(epochs) // 12)  # staggered and dashed, since a replayed run lies on the run it replays
            line: dict[str, Any] = {"color": colour, "lw": 1.8, "ls": DASHES[place % len(DASHES)]}
            marks: dict[str, Any] = {"marker": marker, "ms": 5, "mec": "white", "mew": 0.5}
            marks["markevery"] = (place % every, every) if every > 1 else None
            axes.step(epochs, mean, where="post", label=plain(label), **line, **marks)
        axes.set(xlabel="epoch", ylim=(0, max(1, stages) * 1.06))
        axes.set_title(f"live stages of {stages}", loc="left")
        axes.locator_params(integer=True, nbins=7)
        return _finished(axes)


def lowest_shown(panels: Mapping[str, Mapping[str, Sequence[Saving]]]) -> float:
    """The lower end of the percent axis: 0, or the ten below the lowest end of an interval where something cost more than it saved."""
    points = [point for curves in panels.values() for some in curves.values() for point in some]
    ends = [end for point in points for end in (point.mean, point.low) if math.isfinite(end)]
    return min(0.0, *(10.0 * math.floor(end / 10) for end in ends)) if ends else 0.0


def depth_figure(panels: Mapping[str, Mapping[str, Sequence[Saving]]], claims: Mapping[int, float], title: str) -> str:
    """What is saved against depth: a panel for each data set, in it a line for each label, and ``claims`` (layers -> percent)."""
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    told, width, height = "claimed by the paper", 4.4, 2.6
    below = 0.6 + 0.19 * math.ceil((len(labels) + 1) / len(panels))
    with rc_context(STYLE):
        figure = Figure(figsize=(width * len(panels), height + below + 0.35))
        whole, styles, shown = figure.get_figheight(), _styles(labels), dict[str, Any]()
        lowest = lowest_shown(panels)
        for place, (name, curves) in enumerate(panels.items()):
            spot = ((place + 0.13) / len(panels), below / whole, 0.84 / len(panels), height / whole)
            axes = figure.add_axes(spot)
            for label, points in curves.items():
                x, y = [point.layers for point in points], np.array([point.mean for point in points])
                ends = np.array([(point.low, point.high) for point in points]).T
                bars = np.maximum(
                    np.nan_to_num([y - ends[0], ends[1] - y]), 0.0
                )  # rounding may put an end beyond the mean
                colour, marker = styles[label]
                style: dict[str, Any] = {
                    "marker": marker,
                    "ms": 6,
                    "mec": "white",
                    "mew": 0.6,
                    "lw": 1.4,
                    "elinewidth": 1.2,
                }
                axes.errorbar(x, y, yerr=bars, color=colour, label=plain(label), **style)
            axes.plot(list(claims), list(claims.values()), "*", ms=11, mfc="none", mec="black", label=told)
            layers = sorted({point.layers for points in curves.values() for point in points} | set(claims))
            axes.set_xscale("log")
            axes.set_xticks(layers, _apart(layers), rotation=45, fontsize=7.5)
            axes.minorticks_off()
            axes.set(xlabel="weight layers", ylim=(lowest, 100))
            axes.set_title(plain(f"{title}, {name}"), loc="left")
            shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(list(shown.values()), list(shown), loc="lower center", ncols=len(panels), handlelength=1.6)
        return render(figure)


def _apart(layers: Sequence[int]) -> list[str]:
    """Labels of a logarithmic axis; neighbours too near for two share the first one's."""
    labels: list[str] = []
    for place, number in enumerate(layers):
        near = place > 0 and number < 1.1 * layers[place - 1]
        labels.append("" if near else str(number))
        if near:
            first = max(at for at in range(place) if labels[at])
            labels[first] += f", {number}"
    return labels


def score_figure(title: str, names: Sequence[str], steps: Sequence[int], scores: Scores, *, logarithmic: bool) -> str:
    """Scores ``[checks, stages]`` (NaN: dropped, or no score yet) as a heatmap, first stage on top."""
    scale: Normalize = Normalize(0, 1)
    if logarithmic:
        positive = scores[scores > 0]
        low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
        scale = LogNorm(low, max(high, 1.001 * low))
        scores = np.where(scores > 0, scores, np.nan)
    with rc_context(STYLE | {"axes.grid": False}):
        axes = _canvas(min(6.0, max(1.7, 0.25 + 0.19 * len(names))), [], left=1.25, right=0.8)
        colours = colormaps["cividis"].with_extremes(bad="#dddddd")
        axes.imshow(scores.T, aspect="auto", cmap=colours, norm=scale, interpolation="nearest")
        axes.set_title(title, loc="left")
        ticks = np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))
        axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
        axes.set_yticks([])
        axes.set_xlabel("step of the check")
        beside = axes.get_yaxis_transform()
        for place in range(0, len(names), math.ceil(len(names) / 30)):
            axes.text(-0.02, place, plain(names[place], 18), transform=beside, ha="right", va="center")
        _colour_bar(axes, colours, scale)
        return _finished(axes)


def _colour_bar(axes: Axes, colours: Colormap, scale: Normalize) -> None:
    """Drawn by hand: matplotlib's own takes as long as the rest of the figure."""
    levels = np.linspace(0, 1, 33)
    boxes = [((1.03, y), (1.06, y), (1.06, y + 0.033), (1.03, y + 0.033)) for y in levels[:-1]]
    bar = PolyCollection(boxes, facecolors=colours(levels[:-1]), transform=axes.transAxes, clip_on=False)
    axes.add_collection(bar, autolim=False)
    for y in (0.0, 0.5, 1.0):
        axes.text(1.08, y, f"{float(scale.inverse(y)):.2g}", transform=axes.transAxes, va="center", fontsize=8)


def breakdown_figure(bars: Sequence[Bar]) -> str:
    """Mean seconds per method as stacked bars: training by purpose, and hatched beneath it what is timed apart."""
    with rc_context(STYLE | {"hatch.linewidth": 0.5, "axes.grid.axis": "x"}):
        axes = _canvas(0.36 * len(bars), [*bars[0].parts, *bars[0].beside], left=1.5)
        places = -np.arange(len(bars))
        left = np.zeros(len(bars))
        for name, colour in zip(bars[0].parts, PALETTE, strict=False):
            seconds = np.array([bar.parts[name] for bar in bars])
            axes.barh(places + 0.14, seconds, 0.46, left, color=colour, label=name)
            left += seconds
        left = np.zeros(len(bars))
        for name, colour in zip(bars[0].beside, ("#bbbbbb", "#eeeeee"), strict=False):
            seconds = np.array([bar.beside[name] for bar in bars])
            axes.barh(
                places - 0.22, seconds, 0.2, left, color=colour, label=name, hatch="////", edgecolor="#888888", lw=0.3
            )
            left += seconds
        axes.set_yticks(
            [-place for place in range(len(bars))], ["\n".join(textwrap.wrap(plain(bar.label), 22)[:2]) for bar in bars]
        )
        axes.set_ylim(-len(bars) + 0.45, 0.55)
        axes.set_xlabel("seconds")
        axes.set_title("where the seconds went", loc="left")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _finished(axes)


def _styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {
        label: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(dict.fromkeys(labels))
    }


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns of a legend as fit beside each other; a line of the figure takes about 76 letters."""
    return max(1, min(4, len(labels), 76 // (7 + max(len(plain(label)) for label in labels)))) if labels else 1


def _canvas(height: float, labels: Sequence[str], left: float = 0.55, right: float = 0.15) -> Axes:
    """Axes of ``height`` inches in a figure with room for the titles and for a legend of ``labels`` beneath."""
    rows = math.ceil(len(labels) / _legend_columns(labels))
    below, width = 0.5 + (0.12 + 0.19 * rows if rows else 0.0), 5.2
    whole = below + height + 0.32
    figure = Figure(figsize=(width, whole))
    return figure.add_axes((left / width, below / whole, 1 - (left + right) / width, height / whole))


def _finished(axes: Axes) -> str:
    """The figure with its legend, as SVG."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        room: dict[str, Any] = {"handlelength": 1.6, "columnspacing": 1.4, "borderaxespad": 0.2}
        columns = _legend_columns(labels)
        figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=columns, **room)
    return render(figure)
