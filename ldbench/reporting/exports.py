"""The results as a table for a paper or a program: LaTeX, Markdown, CSV or JSON, with the columns that are asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ldbench.errors import UserError, clean, nearest, shown
from ldbench.io.checksums import plain
from ldbench.reporting.comparisons import Record, by_comparison, comparison_title, values_seen
from ldbench.reporting.formatting import Row, plus_minus, quantity, runs, spanned, speed_up, standing

FORMATS = ("latex", "markdown", "csv", "json")
WHERE = ("model", "dataset", "scenario", "setting_label", "method", "label")  # what a row of CSV or JSON begins with
ENDS = ("mean", "low", "high", "n")


class Exported(NamedTuple):
    """``title`` heads the column where people read it, ``show`` gives a row's text; ``fields`` are its numbers in CSV and JSON."""

    title: str
    show: Callable[[Row], str]
    fields: tuple[str, ...]


def _estimate(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{end}" for end in ENDS)


def _speed_up(title: str, axis: str) -> Exported:
    """Open ends are infinite in CSV and null in JSON; ``lowest`` and ``highest`` are what the control's budgets reach to."""
    name = f"speed_up_{axis}"
    return Exported(
        title,
        lambda row: speed_up(row, axis),
        (*_estimate(name), *(f"{name}_{of}" for of in ("bound", "lowest", "highest"))),
    )


def _counted(row: Row, name: str) -> str:
    """The column of what counts: of streams the mean over the chunks."""
    return f"average_{name}" if row["streamed"] else name


def _points(title: str, name: str) -> Exported:
    return Exported(
        title, lambda row: spanned(row, _counted(row, name)), (*_estimate(name), *_estimate(f"average_{name}"))
    )


def _accuracy(row: Row) -> str:
    counted = "average_accuracy_percent" if row["streamed"] else "test_accuracy_percent"
    return "n/a" if row["synthetic"] else plus_minus(row, counted)


def _plain(title: str, name: str, digits: int) -> Exported:
    return Exported(title, lambda row: spanned(row, name, "", digits), _estimate(name))


def _store(row: Row) -> str:
    return quantity(float(row["store_bytes_max"]) / 2**20, 2) if row["runs"] else "-"


COLUMNS: Mapping[str, Exported] = {
    "n": Exported("n", runs, ("runs", "diverged", "failed")),
    "accuracy": Exported(
        "accuracy, %", _accuracy, (*_estimate("test_accuracy_percent"), *_estimate("average_accuracy_percent"))
    ),
    "full": _points("points to full", "difference_to_full_points"),
    "equal-flops": _points("points to training less, equal FLOPs", "difference_at_equal_flops_points"),
    "equal-time": _points("points to training less, equal time", "difference_at_equal_time_points"),
    "cheaper-flops": _speed_up("times cheaper, FLOPs", "flops"),
    "cheaper-time": _speed_up("times cheaper, time", "time"),
    "time": _plain("time ÷ full", "train_time_ratio", 2),
    "seconds": _plain("training, s", "train_seconds", 1),
    "forward": _plain("forward FLOPs saved, %", "forward_flops_reduction_percent", 1),
    "flops": _plain("FLOPs saved, %", "total_flops_reduction_percent", 1),
    "energy": _plain("energy, J", "energy_joules", 0),
    "energy-ratio": _plain("energy ÷ full", "energy_ratio", 2),
    "realised": _plain("saving realised ÷ predicted", "realised_over_predicted", 2),
    "stages": Exported(
        "stages dropped",
        lambda row: (
            f"{quantity(float(row['dropped_stages_mean']))} of {row['stage_count_max']:.0f}" if row["runs"] else "-"
        ),
        ("dropped_stages_mean", "stage_count_max"),
    ),
    "store": Exported("store, MiB", _store, ("store_bytes_max",)),
    "tuned": Exported("tuned", lambda row: clean(row["tuned"]) or "-", ("tuned", "tuned_edge")),
    "verdict": Exported("against training less", standing, ("verdict", "standing", "p", "adjusted_p", "statement")),
}
_IN_WORDS = ("tuned", "verdict")  # set flush left
USUAL = ("n", "accuracy", "full", "cheaper-flops", "cheaper-time", "time", "forward", "flops")


def columns_named(text: str | None) -> tuple[str, ...]:
    """The columns of a list such as ``n,accuracy,time``; ``USUAL`` without one. Raises ``UserError`` for what is none."""
    if text is None:
        return USUAL
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"--columns: {shown(name)} is no column: {nearest(name, COLUMNS)} ({', '.join(COLUMNS)})")
    if len(set(names)) != len(names):
        raise UserError(f"--columns names the same column twice: {shown(text)}")
    return names


def export(cells: pd.DataFrame, lines: pd.DataFrame, form: str, names: Sequence[str] = USUAL) -> str:
    """The table of a results folder as text that ends in a newline.

    Args:
        cells: what ``load_results`` gave.
        lines: what ``tabulate`` made of it, a row per method of a comparison.
        form: one of ``FORMATS``. LaTeX needs the packages booktabs and longtable.
        names: keys of ``COLUMNS``.

    Raises:
        UserError: there is nothing to show.
    """
    if lines.empty:
        raise UserError("no finished run to make a table of")
    if form in ("csv", "json"):
        fields = dict.fromkeys(field for name in names for field in COLUMNS[name].fields)
        wanted = lines.loc[:, [*WHERE, *fields]].rename(columns={"setting_label": "setting"})
        if form == "csv":
            return guarded_csv(wanted)
        return json.dumps(plain(wanted.to_dict(orient="records")), indent=1) + "\n"
    made = _latex if form == "latex" else _markdown
    return made(list(by_comparison(lines).values()), names, protocol(cells, lines))


def protocol(cells: pd.DataFrame, lines: pd.DataFrame) -> str:
    """What the figures of a table are, in the sentences that a paper needs beside it."""
    counts = sorted({int(row) for row in lines["runs"]} - {0}) or [0]
    several = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
    over = f"Mean and 95 % confidence interval (Student's t) over {several} seeds"
    seeds = over if counts[-1] > 1 else "One seed, without intervals" if counts[-1] else "No run finished"
    images = sorted({int(some) for some in cells["test_images"].dropna() if some})
    tested = f"; accuracy on {' or '.join(f'{some:,}' for some in images)} test images" if images else ""
    where = values_seen(cells, "environment_gpu") or values_seen(cells, "environment_cpu") or ["hardware not recorded"]
    versions = [f"torch {', '.join(found)}" for found in [values_seen(cells, "environment_torch")] if found]
    streamed = ", in streams the mean over the chunks" if bool(lines["streamed"].any()) else ""
    return (
        f"{seeds}{tested}{streamed}. Points: percentage points of accuracy, "
        "paired by seed. Times cheaper: what shortened training costs to reach the rule's accuracy over what the rule costs. "
        "FLOPs: two per multiply-add, those of building the activation store included; time: training with all that the rule "
        f"costs. Measured with ldbench on {'; '.join(where)}, {', '.join(versions) or 'versions not recorded'}."
    )


def _texts(row: Record, names: Sequence[str]) -> list[str]:
    return [clean(row["label"]), *(COLUMNS[name].show(row) for name in names)]


def _markdown(comparisons: Sequence[Sequence[Record]], names: Sequence[str], told: str) -> str:
    head = ["method", *(COLUMNS[name].title for name in names)]
    lines: list[str] = []
    for rows in comparisons:
        lines += [f"**{_in_markdown(comparison_title(rows[0]))}**", ""]
        lines += [_line(head), _line(["---", *("---" if name in _IN_WORDS else "---:" for name in names)])]
        lines += [_line([_in_markdown(text) for text in _texts(row, names)]) for row in rows]
        lines.append("")
    return "\n".join([*lines, told, ""])


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _in_markdown(text: str) -> str:
    lines = (re.sub(r"([\\|*_`<>])", r"\\\1", clean(line)).replace("](", "]\\(") for line in text.split("\n"))
    return "<br>".join(lines)


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "÷": r"$\div$", "\u00d7": r"$\times$",
    "<": r"$<$", ">": r"$>$", "|": r"\textbar{}", '"': "''", "\n": "; ",
}  # fmt: skip


def in_latex(text: str) -> str:
    """Text as LaTeX sets it: what has a meaning there escaped, signed numbers in math."""
    escaped = "".join(_SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w$.])([+-]\d+(?:\.\d+)?)", r"$\1$", escaped)


def _latex(comparisons: Sequence[Sequence[Record]], names: Sequence[str], told: str) -> str:
    width = 1 + len(names)
    head = " & ".join(["method", *(in_latex(COLUMNS[name].title) for name in names)]) + r" \\"
    lines = [
        "% needs \\usepackage{booktabs,longtable}",
        rf"\begin{{longtable}}{{l{''.join('l' if name in _IN_WORDS else 'r' for name in names)}}}",
        rf"\caption{{{in_latex(told)}}}\label{{tab:ldbench}}\\",
        r"\toprule", head, r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule",
        r"\endlastfoot",
    ]  # fmt: skip
    for place, rows in enumerate(comparisons):
        lines += [r"\midrule"] if place else []
        lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{in_latex(clean(comparison_title(rows[0])))}}}}} \\")
        lines += [" & ".join(in_latex(text) for text in _texts(row, names)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\end{longtable}", ""])


def guarded_csv(frame: pd.DataFrame) -> str:
    """CSV text; a text that a spreadsheet would take for a formula gets a quote in front."""
    safe = frame.copy()
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            known = {value: _guarded(value) for value in safe[name].unique()}  # texts repeat from run to run
            safe[name] = [known[value] for value in safe[name]]
    return safe.to_csv(index=False, lineterminator="\n")


def _guarded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
