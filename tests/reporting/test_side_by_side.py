"""Two results folders side by side."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.report_records import ENVIRONMENT, make_record, write_cell, write_grid

from ldbench.records.results import load_results
from ldbench.reporting.side_by_side import SideBySide, print_side_by_side, side_by_side


def folder(root: Path, name: str, seeds: range = range(5), **changes: Any) -> Path:
    return write_grid(root / name, seeds=seeds, methods=["learn-and-drop"], **changes)


def held(first: Path, second: Path) -> SideBySide:
    return side_by_side(load_results(first), load_results(second))


def said(found: SideBySide) -> str:
    screen = Console(file=io.StringIO(), width=200)
    print_side_by_side(screen, found)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_folder_beside_itself_is_the_same_run_for_run(tmp_path: Path) -> None:
    found = held(folder(tmp_path, "a"), tmp_path / "a")
    assert list(found.lines["label"]) == ["short 0.25", "short 0.5", "short 0.75", "full", "learn-and-drop"]
    assert set(found.lines["same"]) == {5} == set(found.lines["runs"])
    for name, value in (("accuracy_difference_points", 0.0), ("flops_ratio", 1.0), ("time_ratio", 1.0)):
        assert found.lines[f"{name}_mean"].tolist() == pytest.approx([value] * 5)
    assert set(found.lines["energy_ratio_reason"]) == {"is not metered"}
    assert found.notes == []
    assert "5, 5 the same" in said(found)


def test_differences_are_paired_by_seed_and_ratios_are_second_over_first(tmp_path: Path) -> None:
    folder(tmp_path, "a")
    gained = []
    for seed in range(5):
        before, less = make_record("full", seed), make_record("short", seed, budget=0.5)
        gained.append(100 * (less["test_accuracy"] - before["test_accuracy"]))
        record = before | {name: less[name] for name in ("test_accuracy", "test_correct_base64")}
        record |= {"train_seconds": 2 * before["train_seconds"], "forward_flops": before["forward_flops"] // 2}
        write_cell(tmp_path / "b", record | {"energy_joules": 50.0})
    found = held(tmp_path / "a", tmp_path / "b")
    (row,) = found.lines.to_dict("records")
    mean, half = statistics.mean(gained), 2.776445 * statistics.stdev(gained) / 5**0.5
    ends = [row[f"accuracy_difference_points_{end}"] for end in ("mean", "low", "high")]
    assert ends == pytest.approx([mean, mean - half, mean + half], abs=1e-5)
    assert row["time_ratio_mean"] == pytest.approx(2)
    assert row["flops_ratio_mean"] == pytest.approx(2.5e13 / 3e13)
    assert row["energy_ratio_reason"] == "is not metered"  # in the first
    assert found.notes == [
        "not compared, only in the first: vgg11_bn on fashion-mnist, scratch, learn-and-drop; vgg11_bn on fashion-mnist, "
        "scratch, short 0.25; vgg11_bn on fashion-mnist, scratch, short 0.5; vgg11_bn on fashion-mnist, scratch, short 0.75"
    ]


def test_times_of_other_hardware_and_accuracies_on_other_data_are_not_compared(tmp_path: Path) -> None:
    folder(tmp_path, "a")
    folder(tmp_path, "b", environment=ENVIRONMENT | {"cpu": "another", "torch": "9.9"}, data_fingerprint="other")
    found = held(tmp_path / "a", tmp_path / "b")
    assert set(found.lines["time_ratio_reason"]) == {"other hardware"} == set(found.lines["energy_ratio_reason"])
    assert set(found.lines["accuracy_difference_points_reason"]) == {"other data"}
    assert found.lines["flops_ratio_mean"].tolist() == pytest.approx([1.0] * 5)
    assert found.notes == [
        f"other hardware: cpu {ENVIRONMENT['cpu']} -> another; times and energy are not compared",
        f"other software: torch {ENVIRONMENT['torch']} -> 9.9",
    ]
    assert "n/a: other hardware" in said(found)


def test_settings_that_differ_are_paired_where_there_is_one_each_and_told(tmp_path: Path) -> None:
    for name, rates in (("a", [0.1]), ("b", [0.2]), ("c", [0.2, 0.4])):
        for rate in rates:
            write_cell(tmp_path / name, make_record("full", 0), lr=rate)
    assert list(held(tmp_path / "a", tmp_path / "b").lines["differs"]) == ["lr 0.1 -> 0.2"]
    assert "other options: lr 0.1 -> 0.2" in said(held(tmp_path / "a", tmp_path / "b"))
    apart = held(tmp_path / "a", tmp_path / "c")
    assert apart.lines.empty
    assert apart.notes[0].startswith("not compared, several settings, none of which both folders have: vgg11_bn on")
    assert list(held(tmp_path / "b", tmp_path / "c").lines["differs"]) == [""]  # the setting that both have


def test_seeds_that_one_folder_lacks_are_left_out(tmp_path: Path) -> None:
    found = held(folder(tmp_path, "a", range(4)), folder(tmp_path, "b", range(2, 7)))
    assert set(found.lines["runs"]) == {2}
    none = held(tmp_path / "a", folder(tmp_path, "c", range(7, 9)))
    assert none.lines.empty
    assert none.notes[0].startswith(
        "not compared, no seed that both folders finished: vgg11_bn on fashion-mnist, scratch, short"
    )
    assert said(none).startswith("not compared")
