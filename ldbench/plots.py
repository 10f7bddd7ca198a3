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
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ldbench.columns import clean

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = "oDv^PX*<>hp"
DASHES: tuple[Any, ...] = ("-", (0, (5, 3)), (0, (2, 2)), (0, (7, 2, 2, 2)))
STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8.5, "svg.hashsalt": "ldbench", "svg.fonttype": "path",
}  # fmt: skip
CONTROL = "#555555"
Scores = NDArray[np.float64]
Curve = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]


class Point(NamedTuple):
    """A mean with its interval on both axes (NaN where there is none) and the single runs behind it."""

    label: str
    control: bool
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    runs: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """Mean seconds of one method: the parts of its training, and what was timed beside it."""

    label: str
    parts: Mapping[str, float]
    beside: Mapping[str, float]


def plain(text: str, width: int = 44) -> str:
    """A name for a figure: harmless, short, and with no mathematics in its dollar signs."""
    return textwrap.shorten(clean(text), width, placeholder="…").replace("$", r"\$") or "…"


def render(figure: Figure) -> str:
    """The figure as SVG; equal figures give equal text."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def cost_figure(panels: Mapping[str, Sequence[Point]]) -> str:
    """Accuracy (percent) against cost: one panel per axis title, methods with error bars, the frontier as a line."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.9))
        everything = next(iter(panels.values()))
        styles = _styles(point.label for point in everything if not point.control)
        for place, (title, points) in enumerate(panels.items()):
            axes = figure.add_axes((0.075 + 0.49 * place, 0.30, 0.41, 0.62))
            _cost_panel(axes, points, styles)
            axes.set_xlabel(title)
            axes.set_title(f"accuracy % over {title.split(' (')[0]}", loc="left")
        _legend(figure, figure.axes[0], 0.135)
        return render(figure)


def _cost_panel(axes: Axes, points: Sequence[Point], styles: Mapping[str, tuple[str, str]]) -> None:
    controls = sorted((p for p in points if p.control), key=lambda p: p.x[0])
    if len(controls) > 1:
        x, y = [p.x[0] for p in controls], [p.y[0] for p in controls]
        axes.plot(x, y, color=CONTROL, lw=1.4, label="frontier of training less")
    colours = [CONTROL if point.control else styles[point.label][0] for point in points]
    dots = [(*run, colour) for point, colour in zip(points, colours, strict=True) for run in point.runs[:50]]
    axes.scatter([dot[0] for dot in dots], [dot[1] for dot in dots], 9, [dot[2] for dot in dots], alpha=0.4, lw=0)
    for point, colour in zip(points, colours, strict=True):
        axes.errorbar(
            point.x[0], point.y[0], xerr=_bars(point.x), yerr=_bars(point.y), color=colour, ms=6.5, mec="white", mew=0.7,
            marker="s" if point.control else styles[point.label][1], elinewidth=1.3, ls="", zorder=3,
            label="_" if point.control else plain(point.label),
        )  # fmt: skip
    for point in controls:
        name = "full" if point.label == "full" else point.label.removeprefix("short ")
        spot = (point.x[0], point.y[0])
        axes.annotate(plain(name, 12), spot, (6, -11), textcoords="offset points", fontsize=8, color=CONTROL)
    values = np.array([y for p in points for _, y in p.runs] + [p.y[0] for p in points])
    low, high = float(values.min()), float(values.max())
    # Intervals of few seeds are huge: they may run off the axes, so that the runs stay readable.
    room = max(0.35 * (high - low), 0.5)
    axes.set_ylim(low - 1.2 * room, high + room)
    axes.margins(x=0.08)
    axes.locator_params(nbins=6)


def stages_figure(curves: Mapping[str, Curve], stages: int, methods: Sequence[str]) -> str:
    """Live stages over epochs: per method (epoch, mean, smallest, largest) over its seeds.

    ``methods`` is every method of the comparison in order, so that each keeps the colour it has in the other figure.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.3))
        axes = figure.add_axes((0.11, 0.30, 0.85, 0.60))
        styles = _styles(methods)
        for place, (label, (epochs, mean, low, high)) in enumerate(curves.items()):
            colour, marker = styles[label]
            axes.fill_between(epochs, low, high, step="post", color=colour, alpha=0.15, lw=0)
            every = max(1, len(epochs) // 12)  # staggered and dashed, since a replayed run lies on the run it replays
            axes.step(
                epochs, mean, where="post", color=colour, lw=1.8, ls=DASHES[place % len(DASHES)], marker=marker, ms=5,
                mec="white", mew=0.5, markevery=(place % every, every) if every > 1 else None, label=plain(label),
            )  # fmt: skip
        axes.set(xlabel="epoch", ylim=(0, stages * 1.06))
        axes.set_title(f"live stages of {stages}", loc="left")
        axes.locator_params(integer=True, nbins=7)
        _legend(figure, axes, 0.14)
        return render(figure)


def score_figure(names: Sequence[str], steps: Sequence[int], change: Scores, continuation: Scores) -> str:
    """Scores ``[checks, stages]`` (NaN: dropped, or no score yet) as two heatmaps, first stage on top."""
    height = min(7.0, max(2.6, 1.1 + 0.19 * len(names)))
    positive = change[change > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
    logarithmic: Normalize = LogNorm(low, max(high, 1.001 * low))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(8.6, height))
        left = figure.add_axes((0.135, 0.5 / height, 0.335, 1 - 0.85 / height))
        right = figure.add_axes((0.56, 0.5 / height, 0.335, 1 - 0.85 / height))
        _heatmap(
            left, np.where(change > 0, change, np.nan), logarithmic, steps, "layer change per unit of learning rate"
        )
        _heatmap(right, continuation, Normalize(0, 1), steps, "continuation")
        for place in range(0, len(names), math.ceil(len(names) / 30)):
            left.text(
                -0.02, place, plain(names[place], 18), transform=left.get_yaxis_transform(), ha="right", va="center"
            )
        return render(figure)


def _heatmap(axes: Axes, values: Scores, scale: Normalize, steps: Sequence[int], title: str) -> None:
    colours = colormaps["cividis"].with_extremes(bad="#dddddd")
    axes.imshow(values.T, aspect="auto", cmap=colours, norm=scale, interpolation="nearest")
    axes.set_title(title, loc="left")
    ticks = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axes.set_yticks([])
    axes.set_xlabel("step of the check")
    # A colour bar drawn by hand: matplotlib's own takes as long as the rest of the figure.
    levels = np.linspace(0, 1, 33)
    boxes = [((1.03, y), (1.06, y), (1.06, y + 0.033), (1.03, y + 0.033)) for y in levels[:-1]]
    bar = PolyCollection(boxes, facecolors=colours(levels[:-1]), transform=axes.transAxes, clip_on=False)
    axes.add_collection(bar, autolim=False)
    for y in (0.0, 0.5, 1.0):
        axes.text(1.08, y, f"{float(scale.inverse(y)):.2g}", transform=axes.transAxes, va="center", fontsize=8)


def breakdown_figure(bars: Sequence[Bar]) -> str:
    """Mean seconds per method as stacked bars: training by what it was spent on, and hatched beneath what is timed apart."""
    with rc_context(STYLE | {"hatch.linewidth": 0.5, "axes.grid.axis": "x"}):
        height = 1.25 + 0.36 * len(bars)
        figure = Figure(figsize=(5.2, height))
        axes = figure.add_axes((0.27, 0.88 / height, 0.69, (height - 1.2) / height))
        for place, bar in enumerate(bars):
            for lift, thick, parts, colours in (
                (0.14, 0.46, bar.parts, PALETTE),
                (-0.22, 0.2, bar.beside, ("#bbbbbb", "#eeeeee")),
            ):
                left = 0.0
                for (name, seconds), colour in zip(parts.items(), colours, strict=False):
                    hatch = "////" if lift < 0 else ""
                    label = name if place == 0 else "_"
                    axes.barh(
                        -place + lift,
                        seconds,
                        thick,
                        left,
                        color=colour,
                        hatch=hatch,
                        edgecolor="#888888" if hatch else "white",
                        lw=0.3,
                        label=label,
                    )
                    left += seconds
        axes.set_yticks([-place for place in range(len(bars))], [plain(bar.label, 26) for bar in bars])
        axes.set_ylim(-len(bars) + 0.45, 0.55)
        axes.set_xlabel("seconds")
        axes.set_title("where the seconds went", loc="left")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        _legend(figure, axes, 0.42 / height, columns=3)
        return render(figure)


def _styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {
        label: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(dict.fromkeys(labels))
    }


def _bars(interval: tuple[float, float, float]) -> list[list[float]] | None:
    mean, low, high = interval
    return [[mean - low], [high - mean]] if math.isfinite(low) else None


def _legend(figure: Figure, axes: Axes, top: float, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, top),
            ncols=columns,
            handlelength=1.6,
            columnspacing=1.4,
        )
