"""The Learn&Drop paper's architectures in a report, beside what the paper claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.report_records import costs, make_record, write_cell, write_grid

from ldbench.io.checksums import write_sealed
from ldbench.records.results import load_results
from ldbench.records.stored import stored
from ldbench.reporting.beside_paper import (
    ARCHITECTURES,
    BEYOND_HEAD,
    CLAIM_HEAD,
    FORWARD,
    HEAD,
    SETUP_HEAD,
    SHORT_HEAD,
    beyond_rows,
    claim_rows,
    cost_tables,
    depth,
    depth_panels,
    depth_picture,
    family,
    is_beside_paper,
    rows_beside,
    setup_rows,
    short_rows,
    stage_rows,
)
from ldbench.reporting.plots import Saving, _apart, lowest_shown
from ldbench.reporting.report import write_report
from ldbench.reporting.summary import tabulate

SECTION = "Beside the Learn&amp;Drop paper"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper")
    for model in ("resnet152", "vgg11_bn", "vgg11", "resnet18", "mobilenet_v2"):
        write_grid(out, methods=["freeze", "learn-and-drop"], model=model, stem="3x3 stride 1")
    return out


def table(counts: list[int], seconds: list[float], **changes: Any) -> dict[str, Any]:
    stages = [{"forward": some, "backward": 0, "backward_first": 0, "output_shape": [1]} for some in counts]
    told = {
        "stages": [f"stage {number}" for number in range(len(counts))],
        "batch_size": 8,
        "steps": seconds,
        "forward": seconds,
        "backward": [0.0] * len(counts),
        "inference": seconds,
        "input_seconds": 0.0,
        "tiers": {},
        "flops": stages,
        "normalised": [False] * len(counts),
    }
    return {"what": {"model": "vgg11"}, "table": told | changes}


def test_families_and_depths_are_those_of_the_names() -> None:
    assert [family(name) for name in ("vgg16_bn", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg", "densenet121")] == [
        "VGG", "ResNet", "", "", "", "",
    ]  # fmt: skip
    assert [depth(name) for name in ARCHITECTURES] == [11, 13, 16, 19, 18, 34, 50, 101, 152]


def test_every_architecture_of_the_paper_has_its_lines_in_order_and_no_other_has(grid: Path) -> None:
    lines = tabulate(load_results(grid)).lines
    rows = [dict(zip(HEAD, row, strict=True)) for row in rows_beside(lines)]
    assert [row["architecture"] for row in rows[::2]] == ["vgg11", "vgg11_bn", "resnet18", "resnet152"]
    assert {(row[HEAD[5]], row[HEAD[8]]) for row in rows if row["architecture"] == "vgg11_bn"} == {
        ("17.83", "-0.26 to -2.38")
    }
    assert {row[HEAD[5]] for row in rows if row["architecture"] == "resnet18"} == {"not at hand"}
    assert {row[HEAD[5]] for row in rows if row["architecture"] == "resnet152"} == {f"{FORWARD['resnet152']}"}
    found = next(row for row in rows if row["rule"] == "learn-and-drop")
    assert found["forward FLOPs - %"].startswith("40.0")  # it takes 0.6 of full's
    # What it lost less what it is ahead of training less is what training less lost.
    line = next(row for row in lines.to_dict("records") if row["label"] == "learn-and-drop" and row["model"] == "vgg11")
    less = line["difference_to_full_points_mean"] - line["difference_at_equal_flops_points_mean"]
    assert found[HEAD[9]] == f"{less:+.2f}"
    short = [dict(zip(SHORT_HEAD, row, strict=True)) for row in short_rows(lines)]
    assert [row["forward FLOPs - %"] for row in short if row["rule"] == "learn-and-drop"] == ["40.0"] * 4


def test_each_claim_of_the_abstract_is_counted_over_the_architectures(tmp_path: Path) -> None:
    for model, share in (("vgg11", 0.8), ("vgg13_bn", 0.45), ("vgg19_bn", 0.3), ("resnet152", 0.2)):
        for seed in range(3):
            write_cell(tmp_path, make_record("full", seed, model=model) | {"train_seconds": 100.0})
            write_cell(tmp_path, make_record("short", seed, budget=0.2, model=model))
            record = make_record("learn-and-drop", seed, model=model) | costs(share)
            write_cell(tmp_path, record | {"train_seconds": 100 * share + seed})
    lines = tabulate(load_results(tmp_path)).lines
    rows = [dict(zip(CLAIM_HEAD, row, strict=True)) for row in claim_rows(lines)]
    assert {(row["data set"], row["rule"]) for row in rows} == {("fashion-mnist", "learn-and-drop")}
    halved, ends, deeper, lost, less = (row["here"] for row in rows)
    assert halved == "on 3 of 4 architectures, surely on 3"
    assert ends == "vgg11 20.0 %, resnet152 80.0 %"
    assert deeper == "VGG with BatchNorm 55.0, 70.0 %"
    means = lines[lines["label"] == "learn-and-drop"].set_index("model")
    bounds = means.index.map(lambda model: -3.2 if "resnet" in model else -2.38)
    within, sure = ((means[f"difference_to_full_points_{end}"] > bounds).sum() for end in ("mean", "low"))
    assert lost == f"on {within} of 4 architectures, surely on {sure}"
    assert within > 0
    ahead = (means["difference_at_equal_flops_points_low"] > 0).sum()
    behind = (means["difference_at_equal_flops_points_high"] < 0).sum()
    assert less == f"surely on {ahead} of 4 architectures, surely worse on {behind}"


def test_other_networks_have_their_lines_without_the_paper(grid: Path) -> None:
    rows = [dict(zip(BEYOND_HEAD, row, strict=True)) for row in beyond_rows(tabulate(load_results(grid)).lines)]
    assert [(row["architecture"], row["rule"], row["stages"]) for row in rows] == [
        ("mobilenet_v2", "learn-and-drop", "8"),
        ("mobilenet_v2", "freeze", "8"),
    ]
    assert rows[0]["forward FLOPs - %"].startswith("40.0")


def test_how_they_were_trained_is_told_once_for_each(grid: Path) -> None:
    rows = [dict(zip(SETUP_HEAD, row, strict=True)) for row in setup_rows(load_results(grid))]
    assert [row["architecture"] for row in rows] == ["vgg11", "vgg11_bn", "resnet18", "resnet152"]
    images = 1200 * 128
    assert rows[0]["forward MFLOPs per image"] == f"{1e13 / images / 1e6:.1f}"
    assert [rows[0][name] for name in ("width", "pixels", "stem", "dropout", "images", "epochs", "learning rates")] == [
        "0.5", "32", "3x3 stride 1", "the network's own", "12800", "12", "0.1",
    ]  # fmt: skip


def test_dropout_that_was_set_is_told(tmp_path: Path) -> None:
    for model, dropout in (("vgg11", 0.0), ("vgg13", 0.25)):
        write_cell(tmp_path, make_record("full", 0, model=model), dropout=dropout)
    rows = [dict(zip(SETUP_HEAD, row, strict=True)) for row in setup_rows(load_results(tmp_path))]
    assert [row["dropout"] for row in rows] == ["0", "0.25"]


def test_a_stage_that_takes_more_of_the_time_than_of_the_flops_is_named() -> None:
    rows = stage_rows([table([10, 80, 10], [3.0, 6.0, 1.0]), table([10, 80, 10], [5.0, 4.0, 1.0])])
    assert rows == [["vgg11", "stage 0", "10.00", "40.00", "4.0"]]
    assert (
        stage_rows([table([0, 0], [1.0, 1.0]), {"what": 3}, {}, table([1], [1.0]) | {"what": {"model": "alexnet"}}])
        == []
    )


@pytest.mark.parametrize(
    "damage", [{"forward": [1.0]}, {"forward": [None, 1.0, 1.0]}, {"stages": []}, {"flops": [{"forward": "x"}]}]
)
def test_a_cost_table_that_does_not_fit_itself_is_passed_over(damage: dict[str, Any]) -> None:
    whole = table([10, 80, 10], [4.0, 5.0, 1.0])
    assert stage_rows([table([10, 80, 10], [4.0, 5.0, 1.0], **damage), whole]) == stage_rows([whole])
    other = table([10, 90], [4.0, 6.0])  # of the same network, divided otherwise
    assert len(stage_rows([whole, other])) == 2


def test_training_less_is_not_told_from_means_over_other_seeds(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(3), methods=["learn-and-drop"], model="vgg11")
    for path in tmp_path.glob("cells/vgg11-fashion-mnist-full-None-2*/result.json"):
        path.unlink()
    lines = tabulate(load_results(tmp_path)).lines
    assert [row[9] for row in rows_beside(lines)] == ["-"]


def test_what_is_drawn_is_what_was_saved_at_each_depth(grid: Path) -> None:
    lines = tabulate(load_results(grid)).lines
    panels = depth_panels(lines)
    assert list(panels) == ["fashion-mnist"]
    resnets = panels["fashion-mnist"]["ResNet, learn-and-drop"]
    assert [(point.layers, point.mean) for point in resnets] == [(18, pytest.approx(40.0)), (152, pytest.approx(40.0))]
    assert depth_picture(lines).startswith("<?xml")
    name = "forward_flops_reduction_percent"
    odd = lines.assign(**{f"{name}_low": lines[f"{name}_mean"] + 1e-12, f"{name}_high": float("nan")})
    assert depth_picture(odd).startswith("<?xml")


def test_the_section_is_there_where_depths_can_be_told_apart(grid: Path, tmp_path: Path) -> None:
    costs = grid / "costs"
    costs.mkdir(exist_ok=True)
    write_sealed(costs / "a.json", table([10, 90], [5.0, 5.0]))
    (costs / "b.json").write_text("{")
    assert len(cost_tables(stored(grid))) == 1
    page = write_report(grid).read_text(encoding="utf-8")
    assert SECTION in page
    assert "Stages that take more time than arithmetic" in page
    for model in ("vgg11_bn", "resnet18"):
        write_grid(tmp_path, seeds=range(2), methods=["learn-and-drop"], model=model)
    assert not is_beside_paper(tabulate(load_results(tmp_path)).lines)
    assert SECTION not in write_report(tmp_path).read_text(encoding="utf-8")
    write_cell(tmp_path, make_record("learn-and-drop", 0, model="vgg13"))
    assert SECTION in write_report(tmp_path).read_text(encoding="utf-8")


def test_only_training_from_scratch_stands_beside_the_paper(tmp_path: Path) -> None:
    for model in ("vgg11", "vgg13"):
        write_grid(tmp_path, seeds=range(2), methods=["learn-and-drop"], model=model)
        for seed in range(2):
            write_cell(
                tmp_path, make_record("learn-and-drop", seed, model=model, scenario="fine-tune"), scenario="fine-tune"
            )
    lines = tabulate(load_results(tmp_path)).lines
    assert set(lines["scenario"]) == {"scratch", "fine-tune"}
    assert [row[0] for row in rows_beside(lines)] == ["vgg11", "vgg13"]
    assert [row[2] for row in short_rows(lines)] == ["2", "2"]


def test_settings_of_one_network_are_told_apart(tmp_path: Path) -> None:
    for epochs in (12, 24):
        for model in ("vgg11", "vgg13"):
            for method in ("full", "learn-and-drop"):
                write_cell(tmp_path, make_record(method, 0, model=model, epochs=epochs), epochs=epochs)
    lines = tabulate(load_results(tmp_path)).lines
    told = {(row[0], row[1]) for row in rows_beside(lines)}
    assert told == {(f"vgg{depth}", f"fashion-mnist, epochs={epochs}") for depth in (11, 13) for epochs in (12, 24)}
    panels = depth_panels(lines)
    assert set(panels) == {"fashion-mnist, epochs=12", "fashion-mnist, epochs=24"}
    assert [point.layers for point in panels["fashion-mnist, epochs=12"]["VGG, learn-and-drop"]] == [11, 13]


def test_a_rule_all_of_whose_runs_failed_keeps_its_line(tmp_path: Path) -> None:
    for model in ("vgg11", "vgg13", "alexnet"):
        write_grid(tmp_path, seeds=range(2), methods=["freeze"], model=model)
        for seed in range(2):
            write_cell(
                tmp_path, make_record("learn-and-drop", seed, model=model, status="failed", error="out of memory")
            )
    lines = tabulate(load_results(tmp_path)).lines
    rows = [dict(zip(HEAD, row, strict=True)) for row in rows_beside(lines)]
    assert [row["n"] for row in rows if row["rule"] == "learn-and-drop"] == ["0, 2 failed"] * 2
    assert [row[2] for row in short_rows(lines) if row[1] == "learn-and-drop"] == ["0", "0"]
    assert [row[3] for row in beyond_rows(lines) if row[2] == "learn-and-drop"] == ["0, 2 failed"]
    assert list(depth_panels(lines)["fashion-mnist"]) == ["VGG, freeze"]
    assert SECTION in write_report(tmp_path).read_text(encoding="utf-8")


def test_where_every_rule_failed_there_is_a_table_and_no_picture(tmp_path: Path) -> None:
    for model in ("vgg11", "vgg13"):
        write_cell(tmp_path, make_record("full", 0, model=model))
        write_cell(tmp_path, make_record("learn-and-drop", 0, model=model, status="failed", error="out of memory"))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert SECTION in page
    assert "forward FLOPs saved against depth" not in page


def test_depths_too_near_for_two_labels_share_one() -> None:
    assert _apart([11, 13, 16, 18, 19, 34, 152]) == ["11", "13", "16", "18, 19", "", "34", "152"]
    assert _apart([100, 105, 110]) == ["100, 105, 110", "", ""]


def test_a_rule_that_costs_more_than_it_saves_is_drawn() -> None:
    assert lowest_shown({}) == 0
    assert lowest_shown({"one": {"a": [Saving(11, 40.0, 30.0, 50.0)]}}) == 0
    assert lowest_shown({"one": {"a": [Saving(11, -4.0, float("nan"), float("nan"))]}}) == -10
    assert lowest_shown({"one": {"a": [Saving(11, 4.0, -21.0, 29.0), Saving(13, 4.0, 1.0, 9.0)]}}) == -30
