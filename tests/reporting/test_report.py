"""From written records to table, page and CSV: right numbers, nothing hidden, nothing executed."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from scipy.interpolate import PchipInterpolator
from support.report_records import DIGEST, EFFECTS, ENVIRONMENT, frontier, make_record, write_cell, write_grid

from ldbench.errors import UserError, clean
from ldbench.io.checksums import write_sealed
from ldbench.records.results import load_results, unpack_correct
from ldbench.records.tuning import group_key
from ldbench.reporting.formatting import quantity
from ldbench.reporting.plots import Point, cost_figure
from ldbench.reporting.report import print_table, write_report
from ldbench.reporting.stats import Estimate
from ldbench.reporting.summary import frontier_state, summarize, tabulate

HOSTILE = "<script>alert(1)</script>\"'&../../$\\frac$ [bold]\x1b[31m\u202e"


def row_of(summary: pd.DataFrame, label: str) -> dict[str, Any]:
    rows = summary[summary["label"] == label].to_dict("records")
    assert len(rows) == 1
    return {str(key): value for key, value in rows[0].items()}


def printed(results: pd.DataFrame, width: int) -> str:
    stream = io.StringIO()
    print_table(Console(file=stream, width=width), results)
    return stream.getvalue()


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_cell_becomes_a_row_with_its_bits(tmp_path: Path) -> None:
    cells = load_results(write_grid(tmp_path, seeds=range(2)))
    assert len(cells) == 2 * (4 + len(EFFECTS))
    assert cells.attrs["left_out"] == []
    first = cells.iloc[0]
    bits = unpack_correct(first["test_correct"], first["test_images"])
    assert bits is not None
    assert (bits.size, bits.mean()) == (2000, pytest.approx(first["test_accuracy"]))
    assert first["environment_cpu"] == "Test CPU"
    assert "stages" not in cells
    assert len(load_results(tmp_path, stages=True)["stages"].iloc[0]) == first["stage_count"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ("{}", "schema_version is None"),
        ('{"schema_version": 2}', "newer ldbench"),
        ("[" * 100_000, "cannot be read"),
        (json.dumps(make_record("full", 0) | {"seed": "x"}), "seed is"),
        (json.dumps(make_record("full", 0) | {"model": 3}), "model is 3"),
        (json.dumps(make_record("full", 0) | {"status": "great"}), "status is"),
        (json.dumps(make_record("full", 0) | {"train_seconds": "fast"}), "not a number"),
        (json.dumps(make_record("full", 0) | {"train_seconds": 10**400}), "beyond any number"),
        (json.dumps(make_record("full", 0) | {"test_accuracy": None}), "test_accuracy None"),
        (json.dumps(make_record("full", 0) | {"test_accuracy": 91.0}), "test_accuracy 91"),
        (json.dumps(make_record("full", 0) | {"test_correct_base64": "?"}), "not base64"),
        (json.dumps(make_record("full", 0) | {"test_correct_base64": "AAAA"}), "does not hold 2000"),
        (json.dumps(make_record("full", 0) | {"test_accuracy": 0.5}), "disagrees"),
    ],
)
def test_a_damaged_record_is_left_out_by_name_and_the_others_stay(tmp_path: Path, text: str, reason: str) -> None:
    write_cell(tmp_path, make_record("full", 1))
    (tmp_path / "cells" / "bad").mkdir()
    (tmp_path / "cells" / "bad" / "result.json").write_text(text)
    cells = load_results(tmp_path)
    assert len(cells) == 1
    [(path, said)] = cells.attrs["left_out"]
    assert path == "cells/bad/result.json"
    assert reason in said
    assert "cells/bad/result.json" in write_report(tmp_path).read_text()


def test_a_cell_without_a_result_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "cells" / "running").mkdir(parents=True)
    assert load_results(tmp_path).attrs["left_out"] == [
        ("cells/running/result.json", "no result.json: still running, or interrupted")
    ]
    with pytest.raises(UserError, match=r"no finished run to report.*still running"):
        write_report(tmp_path)


def test_a_folder_without_results_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ldbench run --out"):
        load_results(tmp_path)


# --- statistics on records -------------------------------------------------------------------------------------------


def test_summary_agrees_with_a_calculation_by_hand(tmp_path: Path) -> None:
    cells = load_results(write_grid(tmp_path))
    row = row_of(summarize(cells), "learn-and-drop")
    pick = {m: cells[cells["method"] == m].set_index("seed") for m in ("full", "learn-and-drop")}
    ours, full = pick["learn-and-drop"], pick["full"]
    interval = stats.ttest_rel(ours["test_accuracy"], full["test_accuracy"]).confidence_interval(0.95)
    assert row["difference_to_full_points_low"] == pytest.approx(100 * interval.low)
    assert row["difference_to_full_points_high"] == pytest.approx(100 * interval.high)
    expected = []
    for seed in ours.index:
        controls = cells[(cells["seed"] == seed) & cells["method"].isin(("full", "short"))].sort_values("train_seconds")
        cost, costs = np.log(ours.loc[seed, "train_seconds"]), np.log(controls["train_seconds"])
        curve = PchipInterpolator(costs, controls["test_accuracy"])
        expected.append(100 * (ours.loc[seed, "test_accuracy"] - curve(cost)))
    assert row["difference_at_equal_time_points_mean"] == pytest.approx(np.mean(expected))
    logs = np.log(ours["train_seconds"] / full["train_seconds"])
    assert row["train_time_ratio_mean"] == pytest.approx(np.exp(logs.mean()))
    assert row["forward_flops_reduction_percent_mean"] == pytest.approx(40)
    saved = full["train_seconds"] - ours["train_seconds"]
    assert row["realised_over_predicted_mean"] == pytest.approx(saved.sum() / ours["predicted_saved_seconds"].sum())


def test_verdicts_follow_the_effects_put_in(tmp_path: Path) -> None:
    for rule, verdict in (("learn-and-drop", "ahead"), ("freezeout", "behind")):
        summary = summarize(load_results(write_grid(tmp_path / rule, seeds=range(8), declared=rule)))
        verdicts = dict(zip(summary["label"], summary["verdict"], strict=True))
        assert verdicts[rule] == verdict
        assert verdicts["full"] == verdicts["short 0.5"] == "control"
        assert verdicts["freeze"] == "exploratory"
        assert list(summary["label"])[:5] == ["short 0.25", "short 0.5", "short 0.75", "full", "learn-and-drop"]
        assert set(summary["frontier_state"]) == {"sloping"}
        assert summary["frontier_slope_points_per_doubling_mean"].iloc[0] == pytest.approx(2.0, abs=0.15)


def test_one_seed_is_an_anecdote_and_never_a_verdict(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=[4], declared="learn-and-drop")
    [first, *_] = tabulate(load_results(tmp_path)).groups.to_dict("records")
    assert (first["verdict"], first["verdict_reason"]) == ("undecided", "one seed is an anecdote")
    assert "anecdote" in printed(load_results(tmp_path), 80)
    assert "anecdote" in write_report(tmp_path).read_text()


def test_a_cost_below_the_cheapest_budget_is_not_extrapolated(tmp_path: Path) -> None:
    for seed in range(3):
        write_cell(tmp_path, make_record("full", seed))
        write_cell(tmp_path, make_record("short", seed, budget=0.75))
        write_cell(tmp_path, make_record("learn-and-drop", seed))
    row = row_of(summarize(load_results(tmp_path)), "learn-and-drop")
    assert row["verdict"] == "n/a"
    assert row["verdict_reason"] == "costs less than the cheapest budget"
    assert np.isnan(row["difference_at_equal_flops_points_mean"])
    assert "costs less than the cheapest budget" in write_report(tmp_path).read_text()


def test_without_short_runs_there_is_a_reason_instead_of_a_number(tmp_path: Path) -> None:
    for seed in range(2):
        write_cell(tmp_path, make_record("full", seed))
        write_cell(tmp_path, make_record("freeze", seed))
    row = row_of(summarize(load_results(tmp_path)), "freeze")
    assert (row["verdict"], row["verdict_reason"]) == ("n/a", "no short run to compare with")
    assert row["frontier_state"] == "no short run"
    assert row["difference_to_full_points_n"] == 2


def test_diverged_and_failed_runs_are_counted_and_forbid_ahead(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(8), declared="learn-and-drop")
    lost = {"status": "diverged", "test_accuracy": None, "test_correct_base64": None, "error": "not finite"}
    write_cell(tmp_path, make_record("learn-and-drop", 7, claims_sha256=DIGEST) | lost)
    few = {"schema_version": 1, "model": "vgg11_bn", "dataset": "fashion-mnist", "method": "freeze", "seed": 9}
    write_cell(tmp_path, few | {"budget": None, "status": "failed", "error": "boom"}, lines=False)
    summary = summarize(load_results(tmp_path))
    row = row_of(summary, "learn-and-drop")
    assert (row["runs"], row["diverged"], row["test_accuracy_percent_n"]) == (7, 1, 7)
    assert row["verdict"] == "exploratory"
    [group, *_] = tabulate(load_results(tmp_path)).groups.to_dict("records")
    assert (group["verdict"], group["verdict_reason"]) == ("undecided", "1 runs did not finish")
    assert row_of(summary, "freeze")["failed"] == 1
    page = write_report(tmp_path).read_text()
    assert "not finite" in page
    assert "boom" in page
    assert "7, 1 diverged" in printed(load_results(tmp_path), 120)


def test_a_saturated_recipe_is_flagged(tmp_path: Path) -> None:
    for seed in range(5):
        for method, budget in (("full", None), ("short", 0.25), ("short", 0.5), ("learn-and-drop", None)):
            noise = 0.001 * np.random.default_rng([seed, int(100 * (budget or 1))]).standard_normal()
            record = make_record(method, seed, budget=budget)
            write_cell(tmp_path, record | {"test_accuracy": 0.99 + noise, "test_correct_base64": None})
    summary = summarize(load_results(tmp_path))
    assert set(summary["frontier_state"]) == {"saturated"}
    assert "saturated: cannot tell methods apart" in printed(load_results(tmp_path), 120)
    assert "saturated: cannot tell methods apart" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("slope", "state"),
    [
        (Estimate(0.187, -0.369, 0.742, 2), "unclear"),  # two seeds: 18.7 points per doubling, give or take 55
        (Estimate(0.001, -0.003, 0.005, 6), "saturated"),
        (Estimate(0.001, -0.003, 0.0051, 6), "unclear"),
        (Estimate(-0.01, -0.03, 0.001, 6), "saturated"),
        (Estimate(0.02, 0.01, 0.03, 6), "sloping"),
        (Estimate(-0.02, -0.03, -0.01, 6), "falling"),
        (Estimate(0.02, n=1), "one seed"),
        (Estimate(), "no short run"),
    ],
)
def test_saturated_is_said_only_where_a_gain_worth_having_is_excluded(slope: Estimate, state: str) -> None:
    assert frontier_state(slope) == state


def test_a_steep_frontier_from_two_scattered_seeds_is_not_called_saturated(tmp_path: Path) -> None:
    for seed, gain in enumerate((0.05, 0.30)):
        for method, budget in (("full", None), ("short", 0.5)):
            record = make_record(method, seed, budget=budget)
            accuracy = 0.9 - gain * (budget is not None)
            write_cell(tmp_path, record | {"test_accuracy": accuracy, "test_correct_base64": None})
    text = printed(load_results(tmp_path), 120)
    assert "too few seeds to tell whether saturated" in text
    assert "cannot tell methods apart" not in text


def test_times_from_mixed_hardware_warn_and_decide_nothing(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(8), declared="learn-and-drop")
    other = {"environment": ENVIRONMENT | {"cpu": "Other CPU"}}
    write_cell(tmp_path, make_record("full", 3, claims_sha256=DIGEST) | other)
    summary = summarize(load_results(tmp_path))
    row = row_of(summary, "learn-and-drop")
    assert "mixed hardware in one comparison: cpu: Test CPU" in row["warnings"]
    [group, *_] = tabulate(load_results(tmp_path)).groups.to_dict("records")
    assert (group["standing"], group["verdict"]) == ("declared", "undecided")
    assert "Warning: mixed hardware" in write_report(tmp_path).read_text()


def test_different_settings_and_policies_are_never_pooled(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        for method in ("full", "learn-and-drop"):
            write_cell(tmp_path, make_record(method, 0), lr=rate)
    write_cell(tmp_path, make_record("learn-and-drop", 0), lr=0.1, policy={"patience": 3})
    summary = summarize(load_results(tmp_path))
    assert sorted(summary["setting_label"].unique()) == ["lr=0.1", "lr=0.2"]
    labels = set(summary[summary["setting_label"] == "lr=0.1"]["label"])
    assert labels == {"full", "learn-and-drop (patience=3)", "learn-and-drop (default options)"}
    assert set(summary["runs"]) == {1}


def test_options_that_were_set_are_told_where_every_run_has_them_too(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0))
    write_cell(tmp_path, make_record("short", 0, budget=0.5))
    write_cell(tmp_path, make_record("learn-and-drop", 0), policy={"waits": False, "pace": 2.0})
    labels = set(summarize(load_results(tmp_path))["label"])
    assert labels == {"full", "short 0.5", "learn-and-drop (pace=2.0, waits=false)"}


def test_a_repeated_seed_is_reported_and_not_counted_twice(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2), methods=())
    folder = tmp_path / "cells" / "zz-copy"
    folder.mkdir()
    source = next(path for path in (tmp_path / "cells").iterdir() if "full" in path.name)
    for name in ("result.json", "config.json"):
        (folder / name).write_text((source / name).read_text())
    row = row_of(summarize(load_results(tmp_path)), "full")
    assert row["runs"] == 2
    assert "1 cells repeat a seed" in row["warnings"]


def test_synthetic_data_shows_no_accuracy(tmp_path: Path) -> None:
    for method, budget in (("full", None), ("short", 0.5), ("learn-and-drop", None)):
        write_cell(tmp_path, make_record(method, 0, budget=budget) | {"synthetic": True})
    summary = summarize(load_results(tmp_path))
    assert summary["test_accuracy_percent_n"].sum() == 0
    assert row_of(summary, "learn-and-drop")["verdict_reason"] == "synthetic data"
    assert row_of(summary, "learn-and-drop")["train_seconds_n"] == 1
    assert "synthetic data" in write_report(tmp_path).read_text()


def test_energy_is_a_number_with_its_bound_or_a_reason(tmp_path: Path) -> None:
    read = {"energy_joules": 5000.0, "energy_bound_joules": 50.0, "energy_unavailable_reason": None}
    write_cell(tmp_path, make_record("full", 0) | read)
    write_cell(tmp_path, make_record("short", 0, budget=0.5))
    text = write_report(tmp_path).read_text()
    assert "5000, read to" in text
    assert text.count("unavailable: training ran on the CPU") == 1, "told once, under the table"
    assert "unavailable: training ran on the CPU (short 0.5)" in text
    assert ">unavailable<" in text


def test_the_cost_to_the_target_counts_misses(tmp_path: Path) -> None:
    read = {"energy_joules": 5000.0, "energy_bound_joules": 50.0, "energy_unavailable_reason": None}
    unknown = {"test_correct_base64": None}
    for seed, (whole, method) in enumerate([(0.90, 0.90), (0.90, 0.80), (0.90, 0.8951)]):
        write_cell(tmp_path, make_record("full", seed, test_accuracy=whole, train_seconds=100.0, **unknown) | read)
        changes = {"test_accuracy": method, "train_seconds": 60.0}
        write_cell(
            tmp_path, make_record("learn-and-drop", seed, **unknown) | read | changes | {"energy_joules": 3000.0}
        )
    row = row_of(summarize(load_results(tmp_path)), "learn-and-drop")
    assert row["target_accuracy_percent"] == pytest.approx(89.5)
    assert (row["target_hits"], row["target_runs"]) == (2, 3)
    assert row["train_seconds_to_target"] == pytest.approx(3 * 60 / 2)
    assert row["energy_joules_to_target"] == pytest.approx(3 * 3000 / 2)
    text = write_report(tmp_path).read_text()
    assert "90.0 [63.9, 289] s" in text.replace("&nbsp;", " ")
    assert "27.0 [19.2, 86.7] TFLOP" in text.replace("&nbsp;", " ")
    assert "4500 [" in text
    assert "2 of 3 runs reach 89.50 %" in text


def test_a_method_that_never_reaches_the_target_has_no_cost_to_it(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0, test_accuracy=0.9, test_correct_base64=None))
    write_cell(tmp_path, make_record("learn-and-drop", 0, test_accuracy=0.5, test_correct_base64=None))
    row = row_of(summarize(load_results(tmp_path)), "learn-and-drop")
    assert math.isnan(row["train_seconds_to_target"])
    text = write_report(tmp_path).read_text()
    assert "0 of 1 runs reach 89.50 %" in text
    assert ">never<" in text


def test_runs_at_chance_level_are_flagged(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0) | {"at_chance": True})
    summary = summarize(load_results(tmp_path))
    assert "1 at chance level" in printed(load_results(tmp_path), 120)
    assert "the recipe does not work here" in summary["warnings"].iloc[0]


# --- what is shown ---------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def figures(page: Outline) -> list[str]:
    head = "data:image/svg+xml;base64,"
    return [base64.b64decode(v.removeprefix(head)).decode() for k, v in page.attributes if k == "src" and v]


def test_the_page_is_self_contained_and_has_every_part(tmp_path: Path) -> None:
    path = write_report(write_grid(tmp_path))
    page = outline(path)
    assert path == tmp_path / "report" / "index.html"
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form"}
    urls = [value or "" for key, value in page.attributes if key in ("src", "href")]
    assert all(url.startswith(("data:image/svg+xml;base64,", "#")) for url in urls)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    for part in (
        "Accuracy",
        "Cost",
        "Drops, made and declined",
        "Environment",
        "How to read",
        "Left out",
        "Experiment",
    ):
        assert part in page.text
    alternatives = {value for key, value in page.attributes if key == "alt"}
    for kind in ("accuracy against cost", "live stages", "cost breakdown", "scores per stage"):
        assert f"{kind}{' over epochs' if kind == 'live stages' else ''}, vgg11_bn on fashion-mnist" in alternatives
    assert "does not pay" in page.text


def test_every_figure_is_well_formed_and_without_scripts(tmp_path: Path) -> None:
    drawn = figures(outline(write_report(write_grid(tmp_path, seeds=range(2)))))
    assert len(drawn) == 6
    for svg in drawn:
        tags = {element.tag.rsplit("}", 1)[-1] for element in ElementTree.fromstring(svg).iter()}
        assert "script" not in tags


def test_the_front_is_ringed_and_its_methods_named() -> None:
    points = [
        Point("full", True, (3, 3, 3), (90, 90, 90), [], True),
        Point("good", False, (2, 2, 2), (89, 89, 89), [], True),
        Point("bad", False, (2.5, 2.5, 2.5), (88, 88, 88), [], False),
    ]
    plain = cost_figure("time", [point._replace(front=False) for point in points])
    ringed = cost_figure("time", points)
    # Text is drawn as paths: a comment before each says what it reads.
    named = [len(re.findall(r"<!-- good -->", svg)) for svg in (plain, ringed)]
    assert named == [1, 2], "in the legend, and at the ringed point"
    assert len(re.findall(r"<!-- bad -->", ringed)) == 1


def test_hostile_names_do_no_harm(tmp_path: Path) -> None:
    names: dict[str, Any] = {
        "model": HOSTILE,
        "dataset": "../../" + HOSTILE,
        "error": HOSTILE,
        "peak_memory_kind": HOSTILE,
    }
    names |= {"environment": {HOSTILE: HOSTILE, "cpu": HOSTILE}, "augmentation_after_drop": HOSTILE}
    for method, budget in ((HOSTILE, None), ("full", None), ("short", 0.5), ("learn-and-drop", None)):
        record = make_record(method, 0, budget=budget) | names
        record["stages"] = [{"name": HOSTILE}] * 8
        record["drops"] = [{"step": 1, "cut": HOSTILE, "reason": HOSTILE, "store_bytes": HOSTILE}, HOSTILE]
        write_cell(tmp_path, record, policy={HOSTILE: HOSTILE}, lr=HOSTILE)
    (tmp_path / "experiment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    page = outline(write_report(tmp_path))
    assert before == {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    for svg in figures(page):
        ElementTree.fromstring(svg)
    text = printed(load_results(tmp_path), 120)
    assert "[bold]" in text
    assert "\x1b" not in text


def test_records_with_odd_but_legal_values_make_a_page(tmp_path: Path) -> None:
    record = make_record("learn-and-drop", 0) | {"drops": [{}], "declined": [{"cut": None}], "stages": []}
    folder = write_cell(tmp_path, record | {"forward_flops_full": 0, "backward_flops_full": None, "train_seconds": 0})
    (folder / "epochs.jsonl").write_text('{"epoch": 0, "live_stages": "x"}\n[1]\n{"torn')
    (folder / "scores.jsonl").write_text('{"step": 1, "change": 3}\n{"step": 2}\n{"step": null}\n')
    full = write_cell(tmp_path, make_record("full", 0) | {"environment": None}, lines=False)
    (full / "config.json").write_text("{")
    (tmp_path / "experiment.json").unlink(missing_ok=True)
    assert "no experiment.json" in outline(write_report(tmp_path)).text


def test_csv_has_units_reads_back_and_holds_no_formulas(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2))
    write_cell(tmp_path, make_record("full", 0) | {"model": "=HYPERLINK(1)"})
    write_report(tmp_path)
    table, cells, drops = (pd.read_csv(tmp_path / "report" / f"{n}.csv") for n in ("table", "cells", "drops"))
    assert len(table) == 8
    assert "difference_at_equal_time_points_mean" in table
    assert len(cells) == 15
    assert {"test_accuracy_fraction", "train_seconds", "peak_memory_bytes", "energy_joules"} <= set(cells.columns)
    assert "'=HYPERLINK(1)" in set(cells["model"])
    assert len(drops) == 2 * 3 * 3
    assert set(drops["drop"]) == {"made", "declined"}


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2))
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal_and_is_plain_when_piped(tmp_path: Path, width: int) -> None:
    text = printed(load_results(write_grid(tmp_path, declared="learn-and-drop")), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text
    [line] = [line for line in lines if line.startswith("learn-and-drop ")]
    assert "ahead" in line
    assert re.search(r"\d\d\.\d\d±0\.\d\d", line)
    assert ("equal FLOPs" in lines[1]) == (width == 120)
    assert re.search(r"learn-and-drop: beats shortened training: \d\.\d\dx cheaper \[", text)


def test_an_experiment_without_rows_prints_one_line(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    assert printed(load_results(tmp_path), 80) == "no finished run yet\n"


def test_an_unwritable_report_is_a_user_error(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0))
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path)


def test_reading_results_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, ldbench.reporting.report; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_keep_their_significant_digits() -> None:
    values = (0.0, 1.0, 0.51, 75.34, 345.6, 15060.2, 3.2e9, float("nan"))
    assert [quantity(v) for v in values] == ["0.00", "1.00", "0.51", "75.3", "346", "15060", "3.20e+09", "n/a"]
    assert clean("a\nb\x00\u2028c") == "a b\ufffd c"


def test_the_generator_puts_learn_and_drop_above_the_frontier() -> None:
    record = make_record("learn-and-drop", 0)
    assert record["test_accuracy"] > frontier(0.65)


# --- like with like --------------------------------------------------------------------------------------------------


def warnings_of(root: Path) -> str:
    return str(summarize(load_results(root))["warnings"].iloc[0])


def test_rules_that_treat_batchnorm_differently_are_named(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2))
    assert warnings_of(tmp_path) == ""
    write_cell(tmp_path / "one", make_record("full", 0))
    write_cell(tmp_path / "one", make_record("learn-and-drop", 0), refresh_statistics=True)
    write_cell(tmp_path / "one", make_record("freezeout", 0))
    assert "re-estimated for some rules and not for others" in warnings_of(tmp_path / "one")


def test_records_from_before_re_estimation_was_an_option_say_who_did_it(tmp_path: Path) -> None:
    for method in ("full", "learn-and-drop", "freezeout"):
        write_cell(tmp_path, make_record(method, 0), refresh_statistics=None)
    assert "learn-and-drop re-estimated BatchNorm's statistics at every drop" in warnings_of(tmp_path)
    for method in ("full", "learn-and-drop", "freeze"):
        write_cell(tmp_path / "same", make_record(method, 0), refresh_statistics=None)
    assert warnings_of(tmp_path / "same") == ""


def test_the_report_says_which_rate_each_row_used_and_flags_the_edge(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2), methods=("learn-and-drop",))
    assert "One recipe for every row (learning rate 0.1), not tuned" in printed(load_results(tmp_path), 160)
    groups = []
    for path in sorted(tmp_path.glob("cells/*/config.json")):
        record = json.loads((path.parent / "result.json").read_text())
        named = {key: record[key] for key in ("model", "dataset", "scenario", "method", "budget")}
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"} | named
        write_sealed(path, config | {"lr": 0.1})
        tried = [{"values": {"lr": rate}, "val_accuracy": [0.9], "mean": 0.9, "cells": ["c"]} for rate in (0.05, 0.1)]
        groups.append(named | {"policy": {}, "key": group_key(config, ["lr"]), "keys": ["lr"], "chosen": {"lr": 0.1},
                               "edge": ["lr"], "tried": tried})  # fmt: skip
    write_sealed(tmp_path / "tuning.json", {"seeds": [1000], "groups": groups})
    text = printed(load_results(tmp_path), 160)
    assert "Tuned on validation images: short 0.25 lr=0.1 at the edge of what was tried (lr); " in " ".join(
        text.split()
    )
    page = outline(write_report(tmp_path)).text
    assert "lr=0.1 (edge of the grid: lr)" in page
    assert "lr=0.05: 90.00 %" in page
