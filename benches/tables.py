"""Refreshes the tables of README.md and the pages, and the figures, from the result files that are committed.

    python -m benches.tables            # rewrites README.md, pages of docs, results/evidence-*.md and the figures
    python -m benches.tables --check    # exit code 1 if README.md or a page is out of date

Read are ``results/gpu/*/lab.json`` (of ``benches.lab``, see ``benches.lab_tables``), ``results/equivariance.json`` (of
``benches.equivariance``) and, of suites and packed by ``ldbench pack``, ``results/paper-cpu*.jsonl``,
``results/paper-beyond.jsonl`` and ``results/evidence-*.jsonl``. Of the last there is a page and a figure each in ``results``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benches import augmented, equivariance
from benches.lab_tables import energy_table, kernel_table, line, step_table
from benches.leads import ranking_lines
from ldbench.reporting.comparisons import COMPARISON
from ldbench.reporting.summary import Tables, tabulate

ROOT = Path(__file__).parents[1]
# In this order; those whose claims were declared. Every file has a page of its own.
ON_THE_PAGE = ("evidence-cpu", "evidence-confirm", "evidence-long")
PAPER, BEYOND = "paper-cpu", "paper-beyond"
NO_PAPER = (
    "No figures yet; `ldbench run {0} --out DIR` and `ldbench pack DIR --brief --out results/{0}.jsonl` make them."
)
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
    from ldbench.reporting.comparisons import comparison_title, records_of
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
        lines += [*_stands_on(file, cells, tables), "", *_groups(tables), "", *ranking_lines(cells)]
        for _, group in tables.lines.groupby(COMPARISON, sort=False):
            rows = records_of(group)
            gained = f"points gained by doubling the budget: {slope(rows[0])}"
            lines += [f"{clean(comparison_title(rows[0]))}; {gained}; {frontier_check(rows[0])}"]
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
    several = tables.lines["dataset"].nunique() > 1
    for row in sorted(records_of(tables.groups), key=lambda row: (row["standing"], row["kind"], row["model"])):
        said = standing(row)
        over = " on ".join(clean(row[name]) for name in ("scenarios", "datasets")[: 1 + several])
        texts = [f"{clean(row['model'])}, {row['kind']}: {over}", clean(row["label"]), str(row["n"])]
        texts += [speed_up(row, axis) for axis in ("flops", "time")]
        texts += [spanned(row, f"lead_{axis}_points") for axis in ("flops", "time")]
        lines.append(line([*texts, f"**{said}**" if row["verdict"] == "ahead" else said]))
    return lines


def verdict_table(files: Sequence[Path]) -> str:
    """Every rule against training less: over its groups of comparisons, and over all of them together."""
    lines = []
    for file in files:
        cells, tables = read(file)
        if not (tables.lines.get("verdict", "control") != "control").any():
            continue
        lines += [*_stands_on(file, cells, tables), ""]
        ranked = ranking_lines(cells)
        if not ranked or len(tables.lines.groupby(COMPARISON)) > 1:
            lines += [*_groups(tables), ""]
        lines += ranked
        name = file.stem
        lines += [
            "Points of accuracy, of streams (online) the mean over the chunks; 95 % intervals over the seeds, each by itself. "
            "Comparison by comparison, with controls, accuracies, slopes and the frontiers' own check: "
            f"[results/{name}.md](../results/{name}.md).",
            "",
            f"![Accuracy against the FLOPs of training, comparison by comparison](../results/{name}.svg)",
            "",
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
    from ldbench.reporting.comparisons import records_of
    from ldbench.reporting.plots import Point, cost_grid

    panels: dict[str, list[Point]] = {}
    several = read(file)[1].lines["dataset"].nunique() > 1
    for _, group in read(file)[1].lines.groupby(COMPARISON, sort=False):
        rows = records_of(group)
        name = "average_accuracy_percent" if rows[0]["streamed"] else "test_accuracy_percent"
        what = ", mean over the chunks" if rows[0]["streamed"] else ""
        where = f"{rows[0]['dataset']}, " if several else ""
        panel = panels[f"{rows[0]['model']}, {where}{rows[0]['scenario']}{what}"] = []
        for row in rows:
            flops = tuple(100 - row[f"total_flops_reduction_percent_{part}"] for part in ("mean", "high", "low"))
            reached = tuple(row[f"{name}_{part}"] for part in ("mean", "low", "high"))
            panel.append(Point(row["label"], row["verdict"] == "control", flops, reached, []))
    return cost_grid(panels, "training FLOPs, % of full")


def augmentation_tables() -> dict[str, str]:
    """Those of the page on augmentation."""
    told = dict.fromkeys((*augmented.SUITES, "equivariance"), "No figures yet.")
    for name in augmented.SUITES:
        if (file := ROOT / "results" / f"{name}.jsonl").exists():
            cells, tables = read(file)
            told[name] = "\n".join([*_stands_on(file, cells, tables), "", *augmented.table(name, cells)])
    if (images := ROOT / "results" / "equivariance.json").exists():
        told["equivariance"] = "\n".join(equivariance.table(json.loads(images.read_text(encoding="utf-8"))))
    return told


def paper_files() -> list[Path]:
    """The packed runs of ``paper-cpu``, a file or several, such as one for each data set."""
    return sorted((ROOT / "results").glob(f"{PAPER}*.jsonl"))


def paper_lines(files: Sequence[Path]) -> pd.DataFrame:
    """What the runs in these files come to, in one table."""
    return pd.concat([read(file)[1].lines for file in files], ignore_index=True)


def paper_tables() -> dict[str, str]:
    """Those of the page beside the Learn&Drop paper, and the README's one of them."""
    from ldbench.records.stored import stored
    from ldbench.reporting import beside_paper as beside

    told = dict.fromkeys(
        ("paper", "paper claims", "paper setup", "paper stages", "paper in short"), NO_PAPER.format(PAPER)
    )
    told["beyond"] = NO_PAPER.format(BEYOND)
    if files := paper_files():
        parts = [read(file) for file in files]
        heads = [line for file, part in zip(files, parts, strict=True) for line in _stands_on(file, *part)]
        head = "\n\n".join(heads)
        lines, cells = paper_lines(files), pd.concat([cells for cells, _ in parts])
        costs = [table for file in files for table in beside.cost_tables(stored(file))]
        told["paper"] = "\n".join([head, "", *_markdown(beside.HEAD, beside.rows_beside(lines))])
        told["paper claims"] = "\n".join(_markdown(beside.CLAIM_HEAD, beside.claim_rows(lines)))
        told["paper setup"] = "\n".join(_markdown(beside.SETUP_HEAD, beside.setup_rows(cells)))
        told["paper stages"] = "\n".join(_markdown(beside.STAGE_HEAD, beside.stage_rows(costs)))
        own = lines[(lines["method"] == "learn-and-drop") | (lines["verdict"] == "control")]
        told["paper in short"] = "\n".join([head, "", *_markdown(beside.SHORT_HEAD, beside.short_rows(own))])
    if (file := ROOT / "results" / f"{BEYOND}.jsonl").exists():
        cells, tables = read(file)
        told["beyond"] = "\n".join(
            [*_stands_on(file, cells, tables), "", *_markdown(beside.BEYOND_HEAD, beside.beyond_rows(tables.lines))]
        )
    return told


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def refreshed(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with what stands between ``<!-- NAME table -->`` and ``<!-- end -->`` replaced.

    Raises ``ValueError`` where there is no such place.
    """
    for name, table in tables.items():
        head, start, rest = text.partition(f"<!-- {name} table -->")
        _, end, tail = rest.partition("<!-- end -->")
        if not start or not end:
            raise ValueError(f"the text has no place for the {name} table")
        text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    labs, docs = sorted((ROOT / "results" / "gpu").glob("*/lab.json")), ROOT / "docs"
    evidence = sorted((ROOT / "results").glob("evidence-*.jsonl"))
    told = [file for name in ON_THE_PAGE for file in evidence if file.stem == name]
    beside = paper_tables()
    tables = {
        ROOT / "README.md": {"paper": beside.pop("paper in short")},
        docs / "paper.md": beside,
        docs / "evidence.md": {"evidence": verdict_table(told)},
        docs / "kernels.md": {"kernel": kernel_table(labs)},
        docs / "lab.md": {"step": step_table(labs), "energy": energy_table(labs)},
        docs / "augmentation.md": augmentation_tables(),
    }
    made = {path: refreshed(path.read_text(encoding="utf-8"), some) for path, some in tables.items()}
    for file in evidence:
        made[file.with_suffix(".md")] = f"# {file.stem}\n\n{evidence_table([file])}\n"
    if options.check:
        stale = [
            path.name for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        print(
            f"{', '.join(stale)} out of date: python -m benches.tables"
            if stale
            else "README.md and pages are up to date"
        )
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    if packed := paper_files():
        from ldbench.reporting.beside_paper import depth_picture

        picture = ROOT / "results" / f"{PAPER}.svg"
        picture.write_text(depth_picture(paper_lines(packed)), encoding="utf-8")
    for file in evidence:
        file.with_suffix(".svg").write_text(evidence_figure(file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
