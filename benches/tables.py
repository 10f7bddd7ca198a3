"""Refreshes the README's tables and figures from the result files that a lab brought home.

    python -m benches.tables            # rewrites README.md
    python -m benches.tables --check    # exit code 1 if it is out of date

Read are ``results/gpu/*/lab.json`` (of ``benches.lab``, see ``benches.lab_tables``) and ``results/evidence-*.jsonl``
(of the evidence suites, packed by ``ldbench pack``).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benches.lab_tables import energy_table, kernel_table, line, step_table
from benches.leads import lead_lines
from ldbench.reporting.summary import Tables, tabulate

ROOT = Path(__file__).parents[1]
NO_EVIDENCE = (
    "No figures yet; `ldbench run evidence-cpu --out results/evidence-cpu` and `ldbench pack results/evidence-cpu` make "
    "them."
)


@functools.cache
def read(file: Path) -> tuple[pd.DataFrame, Tables]:
    """Runs of a packed file, or of a results folder, and what they come to, once per process."""
    from ldbench.records.results import load_results

    cells = load_results(file)
    return cells, Tables(cells, cells) if cells.empty else tabulate(cells)


def _named(cells: pd.DataFrame, column: str) -> list[str]:
    from ldbench.errors import clean

    return sorted(set(cells[column].dropna().map(clean))) if column in cells else []


def evidence_table(files: Sequence[Path]) -> str:
    """Every method and control against full training and the frontier of shortened training, also what is behind."""
    from ldbench.errors import clean
    from ldbench.reporting.comparisons import COMPARISON, comparison_title, records_of
    from ldbench.reporting.formatting import accuracy, frontier_check, plus_minus, slope, spanned, speed_up, standing

    head = (
        "method", "n", "cheaper, FLOPs", "cheaper, time", "accuracy %", "to full", "time ÷ full", "forward FLOPs - %",
        "FLOPs - %", "equal FLOPs", "equal time", "standing",
    )  # fmt: skip
    lines = []
    for file in files:
        cells, tables = read(file)
        if cells.empty:
            continue
        lines += [*_stands_on(file, cells, tables), "", *_groups(tables)]
        for _, group in tables.lines.groupby(COMPARISON, sort=False):
            rows = records_of(group)
            gained = f"points gained by doubling the budget: {slope(rows[0])}"
            lines += ["", f"{clean(comparison_title(rows[0]))}; {gained}; {frontier_check(rows[0])}"]
            lines += ["", line(head), line(["---"] * len(head))]
            counts = "average_" if rows[0]["streamed"] else ""
            for row in rows:
                texts = [clean(row["label"]), str(row["runs"]), *(speed_up(row, axis) for axis in ("flops", "time"))]
                texts += [accuracy(row), spanned(row, f"{counts}difference_to_full_points")]
                texts.append(spanned(row, "train_time_ratio", "", 2))
                texts += [plus_minus(row, f"{of}_flops_reduction_percent", 1) for of in ("forward", "total")]
                texts += [spanned(row, f"{counts}difference_at_equal_{axis}_points") for axis in ("flops", "time")]
                lines.append(line([*texts, standing(row)]))
        lines.append("")
    return "\n".join(lines).strip() or NO_EVIDENCE


def _groups(tables: Tables) -> list[str]:
    """Every rule over its groups of comparisons, a line each."""
    from ldbench.errors import clean
    from ldbench.reporting.comparisons import records_of
    from ldbench.reporting.formatting import spanned, speed_up, standing

    head = (
        "mean over", "method", "n", "times cheaper at equal accuracy, by FLOPs", "by time", "points at equal FLOPs",
        "points at equal time", "standing",
    )  # fmt: skip
    lines = [line(head), line(["---"] * len(head))]
    for row in sorted(records_of(tables.groups), key=lambda row: (row["standing"], row["kind"], row["model"])):
        said = standing(row)
        texts = [f"{clean(row['model'])}, {row['kind']}: {clean(row['scenarios'])}", clean(row["label"]), str(row["n"])]
        texts += [speed_up(row, axis) for axis in ("flops", "time")]
        texts += [spanned(row, f"lead_{axis}_points") for axis in ("flops", "time")]
        lines.append(line([*texts, f"**{said}**" if row["verdict"] == "ahead" else said]))
    return lines


def verdict_table(files: Sequence[Path]) -> str:
    """Every method that is no control against training less: over its groups of comparisons, and in each of them."""
    from ldbench.errors import clean
    from ldbench.reporting.comparisons import records_of
    from ldbench.reporting.formatting import plus_minus, spanned, speed_up

    head = (
        "scenario", "model", "method", "n", "times cheaper at equal accuracy, by FLOPs", "by time", "time ÷ full",
        "forward FLOPs - %", "points to full", "points at equal FLOPs", "points at equal time",
    )  # fmt: skip
    differences = ("difference_to_full", "difference_at_equal_flops", "difference_at_equal_time")
    lines = []
    for file in files:
        cells, tables = read(file)
        rows = [row for row in records_of(tables.lines) if row["verdict"] != "control"]
        if not rows:
            continue
        lines += [*_stands_on(file, cells, tables), "", *_groups(tables), "", line(head), line(["---"] * len(head))]
        for row in sorted(rows, key=lambda row: (row["dataset"], row["scenario"], row["model"])):
            counts = "average_" if row["streamed"] else ""
            texts = [row["scenario"], clean(row["model"]), clean(row["label"]), str(row["runs"])]
            texts += [speed_up(row, axis) for axis in ("flops", "time")]
            texts += [spanned(row, "train_time_ratio", "", 2), plus_minus(row, "forward_flops_reduction_percent", 1)]
            lines.append(line([*texts, *(spanned(row, f"{counts}{name}_points") for name in differences)]))
        name = file.stem
        lines += [
            "",
            "Points of accuracy, of streams (online) the mean over the chunks; 95 % intervals over the seeds, each by "
            f"itself. Controls, accuracies, slopes and the frontiers' own check: [results/{name}.md](results/{name}.md).",
            "",
            f"![Accuracy against the FLOPs of training, comparison by comparison](results/{name}.svg)",
            "",
            *lead_lines(cells),
        ]
    return "\n".join(lines).strip() or NO_EVIDENCE


def _stands_on(file: Path, cells: pd.DataFrame, tables: Tables) -> list[str]:
    """What a table was made from: runs, machine, versions, commit, days, and what was declared before."""
    from ldbench.reporting.comparisons import records_of
    from ldbench.reporting.sentences import family

    where = _named(cells, "environment_gpu") or _named(cells, "environment_cpu") or ["?"]
    days = [day[:10] for day in _named(cells, "finished_at")] or ["?"]
    said = f"**{file.stem}**: {len(cells)} runs on {'; '.join(where)}, "
    said += f"torch {', '.join(_named(cells, 'environment_torch')) or '?'}, "
    commits = dict.fromkeys(commit[:8] for commit in _named(cells, "environment_git_commit"))
    said += f"commit {', '.join(commits) or '?'}, "
    return [f"{said}{' to '.join(dict.fromkeys((days[0], days[-1])))}. {family(records_of(tables.groups))}"]


def evidence_figure(file: Path) -> str:
    """Accuracy (of streams the mean over the chunks) against the FLOPs of training, by comparison, as SVG."""
    from ldbench.reporting.comparisons import COMPARISON, records_of
    from ldbench.reporting.plots import Point, cost_grid

    panels: dict[str, list[Point]] = {}
    for _, group in read(file)[1].lines.groupby(COMPARISON, sort=False):
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
    evidence = sorted((ROOT / "results").glob("evidence-*.jsonl"))
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
    for file in evidence:
        file.with_suffix(".svg").write_text(evidence_figure(file))
        file.with_suffix(".md").write_text(f"# {file.stem}\n\n{evidence_table([file])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
