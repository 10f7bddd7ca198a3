"""The Learn&Drop paper's architectures in a report: what dropping saves of each, beside what the paper claims of its own.

The claims are those of its abstracts (Cruciata et al. 2024; arXiv 2604.23403); the full text was not at hand: forward FLOPs reduced by 17.83 % on
VGG-11 to 83.74 % on ResNet-152, training time more than halved, accuracy lower by 0.26 to 2.38 % on VGGs and by 0.4 to 3.2 % on
ResNets. What it has of the other architectures stands in the full text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ldbench.costs.table import CostTable
from ldbench.errors import clean
from ldbench.io.checksums import Damaged
from ldbench.records.results import bounded, read_object
from ldbench.records.stored import Stored
from ldbench.reporting.comparisons import Record, records_of
from ldbench.reporting.formatting import quantity, runs, spanned, speed_up
from ldbench.reporting.markup import Html, picture, table, tag
from ldbench.reporting.plots import Saving, depth_figure

ARCHITECTURES = (
    "vgg11", "vgg13", "vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
)  # fmt: skip
FORWARD = {"vgg11": 17.83, "resnet152": 83.74}  # percent of the forward FLOPs, the two ends that the abstract names
LOSS = {"VGG": (0.26, 2.38), "ResNet": (0.4, 3.2)}  # points of accuracy, least and most of a family
HEAD = (
    "architecture", "data set", "rule", "n", "forward FLOPs - %", "the paper's, %", "time ÷ full", "points to full", "the paper's, points",
    "training less at the same FLOPs, points to full", "times cheaper at equal accuracy, by FLOPs", "by time",
    "realised ÷ predicted",
)  # fmt: skip
_CLAIMS = ("the paper's, %", "the paper's, points")
BEYOND_HEAD = (*(title for title in HEAD if title not in _CLAIMS), "stages")
SHORT_HEAD = (
    "architecture", "rule", "n", "forward FLOPs - %", "the paper's, %", "time ÷ full", "points to full, by data set", "the paper's, points",
    "training less at the same FLOPs, points to full",
)  # fmt: skip
SETUP_HEAD = (
    "architecture", "weight layers", "stages", "width", "pixels", "stem", "dropout", "forward MFLOPs per image", "images",
    "epochs", "learning rates",
)  # fmt: skip
CLAIM_HEAD = ("data set", "rule", "what its abstract claims", "here")
STAGE_HEAD = ("architecture", "stage", "FLOPs of a step, %", "time of a step, %", "times slower than the mean stage")
BOUND = 2.0  # a stage that takes so many times the share of time that it has of the FLOPs is listed
LEAST = 0.01  # and at least this share of the step
WHAT_DIFFERS = (
    "What differs from the paper, as far as its abstract tells (the full text was not at hand): these networks may be narrower, images smaller, runs shorter "
    "and data fewer (the table says how far); VGGs may have BatchNorm; ResNets have a 3 x 3 stem on small images; recipes are this "
    "project's; layers are dropped by stage (a VGG's convolution or linear layer, a ResNet's block); scores, "
    "pace and store are this project's own formulation; FLOPs include building the store. Its abstract tells of no "
    "shortened training; here it stands in every line."
)


def family(model: str) -> str:
    """``VGG`` or ``ResNet`` of one of the paper's architectures, with or without BatchNorm; "" of any other."""
    name = model.removesuffix("_bn")
    return ("VGG" if name.startswith("vgg") else "ResNet") if name in ARCHITECTURES else ""


def depth(model: str) -> int:
    """Weight layers, as the architecture's name counts them."""
    found = re.search(r"\d+", model)
    return int(found[0]) if found else 0


def is_beside_paper(lines: pd.DataFrame) -> bool:
    """Whether a report has two depths of one of the paper's families, so that they can be told apart by depth."""
    here = {(family(row["model"]), depth(row["model"])) for row in _rules(lines)}
    return len(here) > len({of for of, _ in here})


def _rules(lines: pd.DataFrame) -> list[Record]:
    """The rows of everything that drops layers, of the paper's architectures, by family, norm and depth."""
    rows = [row for row in _from_scratch(lines) if family(row["model"])]
    return sorted(rows, key=lambda row: (*_order(row["model"]), _data(row), row["label"]))


def _from_scratch(lines: pd.DataFrame) -> list[Record]:
    """The rows of what drops layers of networks trained from scratch, as the paper's are; those that did not finish too."""
    return [row for row in records_of(lines) if row["verdict"] != "control" and row["scenario"] == "scratch"]


def _data(row: Record) -> str:
    """The data set, and where a network was run on it in several settings which one."""
    return ", ".join(text for text in (row["dataset"], row["setting_label"]) if text)


def _order(model: str) -> tuple[bool, bool, int]:
    return family(model) != "VGG", model.endswith("_bn"), depth(model)


def rows_beside(lines: pd.DataFrame) -> list[list[str]]:
    """A line of ``HEAD`` for each of the paper's architectures, data set and rule."""
    found = []
    for row in _rules(lines):
        forward, points = _claimed(row["model"])
        texts = _measured(row)
        found.append([*texts[:5], forward, *texts[5:7], points, *texts[7:]])
    return found


def beyond_rows(lines: pd.DataFrame) -> list[list[str]]:
    """A line of ``BEYOND_HEAD`` for every other architecture, data set and rule."""
    rows = [row for row in _from_scratch(lines) if not family(row["model"])]
    return [[*_measured(row), f"{row['stage_count_max']:.0f}" if row["runs"] else "-"] for row in rows]


def _measured(row: Record) -> list[str]:
    """What is said of a rule on a network, what the paper claims left out."""
    less = _less(row)
    return [
        clean(row["model"]), clean(_data(row)), clean(row["label"]), runs(row),
        spanned(row, "forward_flops_reduction_percent", "", 1), spanned(row, "train_time_ratio", ""),
        spanned(row, "difference_to_full_points"), f"{less:+.2f}" if math.isfinite(less) else "-",
        speed_up(row, "flops"), speed_up(row, "time"), spanned(row, "realised_over_predicted", ""),
    ]  # fmt: skip


def _less(row: Record) -> float:
    """What training less comes to at the rule's FLOPs, in points to full training; NaN where the two are not of the same seeds."""
    to_full, lead = "difference_to_full_points", "difference_at_equal_flops_points"
    same = row[f"{to_full}_n"] == row[f"{lead}_n"]
    return float(row[f"{to_full}_mean"]) - float(row[f"{lead}_mean"]) if same else math.nan


def _claimed(model: str) -> tuple[str, str]:
    """What the paper's abstracts claim of an architecture: percent of the forward FLOPs, points of accuracy."""
    name, (least, most) = model.removesuffix("_bn"), LOSS[family(model)]
    return f"{FORWARD[name]:.2f}" if name in FORWARD else "not at hand", f"-{least:g} to -{most:g}"


def short_rows(lines: pd.DataFrame) -> list[list[str]]:
    """A line of ``SHORT_HEAD`` for each architecture and rule: means over the data sets, without intervals."""
    by_rule: dict[tuple[str, str], list[Record]] = {}
    for row in _rules(lines):
        by_rule.setdefault((row["model"], row["label"]), []).append(row)
    found = []
    for (model, label), rows in by_rule.items():
        forward, points = _claimed(model)
        saved, ratio = (_mean(rows, name) for name in ("forward_flops_reduction_percent", "train_time_ratio"))
        lost = (_points(float(row["difference_to_full_points_mean"])) for row in rows)
        texts = [clean(model), clean(label), str(min(row["runs"] for row in rows)), quantity(saved), forward]
        texts += [quantity(ratio), " and ".join(lost), points, " and ".join(_points(_less(row)) for row in rows)]
        found.append(texts)
    return found


def _mean(rows: Sequence[Record], name: str) -> float:
    known = [value for row in rows if math.isfinite(value := float(row[f"{name}_mean"]))]
    return sum(known) / len(known) if known else math.nan


def _points(value: float) -> str:
    return f"{value:+.1f}" if math.isfinite(value) else "-"


def claim_rows(lines: pd.DataFrame) -> list[list[str]]:
    """A line of ``CLAIM_HEAD`` for each data set, rule and claim of the paper's abstract: of how many architectures it holds here.

    A claim holds surely where the whole 95 % interval over the seeds is on its side. The last line of each rule is not the paper's: where
    it stands against training less.
    """
    by_rule: dict[tuple[str, str], list[Record]] = {}
    for row in _rules(lines):
        if row["runs"]:
            by_rule.setdefault((_data(row), row["label"]), []).append(row)
    found = []
    for (data, label), rows in by_rule.items():
        saved, ratio, lost = "forward_flops_reduction_percent", "train_time_ratio", "difference_to_full_points"
        ends = [row for row in rows if row["model"].removesuffix("_bn") in FORWARD]
        reach = ", ".join(f"{clean(row['model'])} {row[f'{saved}_mean']:.1f} %" for row in ends)
        within = [(row, f"{lost}_mean", f"{lost}_low", -LOSS[family(row["model"])][1]) for row in rows]
        halved = [(row, f"{ratio}_mean", f"{ratio}_high", 0.5) for row in rows]
        ahead = [float(row["difference_at_equal_flops_points_low"]) > 0 for row in rows]
        behind = [float(row["difference_at_equal_flops_points_high"]) < 0 for row in rows]
        told = {
            "training time more than halved": _held(halved, lower=True),
            "forward FLOPs - 17.83 % (VGG-11) to 83.74 % (ResNet-152)": reach or "neither was run",
            "rising with depth": "; ".join(_by_depth(rows, saved)),
            "accuracy at most 2.38 (VGG) and 3.2 points (ResNet) lower": _held(within, lower=False),
            "no claim of it: better than training less at the same FLOPs": f"surely on {sum(ahead)} of {len(rows)} architectures, surely "
            f"worse on {sum(behind)}",
        }
        found += [[clean(data), clean(label), claim, here] for claim, here in told.items()]
    return found


def _held(tests: Sequence[tuple[Record, str, str, float]], *, lower: bool) -> str:
    """Of how many rows a mean, and of how many the far end of its interval, is on one side of a bound."""

    def beyond(value: float, bound: float) -> bool:
        return value < bound if lower else value > bound

    means = sum(beyond(float(row[mean]), bound) for row, mean, _, bound in tests)
    sure = sum(beyond(float(row[end]), bound) for row, _, end, bound in tests)
    return f"on {means} of {len(tests)} architectures, surely on {sure}"


def _by_depth(rows: Sequence[Record], name: str) -> list[str]:
    """What is saved of each kind of network, by rising depth."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(_kind(row["model"]), []).append(f"{row[f'{name}_mean']:.1f}")
    return [f"{kind} {', '.join(values)} %" for kind, values in kinds.items() if len(values) > 1] or ["one depth alone"]


def _kind(model: str) -> str:
    return family(model) + (" with BatchNorm" if model.endswith("_bn") else "")


def setup_rows(cells: pd.DataFrame) -> list[list[str]]:
    """A line of ``SETUP_HEAD`` for each architecture of these runs: how it was trained."""
    found = []
    here = cells[(cells["status"] == "finished") & cells["model"].map(lambda name: bool(family(name)))]
    for model in sorted(set(here["model"]), key=_order):
        some = here[here["model"] == model]
        full = some[some["method"] == "full"]
        settings = [json.loads(text) for text in some["setting"]]
        images = (bounded(value) for value in full["forward_flops_full"] / (full["steps"] * full["batch_size"]))
        mega = {f"{value / 1e6:.1f}" for value in images if math.isfinite(value)}
        rates = {text for text in map(_rate, some["tuned"], settings) if text}
        texts = [model, str(depth(model)), _all(some["stage_count"]), _all(some["width"]), _all(some["image_size"])]
        dropout = pd.Series([setting.get("dropout", "the network's own") for setting in settings])
        texts += [
            _all(some["stem"]),
            _all(dropout),
            ", ".join(sorted(mega)),
            _all(some["train_size"]),
            _all(full["epochs"]),
        ]
        found.append([*texts, ", ".join(sorted(rates, key=float))])
    return found


def _rate(tuned: str, setting: Mapping[str, Any]) -> str:
    value = json.loads(tuned).get("lr", setting.get("lr"))
    return f"{value:g}" if isinstance(value, int | float) else ""


def _all(values: pd.Series) -> str:
    known = [value for value in dict.fromkeys(values) if isinstance(value, str) or math.isfinite(bounded(value))]
    return ", ".join(clean(value) if isinstance(value, str) else f"{float(value):g}" for value in known) or "-"


def cost_tables(place: Stored) -> list[dict[str, Any]]:
    """The cost tables that lie with the results, those that can be read."""
    found = []
    for name in place.files("costs"):
        try:
            found.append(read_object(place, name))
        except Damaged:
            continue  # said where gaps are
    return found


def stage_rows(tables: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line of ``STAGE_HEAD`` for every stage whose share of a step's time is ``BOUND`` times its share of the FLOPs or more.

    Such a stage is bound by memory or overhead: dropping it saves more time than FLOPs, and keeping it the other way round.

    Args:
        tables: cost tables as they are kept in a results folder, with ``what`` they were measured for.
    """
    found = []
    for model, shares in sorted(_shares(tables).items(), key=lambda item: _order(item[0])):
        for name, flops, seconds in shares:
            if flops > 0 and seconds >= LEAST and seconds / flops >= BOUND:
                texts = [f"{100 * flops:.2f}", f"{100 * seconds:.2f}", quantity(seconds / flops, 2)]
                found.append([model, clean(name), *texts])
    return found


def _shares(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, float, float]]]:
    """By model its stages: name, share of the FLOPs and of the seconds of a step, means over the tables there are."""
    alike: dict[tuple[str, tuple[str, ...]], list[list[tuple[float, float]]]] = {}
    for saved in tables:
        try:
            model, told = str(saved["what"]["model"]), CostTable.from_dict(saved["table"])
            flops = [stage.forward + stage.backward for stage in told.flops]
            seconds = [ahead + back for ahead, back in zip(told.forward, told.backward, strict=True)]
            whole, took = sum(flops), sum(seconds)
            shares = [(of / whole, time / took) for of, time in zip(flops, seconds, strict=True)]
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            continue  # another program's, or one that was damaged
        if family(model) and len(told.stages) == len(shares):
            alike.setdefault((model, tuple(told.stages)), []).append(shares)
    found: dict[str, list[tuple[str, float, float]]] = {}
    for (model, names), some in alike.items():
        means = [[sum(part) / len(part) for part in zip(*same, strict=True)] for same in zip(*some, strict=True)]
        found.setdefault(model, []).extend((name, of, time) for name, (of, time) in zip(names, means, strict=True))
    return found


def depth_panels(lines: pd.DataFrame) -> dict[str, dict[str, list[Saving]]]:
    """What ``depth_figure`` draws: by data set, and in it by family and rule, the forward FLOPs saved at each depth."""
    panels: dict[str, dict[str, list[Saving]]] = {}
    for row in _rules(lines):
        if not row["runs"]:
            continue
        label = f"{_kind(row['model'])}, {row['label']}"
        saved = (float(row[f"forward_flops_reduction_percent_{part}"]) for part in ("mean", "low", "high"))
        panels.setdefault(_data(row), {}).setdefault(label, []).append(Saving(depth(row["model"]), *saved))
    return panels


def depth_picture(lines: pd.DataFrame) -> str:
    """The figure, as SVG."""
    claims = {depth(model): percent for model, percent in FORWARD.items()}
    return depth_figure(depth_panels(lines), claims, "forward FLOPs saved, %")


def beside_paper(cells: pd.DataFrame, lines: pd.DataFrame, tables: Sequence[Mapping[str, Any]]) -> Html:
    """The section of the report; nothing where no family is there at two depths."""
    if not is_beside_paper(lines):
        return tag("div")
    caption = (
        "Forward FLOPs saved, building the store counted, against weight layers; bars: 95 % intervals over the seeds."
    )
    slow = stage_rows(tables)
    return tag(
        "section",
        tag("h2", "Beside the Learn&Drop paper"),
        tag("p", WHAT_DIFFERS),
        table(HEAD, [("open", row) for row in rows_beside(lines)]),
        picture([depth_picture(lines)], "forward FLOPs saved against depth", caption, "wide")
        if depth_panels(lines)
        else "",
        tag("h3", "What of its claims holds here"),
        table(CLAIM_HEAD, [("open", row) for row in claim_rows(lines)]),
        tag("h3", "How they were trained"),
        table(SETUP_HEAD, [("open", row) for row in setup_rows(cells)]),
        [tag("h3", "Stages that take more time than arithmetic"), table(STAGE_HEAD, [("open", row) for row in slow])]
        if slow
        else "",
        id="beside-paper",
    )
