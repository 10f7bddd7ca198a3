"""Refreshes the README's tables and figures from the result files that a lab brought home.

    python -m benches.tables            # rewrites README.md
    python -m benches.tables --check    # exit code 1 if it is out of date

Read are ``results/gpu/*/lab.json`` (of ``benches.lab``, see ``benches.lab_tables``) and ``results/evidence-*`` (results
folders of the evidence suites).
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benches.lab_tables import energy_table, kernel_table, line, step_table
from benches.leads import lead_lines

ROOT = Path(__file__).parents[1]
NO_EVIDENCE = "No figures yet; `ldbench run evidence-cpu --out results/evidence-cpu` makes them."


@functools.cache
def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of a results folder and their summary, once per process."""
    from ldbench.records.results import load_results
    from ldbench.reporting.summary import summarize

    cells = load_results(folder)
    return cells, cells if cells.empty else summarize(cells)


def _named(cells: pd.DataFrame, column: str) -> list[str]:
    from ldbench.errors import clean

    return sorted(set(cells[column].dropna().map(clean))) if column in cells else []


def evidence_table(folders: Sequence[Path]) -> str:
    """Every method and control against full training and the frontier of shortened training, also what is behind."""
    from ldbench.errors import clean
    from ldbench.reporting.comparisons import COMPARISON, comparison_title, records_of
    from ldbench.reporting.formatting import accuracy, plus_minus, slope, spanned, standing

    head = (
        "method", "n", "accuracy %", "to full", "time ÷ full", "forward FLOPs - %", "FLOPs - %", "equal FLOPs",
        "equal time", "verdict",
    )  # fmt: skip
    lines = []
    for folder in folders:
        cells, summary = read(folder)
        if cells.empty:
            continue
        lines += _stands_on(folder, cells, records_of(summary.head(1))[0])
        for _, group in summary.groupby(COMPARISON, sort=False):
            rows = records_of(group)
            gained = f"points gained by doubling the budget: {slope(rows[0])}"
            lines += ["", f"{clean(comparison_title(rows[0]))}; {gained}", "", line(head), line(["---"] * len(head))]
            counts = "average_" if rows[0]["streamed"] else ""
            for row in rows:
                texts = [clean(row["label"]), str(row["runs"]), accuracy(row)]
                texts += [spanned(row, f"{counts}difference_to_full_points"), spanned(row, "train_time_ratio", "", 2)]
                texts += [plus_minus(row, f"{of}_flops_reduction_percent", 1) for of in ("forward", "total")]
                texts += [spanned(row, f"{counts}difference_at_equal_{axis}_points") for axis in ("flops", "time")]
                lines.append(line([*texts, standing(row)]))
        lines.append("")
    return "\n".join(lines).strip() or NO_EVIDENCE


def verdict_table(folders: Sequence[Path]) -> str:
    """Every method that is no control against full training and training less, a line each."""
    from ldbench.errors import clean
    from ldbench.reporting.comparisons import records_of
    from ldbench.reporting.formatting import plus_minus, probability, spanned
    from ldbench.reporting.stats import LEVEL
    from ldbench.reporting.verdicts import PHRASES

    head = (
        "scenario", "model", "method", "n", "time ÷ full", "forward FLOPs - %", "to full", "equal FLOPs", "equal time",
        "against shortened training",
    )  # fmt: skip
    differences = ("difference_to_full", "difference_at_equal_flops", "difference_at_equal_time")
    lines = []
    for folder in folders:
        cells, summary = read(folder)
        rows = [row for row in records_of(summary) if row["verdict"] != "control"]
        if not rows:
            continue
        lines += [*_stands_on(folder, cells, rows[0]), "", line(head), line(["---"] * len(head))]
        for row in sorted(rows, key=lambda row: (row["dataset"], row["scenario"], row["model"])):
            counts = "average_" if row["streamed"] else ""
            said = PHRASES[row["verdict"]]
            said += f", p {probability(row['holm_p'])}" if math.isfinite(row["holm_p"]) else ""
            if row["verdict"] == "undecided" and row["holm_p"] <= LEVEL:
                said += f" ({clean(row['verdict_reason'])})"
            texts = [row["scenario"], clean(row["model"]), clean(row["label"]), str(row["runs"])]
            texts += [spanned(row, "train_time_ratio", "", 2), plus_minus(row, "forward_flops_reduction_percent", 1)]
            texts += [spanned(row, f"{counts}{name}_points") for name in differences]
            lines.append(line([*texts, f"**{said}**" if row["verdict"] == "ahead" else said]))
        name = folder.name
        lines += [
            "",
            "Points of accuracy, of streams (online) the mean over the chunks; 95 % intervals over the seeds; p after "
            f"Holm's correction. Controls, accuracies and slopes: [results/{name}.md](results/{name}.md).",
            "",
            f"![Accuracy against the FLOPs of training, comparison by comparison](results/{name}.svg)",
            "",
            *lead_lines(records_of(cells)),
        ]
    return "\n".join(lines).strip() or NO_EVIDENCE


def _stands_on(folder: Path, cells: pd.DataFrame, row: Mapping[str, Any]) -> list[str]:
    """What a table was made from: runs, machine, versions, commit, days, and what its verdicts were corrected for."""
    from ldbench.reporting.formatting import family

    where = _named(cells, "environment_gpu") or _named(cells, "environment_cpu") or ["?"]
    days = [day[:10] for day in _named(cells, "finished_at")] or ["?"]
    said = f"**{folder.name}**: {len(cells)} runs on {'; '.join(where)}, "
    said += f"torch {', '.join(_named(cells, 'environment_torch')) or '?'}, "
    commits = dict.fromkeys(commit[:8] for commit in _named(cells, "environment_git_commit"))
    said += f"commit {', '.join(commits) or '?'}, "
    return [f"{said}{' to '.join(dict.fromkeys((days[0], days[-1])))}. {family(row)}"]


def evidence_figure(folder: Path) -> str:
    """Accuracy (of streams the mean over the chunks) against the FLOPs of training, by comparison, as SVG."""
    from ldbench.reporting.comparisons import COMPARISON, records_of
    from ldbench.reporting.plots import Point, cost_grid

    panels: dict[str, list[Point]] = {}
    for _, group in read(folder)[1].groupby(COMPARISON, sort=False):
        rows = records_of(group)
        name = "average_accuracy_percent" if rows[0]["streamed"] else "test_accuracy_percent"
        what = ", mean over the chunks" if rows[0]["streamed"] else ""
        panel = panels[f"{rows[0]['model']}, {rows[0]['scenario']}{what}"] = []
        for row in rows:
            flops = tuple(100 - row[f"total_flops_reduction_percent_{part}"] for part in ("mean", "high", "low"))
            reached = tuple(row[f"{name}_{part}"] for part in ("mean", "low", "high"))
            panel.append(Point(row["label"], row["verdict"] == "control", flops, reached, []))
    return cost_grid(panels, "training FLOPs, % of full")


def refreshed(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with what stands between ``<!-- NAME table -->`` and ``<!-- end -->`` replaced.

    Raises ``ValueError`` where there is no such place.
    """
    for name, table in tables.items():
        head, start, rest = text.partition(f"<!-- {name} table -->")
        _, end, tail = rest.partition("<!-- end -->")
        if not start or not end:
            raise ValueError(f"README.md has no place for the {name} table")
        text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    labs, readme = sorted((ROOT / "results" / "gpu").glob("*/lab.json")), ROOT / "README.md"
    evidence = sorted(folder for folder in (ROOT / "results").glob("evidence-*") if folder.is_dir())
    tables = {
        "kernel": kernel_table(labs),
        "evidence": verdict_table(evidence),
        "step": step_table(labs),
        "energy": energy_table(labs),
    }
    before = readme.read_text()
    after = refreshed(before, tables)
    if options.check:
        print("README.md is out of date: python -m benches.tables" if after != before else "README.md is up to date")
        return int(after != before)
    readme.write_text(after)
    for folder in evidence:
        folder.with_suffix(".svg").write_text(evidence_figure(folder))
        folder.with_suffix(".md").write_text(f"# {folder.name}\n\n{evidence_table([folder])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
