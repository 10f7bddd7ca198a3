"""The results as LaTeX, Markdown, CSV and JSON."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from support.report_records import ENVIRONMENT, make_record, write_cell, write_grid

from ldbench.errors import UserError
from ldbench.records.results import load_results
from ldbench.reporting.exports import COLUMNS, FORMATS, USUAL, columns_named, export, in_latex, protocol
from ldbench.reporting.summary import summarize

ODD = r"a|b&c_%$#{}~^\d<e>[f](g)"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = tmp_path_factory.mktemp("grid")
    write_grid(out, methods=["learn-and-drop"])
    write_grid(out, seeds=range(3), methods=["freeze"], model=ODD)
    for seed in range(3):
        write_cell(out, make_record("learn-and-drop", seed, model=ODD, status="failed", error="out of memory"))
    cells = load_results(out)
    return cells, summarize(cells)


def test_csv_and_json_hold_the_numbers_of_the_table(grid: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, lines = grid
    names = ("full", "cheaper-flops", "time")
    told = pd.read_csv(io.StringIO(export(cells, lines, "csv", names)))
    again = pd.DataFrame(json.loads(export(cells, lines, "json", names)))
    assert list(told.columns) == list(again.columns)
    assert list(told.columns[:6]) == ["model", "dataset", "scenario", "setting", "method", "label"]
    fields = [field for name in names for field in COLUMNS[name].fields]
    assert list(told.columns[6:]) == fields
    for name in fields:
        if not name.endswith("bound"):
            assert told[name].to_numpy() == pytest.approx(lines[name].to_numpy(), nan_ok=True)
            finite = lines[name].replace(math.inf, math.nan).to_numpy()  # JSON knows no infinity
            assert again[name].astype(float).to_numpy() == pytest.approx(finite, nan_ok=True)
    assert list(told["model"]) == list(lines["model"])


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_column_is_there_in_every_format(name: str, form: str, grid: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    text = export(*grid, form, [name])
    assert text.endswith("\n")
    assert "nan" not in text.lower().replace("nan ", "") or form == "csv"


def test_a_markdown_table_is_one_whatever_a_model_is_called(grid: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    text = export(*grid, "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == len(grid[1]) + 2 * 2
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(USUAL) + 2}
    assert r"**a\|b&c\_%$#{}~^\\d\<e\>[f]\(g) on" in text
    assert "| learn-and-drop | 0, 3 failed | n/a |" in text
    assert text.splitlines()[-1] == protocol(*grid)


def test_a_latex_table_is_one_whatever_a_model_is_called(grid: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    text = export(*grid, "latex")
    assert r"\begin{longtable}{lrrrrrrrr}" in text
    rows = [line for line in text.splitlines() if line.endswith(r" \\") and not line.startswith(r"\multicolumn")]
    assert len(rows) == len(grid[1]) + 2
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(USUAL)}
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert not re.search(r"(?<!\\)[#_^~]", text.replace(r"\textasciitilde{}", "").replace(r"\textasciicircum{}", ""))
    assert (
        r"\multicolumn{9}{l}{\textbf{a\textbar{}b\&c\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}d$<$e$>$[f](g) on"
        in text
    )


def test_numbers_with_a_sign_are_set_as_numbers() -> None:
    assert in_latex("-0.35 [-1.10, +0.80]") == "$-0.35$ [$-1.10$, $+0.80$]"
    assert in_latex("learn-and-drop, 91.2 ± 0.4, lr=-1e-3") == r"learn-and-drop, 91.2 $\pm$ 0.4, lr=$-1$e-3"


def test_what_a_paper_has_to_say_is_said(grid: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    told = protocol(*grid)
    assert "interval (Student's t) over 3 to 5 seeds; accuracy on 2,000 test images." in told
    assert f"torch {ENVIRONMENT['torch']}" in told
    write_cell(tmp_path, make_record("full", 0))
    cells = load_results(tmp_path)
    assert protocol(cells, summarize(cells)).startswith("One seed, without intervals; accuracy on 2,000 test images. ")


def test_where_no_run_finished_the_table_says_so(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0, status="failed", error="out of memory"))
    cells = load_results(tmp_path)
    text = export(cells, summarize(cells), "markdown")
    assert "| full | 0, 1 failed |" in text
    assert "\nNo run finished" in text


def test_columns_are_asked_for_by_name() -> None:
    assert columns_named(None) == USUAL
    assert columns_named("time, n") == ("time", "n")
    for text, said in (("tim", "did you mean time"), ("n,n", "twice"), ("", "is no column"), ("n,", "is no column")):
        with pytest.raises(UserError, match=said):
            columns_named(text)


def test_nothing_makes_no_table(tmp_path: Path) -> None:
    cells = load_results(write_grid(tmp_path, seeds=range(1), methods=[]))
    with pytest.raises(UserError, match="no finished run"):
        export(cells, summarize(cells).head(0), "latex")
    assert math.isnan(summarize(cells)["energy_joules_mean"].iloc[0])
