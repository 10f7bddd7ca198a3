"""A results folder as one file: everything that is read of it is the same, and damage is named, not averaged in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from support.hostile import ldbench, refused
from support.report_records import make_record, write_cell, write_grid

from ldbench.errors import UserError
from ldbench.experiment.files import read_experiment
from ldbench.io.checksums import parse_sealed, sealed_bytes, write_sealed, write_sealed_lines
from ldbench.records.integrity import verify
from ldbench.records.packed import file_bytes, file_content
from ldbench.records.packing import pack, portable
from ldbench.records.results import load_results
from ldbench.records.stored import Folder, stored
from ldbench.records.tuning import read_tuning


def write_all(root: Path) -> Path:
    """Records of every kind that a run leaves, and things beside them that are none."""
    write_grid(root, seeds=range(2), methods=("learn-and-drop",), declared="learn-and-drop")
    for folder in (*root.glob("cells/*"), root / "tuning" / "cells" / "tried", root / "pretrained" / "source"):
        if folder.parent.name != "cells" or folder.name == "tried":
            shutil.copytree(next(root.glob("cells/*")), folder)
        write_sealed_lines(folder / "epochs.jsonl", [{"epoch": e, "step": 9 * e, "live_stages": 8} for e in range(2)])
        write_sealed_lines(folder / "scores.jsonl", [{"step": s, "change": [0.1] * 8} for s in range(5)])
    group = {"key": "k", "keys": ["lr"], "chosen": {"lr": 0.1}, "edge": [], "tried": []}
    write_sealed(root / "tuning.json", {"seeds": [1000], "groups": [group]})
    (root / "costs").mkdir()
    write_sealed(root / "costs" / "abc.json", {"what": {"model": "vgg11_bn"}, "table": {}})
    write_sealed(root / "plan.json", {"cells": []})
    (root / "cells" / ".hidden").mkdir()
    (root / "cells" / "unfinished").mkdir()
    return root


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """A folder, and the file that was packed of it."""
    folder, file = write_all(tmp_path / "results"), tmp_path / "results.jsonl"
    assert ldbench("pack", folder, "--scores").code == 0
    return folder, file


def same(folder: Path, file: Path) -> None:
    for stages in (False, True):
        ours, theirs = load_results(file, stages=stages), load_results(folder, stages=stages)
        assert_frame_equal(ours, theirs)
        assert ours.attrs["left_out"] == theirs.attrs["left_out"]
        assert ours.attrs["declared"] == theirs.attrs["declared"]
    assert read_tuning(file) == read_tuning(folder)


def test_everything_read_of_the_file_is_what_the_folder_holds(both: tuple[Path, Path]) -> None:
    folder, file = both
    same(folder, file)
    assert load_results(file).attrs["declared"].method == "learn-and-drop"
    assert len(read_tuning(file)) == 1
    packed = stored(file)
    names = [path.relative_to(folder) for path in folder.rglob("*.json*") if path.name != "plan.json"]
    assert len(names) > 40
    for name in names:
        assert packed.read(str(name)) == (folder / name).read_bytes()
    assert list(verify(file)) == list(verify(folder)) == []


def test_packing_again_gives_the_same_bytes_and_a_line_for_each_cell(both: tuple[Path, Path]) -> None:
    folder, file = both
    data, count = pack(Folder(folder), scores=True)
    assert data == file.read_bytes()
    head, *lines = map(json.loads, data.splitlines())
    assert count == head["folders"] == len(lines)
    assert head["scores"] is True
    assert head["files"].keys() == {"experiment.json", "tuning.json", "costs/abc.json"}
    assert [line["folder"] for line in lines if line["folder"].startswith("pretrained")] == ["pretrained/source"]
    copied = folder.with_name("copied")
    shutil.copytree(folder, copied)
    assert pack(Folder(copied), scores=True)[0] == data


def test_scores_are_left_out_unless_asked_for_and_the_file_says_so(both: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = both
    without = tmp_path / "other.jsonl"
    ended = ldbench("pack", folder, "--out", without)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(without.read_text().splitlines()[0])["scores"] is False
    assert "scores.jsonl" not in without.read_text()
    assert without.stat().st_size < file.stat().st_size
    same(folder, without)
    assert list(verify(without)) == []


def test_a_brief_file_has_what_tables_need_and_neither_epochs_nor_tuning_runs(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, file = both
    brief = tmp_path / "brief.jsonl"
    ended = ldbench("pack", folder, "--brief", "--out", brief)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(brief.read_text().splitlines()[0])["brief"] is True
    assert "epochs.jsonl" not in brief.read_text()
    assert "tuning/cells/" in file.read_text()
    assert "tuning/cells/" not in brief.read_text()
    assert list(verify(brief)) == []
    same(folder, brief)
    assert ldbench("report", brief).code == 0
    assert "choose one" in ldbench("pack", folder, "--brief", "--scores").err


def test_report_and_verify_take_the_file_as_they_take_the_folder(both: tuple[Path, Path]) -> None:
    folder, file = both
    of_folder, of_file = ldbench("report", folder, "--json"), ldbench("report", file, "--json")
    ours, theirs = json.loads(of_file.out), json.loads(of_folder.out)
    assert ours["report"] == str(file.with_name("results-report") / "index.html")
    assert {k: v for k, v in ours.items() if k != "report"} == {k: v for k, v in theirs.items() if k != "report"}
    for name in ("index.html", "cells.csv", "table.csv", "groups.csv", "drops.csv"):
        assert (file.with_name("results-report") / name).read_text() == (folder / "report" / name).read_text()
    assert ldbench("verify", file).out == ldbench("verify", folder).out


def test_a_damaged_cell_is_damaged_in_both(tmp_path: Path) -> None:
    folder, file = write_grid(tmp_path / "r", seeds=range(3), methods=()), tmp_path / "r.jsonl"
    first, second, third, fourth, *_ = sorted(folder.glob("cells/*"))
    (first / "result.json").write_text((first / "result.json").read_text().replace('"seed": 0', '"seed": 7'))
    (second / "result.json").write_bytes((second / "result.json").read_bytes()[:300] + b"\xff\xed\xa0\x80")
    (third / "config.json").write_text("{}")
    (fourth / "result.json").write_text('{"schema_version": 1, "seed": NaN, "seed": ' + "9" * 5000 + "}")
    ended = ldbench("pack", folder)
    assert ended.code == 1
    assert "files are damaged, and are in it as they are" in ended.out
    same(folder, file)
    assert len(load_results(file).attrs["left_out"]) == 4
    assert list(verify(file)) == list(verify(folder))


def truncated(line: bytes) -> bytes:
    return line[: len(line) // 2]


def garbled(line: bytes) -> bytes:
    return b"<<<<<<< " + line[::-1]


def edited(line: bytes) -> bytes:
    return line.replace(b'"test_loss": 0.3', b'"test_loss": 0.2')


@pytest.mark.parametrize(
    ("damage", "path", "reason"),
    [
        (truncated, "cells/{cell}/result.json", "line 5 of results.jsonl cannot be read"),
        (edited, "cells/{cell}/result.json", "does not match its checksum"),
        (garbled, "results.jsonl, line 5", "names no cell"),
        (lambda line: b"", "results.jsonl, line 5", "names no cell"),
    ],
)
def test_a_damaged_line_is_named_and_left_out(
    both: tuple[Path, Path], damage: Callable[[bytes], bytes], path: str, reason: str
) -> None:
    _, file = both
    lines = file.read_bytes().split(b"\n")
    cell = json.loads(lines[4])["folder"].removeprefix("cells/")
    before = load_results(file)
    file.write_bytes(b"\n".join([*lines[:4], damage(lines[4]), *lines[5:]]))
    after = load_results(file)
    assert_frame_equal(after, before[before["cell"] != cell].reset_index(drop=True))
    known = before.attrs["left_out"]
    [(named, said)] = [entry for entry in after.attrs["left_out"] if entry not in known]
    assert named == path.format(cell=cell)
    assert reason in said
    found = list(verify(file))
    assert (named, said) in found
    assert ("results.jsonl", "does not match its checksum: truncated or edited") in found
    assert len(found) == 2


def test_a_file_that_ends_early_or_lost_its_first_line_says_so(both: tuple[Path, Path]) -> None:
    folder, file = both
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-3]))
    assert ("results.jsonl", f"ends early: 3 of its {len(lines) - 1} folders are missing") in list(verify(file))
    file.write_bytes(b"".join([lines[0][:200] + b"\n", *lines[1:]]))
    cells = load_results(file)
    assert len(cells) == len(load_results(folder))
    assert cells.attrs["left_out"][0][0] == "results.jsonl, line 1"
    assert cells.attrs["declared"] is None
    file.write_bytes(b"".join([*lines, lines[4]]))
    assert [path for path, _ in verify(file)] == ["results.jsonl", f"results.jsonl, line {len(lines) + 1}"]


def test_what_is_no_packed_file_is_refused_in_one_line(tmp_path: Path) -> None:
    newer = json.dumps({"schema_version": 99, "format": "ldbench packed results", "files": {}})
    for text in ("", "x", "{}", '{"a": 1}\n{"folder": "x"', "\0" * 50, "[" * 10_000):
        (tmp_path / "r.jsonl").write_text(text)
        with pytest.raises(UserError, match="no results here"):
            load_results(tmp_path / "r.jsonl")
        assert refused(ldbench("verify", tmp_path / "r.jsonl"))
        assert refused(ldbench("report", tmp_path / "r.jsonl"))
    (tmp_path / "r.jsonl").write_text(newer)
    with pytest.raises(UserError, match="written by a newer ldbench"):
        load_results(tmp_path / "r.jsonl")
    assert refused(ldbench("pack", tmp_path / "nothing"))
    assert refused(ldbench("pack", tmp_path / "r.jsonl"))
    write_cell(tmp_path / "r", make_record("full", 0))
    assert refused(ldbench("pack", tmp_path / "r", "--out", tmp_path / "no" / "where.jsonl"))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=20)


@given(st.dictionaries(st.text(), values), st.binary(max_size=40))
def test_any_file_comes_back_to_the_byte(value: dict[str, Any], data: bytes) -> None:
    text = json.dumps(value, indent=1).encode() + b"\n"
    for name in ("result.json", "epochs.jsonl"):
        for some in (text, text[:-2], data, text + data, b"".join(json.dumps(value).encode() + b"\n" for _ in "ab")):
            assert file_bytes(json.loads(json.dumps(file_content(some, name), allow_nan=False))) == some


def test_the_experiment_keeps_no_path_of_the_machine_and_can_be_run_again(tmp_path: Path) -> None:
    told = {
        "dataset": ["a=folder:/home/me/a[0-4]", "b=folder:b", "mnist"], "pretrain_dataset": "a=folder:~/a[5-9]",
        "data_root": "/home/me/data", "cost_table": "/home/me/costs", "init": "torchvision", "epochs": 3,
        "claims_sha256": "feed",
    }  # fmt: skip
    folder = tmp_path / "r"
    write_cell(folder, make_record("full", 0))
    write_sealed(folder / "experiment.json", told)
    data, _ = pack(Folder(folder))
    assert b"/home" not in data
    (tmp_path / "r.jsonl").write_bytes(data)
    kept = parse_sealed(stored(tmp_path / "r.jsonl").read("experiment.json"))
    assert kept["dataset"] == ["a=folder:a[0-4]", "b=folder:b", "mnist"]
    assert (kept["pretrain_dataset"], kept["cost_table"], kept["init"]) == ("a=folder:a[5-9]", "costs", "torchvision")
    assert "data_root" not in kept
    listed = told | {"pretrain_dataset": ["a=folder:/home/me/a[5-9]", "mnist"]}
    assert json.loads(portable(sealed_bytes(listed)))["pretrain_dataset"] == ["a=folder:a[5-9]", "mnist"]
    assert kept["claims_sha256"] == "feed"
    assert portable(stored(tmp_path / "r.jsonl").read("experiment.json")) == stored(tmp_path / "r.jsonl").read(
        "experiment.json"
    )
    assert read_experiment(str(tmp_path / "r.jsonl"))["epochs"] == 3
    assert isinstance(load_results(tmp_path / "r.jsonl"), pd.DataFrame)
