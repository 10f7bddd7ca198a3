"""Whatever stands in an experiment file or a command: a plan, or exit code 2 and one line; nothing left behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.hostile import anything, everything_below, ldbench, numbers, refused, scalars, text
from support.report_records import make_record, write_cell, write_grid

from ldbench.data.names import AUGMENTATIONS
from ldbench.doctor.checks import CHECKS
from ldbench.errors import UserError
from ldbench.experiment.config import CHOICES, Experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import write_sealed
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation

FIELDS = list(vars(Experiment()))
GOOD: dict[str, list[Any]] = {
    "model": ["resnet18", ["vgg11", "resnet18"], "support.tiny_nets:net"],
    "dataset": ["digits", "mnist", ["digits", "cifar10"], "digits[0,2-4]"],
    "method": ["full", ["full", "short"], ["learn-and-drop", "freeze"], "schedule"], "seeds": [1, 3, [0, 7]],
    "short_budgets": [0.5, [0.25, 0.5]], "epochs": [1, 12], "batch_size": [1, 128], "lr": [0.1, 1],
    "weight_decay": [0, 0.1], "momentum": [0.9], "augment": [*AUGMENTATIONS, "crop+support.transforms:dots"],
    "device": ["auto", "cpu"], "precision": ["fp32", "bf16"],
    "val_size": [0, 20], "train_size": [200], "image_size": [16, 32], "width": [0.25, 1], "dropout": [0.0, 0.5],
    "eval_every": [1, "last"], "cache_dtype": list(CHOICES["cache_dtype"]), "cache_budget": ["1GiB", "0,0,1g", "5"],
    "scenario": ["scratch", "fine-tune", "online", ["fine-tune", "scratch"], ["online-fine-tune", "online"]],
    "chunks": [2, 7], "memory": [0, 50], "stream": list(CHOICES["stream"]), "init": ["torchvision", "README.md"],
    "pretrain_dataset": ["mnist", "digits[0-4]"], "pretrain_epochs": [1], "pretrain_size": [100],
    "tune": [{"lr": [0.1, 0.2]}, {"batch_size": [8, 16], "optimizer": ["sgd", "adam"]}], "tune_seeds": [1, [1000, 1001]],
    "checkpoint_minutes": [0, 5.0], "check_every": [2], "data_root": [".", "a b/.."], "threads": [1],
    "policy": [
        {}, {"schedule": {"drops": [[0.5, 1]]}}, {"learn-and-drop": {"patience": 1}}, {"freezeout": {"cubic": False}},
    ],
}  # fmt: skip
fields = st.sampled_from(FIELDS)
good = st.sampled_from(sorted(GOOD)).flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(GOOD[key])))
bad = st.tuples(fields | st.sampled_from(["modle", "Epochs", "schema_version", ""]) | text, anything)
settings_of_a_method = st.dictionaries(
    st.sampled_from(["remaining", "patience", "earliest", "drops", "t_first", "cubic", "events"]),
    scalars | st.lists(st.lists(numbers, max_size=3), max_size=3),
    max_size=2,
)
policies = st.dictionaries(
    st.sampled_from(["learn-and-drop", "schedule", "freezeout", "full", "freeze", "x"]),
    settings_of_a_method,
    max_size=2,
)
tables = st.builds(
    lambda most, wrong: dict(most + wrong),
    st.lists(good, max_size=6),
    st.lists(bad | st.tuples(st.just("policy"), policies), max_size=2),
)


@settings(max_examples=600)
@given(tables)
@example({"seeds": 20_000})  # once meant the one seed 20,000
@example({"lr": 10**400})
@example({"policy": {"schedule": {"drops": [[0.5, math.nan]]}}})
@example({"policy": {"freezeout": {"t_first": 1e-300}}})
@example({"cache_budget": "9" * 400 + ".0"})
@example({"dataset": "synthetic:1x1x1:" + "9" * 5000 + ":1"})
def test_a_table_is_a_plan_that_feeds_back_unchanged_or_one_line(table: dict[str, Any]) -> None:
    try:
        experiment = experiment_from_dict(table)
        cells = plan(experiment)
    except UserError:
        return
    assert cells
    assert len({cell.cell_id for cell in cells}) == len(cells)
    assert all(len(cell.cell_id) < 140 and cell.cell_id.isascii() and "/" not in cell.cell_id for cell in cells)
    for cell in cells:
        for value in vars(cell).values():
            assert not isinstance(value, float) or math.isfinite(value)
    assert experiment_from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


# --- the command, from the words typed to the plan or the line ------------------------------------------------------


@contextlib.contextmanager
def workplace(checked: bool = False) -> Iterator[Path]:
    """An empty current folder in which a dry run builds no network, unless ``checked``; it must be as it was after."""
    before, cheap = Path.cwd(), contextlib.nullcontext() if checked else mock.patch.object(Preparation, "check")
    with tempfile.TemporaryDirectory() as name, cheap:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def toml(value: Any) -> str:
    """A value as TOML; what TOML has no word for is written as Python does, which makes the file wrong."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return hex(value) if isinstance(value, int) and abs(value) > 10**30 else repr(value)


ODD_DOCUMENTS = [
    "", "\ufeff", "epochs = 1\nepochs = 2", "[[model]]", "model = [", "a.b.c = 1", "seeds = 1979-05-27",
    "[policy.full]",
    "policy = 3", "[" * 5000, "x = " + "[" * 5000, '{"a":' * 5000, "epochs = " + "9" * 5000, "lr = 0x" + "f" * 9000,
    '{"epochs": ' + "9" * 5000 + "}", '{"data_root": "\\ud800"}', '{"cost_table": "a\\u0000b"}', "null", "NaN", '"x"',
]  # fmt: skip
documents = st.one_of(
    tables.map(lambda table: "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in table.items())),
    tables.map(lambda table: json.dumps(table, default=str)),
    st.sampled_from(ODD_DOCUMENTS),
    st.text(max_size=60),
)


@settings(max_examples=200)
@given(documents, st.sampled_from(["e.toml", "e.json", "...toml", "a b.toml"]), st.booleans())
def test_an_experiment_file_is_a_plan_or_one_line(document: str, name: str, as_json: bool) -> None:
    with workplace() as folder:
        (folder / name).write_text(document, encoding="utf-8", errors="surrogateescape")
        before = everything_below(folder)
        ended = ldbench("run", f"./{name}", "--dry-run", *(["--json"] if as_json else []))
        if not refused(ended) and not as_json:
            assert "results would go to ldbench-results/" in ended.out
        assert everything_below(folder) == before


@settings(max_examples=30)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_are_one_line(data: bytes) -> None:
    with workplace() as folder:
        (folder / "e.toml").write_bytes(b"\xff" + data)
        assert refused(ldbench("run", "e.toml", "--dry-run"))


options = st.sampled_from(
    [f"--{field.replace('_', '-')}" for field in FIELDS if field != "policy"]
    + ["--set", "--out", "--json", "--quiet", "--no-compile", "--channels-last", "--no-download", "--epoch", "-x", "--"]
)
VALUES = [
    "1", "0.5", "sgd", "resnet18", "digits", "full", "5", "3,5", "last", "cpu", "1GiB", "schedule.drops=[]", "a.b=[",
    ".=", "learn-and-drop.patience=2", "learn-and-drop.patience=2\nx=1", "full.x=0x" + "f" * 9000,
    "schedule.drops=" + "[" * 5000,
]  # fmt: skip
values = text | st.sampled_from(VALUES)
words = st.lists(
    st.one_of(options.map(lambda o: [o]), st.tuples(options, values).map(list), text.map(lambda t: [t])), max_size=5
)


def typed(arguments: list[list[str]]) -> list[str]:
    """As the shell could hand them over: no NUL, and no help asked for."""
    return [word for group in arguments for word in group if "\0" not in word and not word.startswith(("--h", "--deb"))]


@settings(max_examples=300)
@given(st.sampled_from(["run", "report", "profile", "verify"]), words)
@example("run", [["--model", "x:[/bold]"]])
@example("run", [["--dataset", "folder:[/x]"], ["--json"]])
@example("run", [["--out", "x" * 5000]])
@example("report", [["x" * 5000]])
@example("verify", [["x" * 5000]])
@example("run", [["--cost-table", "x" * 5000], ["--model", "resnet18"]])
@example("run", [["--seeds", "2"], ["--seeds", "3"], ["--epochs", "1"], ["--epochs"]])
def test_a_command_is_a_plan_or_one_line(command: str, arguments: list[list[str]]) -> None:
    extra = {"run": ["--dry-run"], "profile": ["--device", "cuda:999"]}.get(command, [])  # nothing to be measured
    with workplace() as folder:
        ended = ldbench(command, *extra, *typed(arguments), *extra)  # the last one counts, if it is taken for an option
        assert refused(ended) or command == "run"
        assert everything_below(folder) == {}


NEEDED: dict[str, list[Any]] = {
    "model": ["resnet18", "support.tiny_nets:net", "support.tiny_nets:absent", "vgg11", "squeezenet1_1"],
    "dataset": [
        "digits", "mnist", "folder:.", "synthetic:1x8x8:2:9", "synthetic:4x16x16:3:30",
        "synthetic:3x9999x9999:2:99999999",
    ],
    "method": [["full"], ["learn-and-drop"], ["freeze"], ["learn-and-drop", "freeze"]],
}  # fmt: skip
OPTIONAL: dict[str, list[Any]] = {
    "width": [1e-300, 0.1, 64.0], "image_size": [1, 8, 16, 31, 32], "train_size": [1, 9, 30, 10**9],
    "val_size": [0, 5, 29, 10**9], "test_size": [1, 5, 10**9], "dropout": [0.5], "batch_size": [1, 7, 10**6],
    "cache_budget": ["0,0,0", "1k", "1GiB"], "precision": ["fp16", "bf16"], "cost_table": ["absent", ".", "x" * 300],
    "augment": ["flip+crop"], "channels_last": [False, True], "device": ["cuda:7", "cpu"],
}  # fmt: skip
contradictions = st.fixed_dictionaries(
    {key: st.sampled_from(values) for key, values in NEEDED.items()},
    optional={key: st.sampled_from(values) for key, values in OPTIONAL.items()},
)


@settings(max_examples=25)
@given(contradictions)
@example({"model": "resnet18", "dataset": "digits", "method": "full", "width": 64.0, "image_size": 32})
@example({"model": "support.tiny_nets:failing", "dataset": "digits", "method": "full", "image_size": 8})
def test_options_that_contradict_each_other_are_refused_before_anything_runs(table: dict[str, Any]) -> None:
    with workplace(checked=True) as folder:
        (folder / "e.json").write_text(json.dumps(table))
        refused(ldbench("run", "e.json", "--dry-run"))
        assert set(everything_below(folder)) == {"e.json"}


# --- folders of results that somebody else made, or nobody ----------------------------------------------------------


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A small, whole results folder."""
    return write_grid(tmp_path / "results", seeds=range(2), methods=("learn-and-drop",))


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


HOSTILE_FILES: dict[str, bytes] = {
    "list": b"[]", "null": b"null", "number": b"1e999", "empty": b"", "torn": b'{"schema_version": 1, "see',
    "not utf-8": b'{"\xff": 1}', "utf-16": '{"schema_version": 1}'.encode("utf-16"),
    "deep": nested(900).encode(), "too deep": nested(100_000).encode(),
    "long number": b'{"seed": ' + b"9" * 10_000 + b"}",
    "wide": json.dumps({str(i): i for i in range(200_000)}).encode(),
    "pickle": b"\x80\x04cos\nsystem\n.", "html": b"<script>alert(1)</script>",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_a_file_that_is_no_record_is_left_out_and_the_others_are_reported(
    name: str, content: bytes, grid: Path
) -> None:
    odd = min((grid / "cells").glob("*learn-and-drop*"))
    (odd / name).write_bytes(content)
    ended = ldbench("report", grid, "--json")
    assert not refused(ended)
    assert len(json.loads(ended.out)["cells"]) == 9
    assert f"cells/{odd.name}/result.json" in (grid / "report" / "index.html").read_text()
    verified = ldbench("verify", grid)
    assert verified.code == 1
    assert f"cells/{odd.name}/{name}: " in verified.out


def put_folder(path: Path) -> None:
    path.mkdir()


def put_loop(path: Path) -> None:
    path.symlink_to(path)


def put_dangling(path: Path) -> None:
    path.symlink_to("/nonexistent/result.json")


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room


@pytest.mark.parametrize("put", [put_folder, put_loop, put_dangling, put_pipe, put_endless, put_huge])
def test_what_is_no_file_is_left_out_and_the_others_are_reported(put: Callable[[Path], None], grid: Path) -> None:
    odd = min((grid / "cells").glob("*learn-and-drop*"))
    for name in ("result.json", "config.json", "epochs.jsonl", "scores.jsonl"):
        (odd / name).unlink()
        put(odd / name)
    (grid / "experiment.json").unlink()
    put(grid / "experiment.json")
    put(grid / "cells" / "odd")
    ended = ldbench("report", grid, "--json")
    assert not refused(ended)
    assert len(json.loads(ended.out)["cells"]) == 9
    assert f"cells/{odd.name}/result.json" in (grid / "report" / "index.html").read_text()
    if put is not put_huge:  # a terabyte of zeros is read whole by the check of tensors alone
        assert ldbench("verify", grid).code == 1


@pytest.mark.parametrize("put", [put_folder, put_loop, put_dangling, put_pipe])
@pytest.mark.parametrize("command", ["report", "verify", "run", "profile"])
def test_what_is_no_folder_of_results_is_one_line(command: str, put: Callable[[Path], None], tmp_path: Path) -> None:
    place = tmp_path / "odd"
    put(place)
    if put is put_folder:
        put_loop(place / "cells")
    before = sorted(tmp_path.rglob("*"))
    if command == "run":
        network: list[object] = ["--model", "support.tiny_nets:net", "--dataset", "digits"]
        arguments = ["run", *network, "--out", place / "cells"]
    else:
        arguments = [command, place] if command != "profile" else ["profile", "--out", place / "cells"]
    ended = ldbench(*arguments)
    assert refused(ended)
    assert "odd" in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_is_not_written_through_a_link(grid: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (grid / "report").symlink_to(tmp_path / "elsewhere")
    assert refused(ldbench("report", grid))
    assert list((tmp_path / "elsewhere").iterdir()) == []


RECORD = sorted(make_record("learn-and-drop", 0))
changed = st.dictionaries(st.sampled_from(RECORD), anything, max_size=3)
levels = scalars | st.lists(scalars, min_size=8, max_size=8)
line = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("epoch", "step", "live_stages", "change", "continuation"), levels)
)
lines = st.lists(line, min_size=2, max_size=4)
HUGE = 10**400


@settings(max_examples=15)
@given(changed, lines, lines)
@example(
    {"drops": [{"store_bytes": HUGE, "cut": HUGE}]},
    [{"epoch": HUGE, "live_stages": HUGE}] * 2,
    [{"step": HUGE, "change": [HUGE] * 8}] * 2,
)
@example({"train_seconds": 1e308, "forward_flops": 1e308, "dropped_stages": 1e308}, [], [])
def test_a_sealed_record_of_any_content_is_reported_or_left_out(
    changes: dict[str, Any], epochs: list[Any], scores: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for record in (make_record("full", 0), make_record("short", 0, budget=0.5), make_record("learn-and-drop", 0)):
            folder = write_cell(root, record)
        with contextlib.suppress(ValueError):  # what Python itself cannot write as JSON
            write_sealed(folder / "result.json", make_record("learn-and-drop", 0) | changes)
            (folder / "epochs.jsonl").write_text("\n".join(map(json.dumps, epochs)))
            (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries that draw tell about numbers at the end of their range
            assert not refused(ldbench("report", root))
        assert not refused(ldbench("report", root, "--json"))


@pytest.mark.parametrize("arguments", [["--jsn"], ["extra"], ["--json", "--json=3"]])
def test_doctor_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    assert refused(ldbench("doctor", *arguments))


@pytest.mark.parametrize("root", ["x" * 5000, "/dev/null/x", "../..\x1b[31m", "[/red]"])
def test_doctor_speaks_whatever_the_data_folder_is_called(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDBENCH_DATA", root)
    monkeypatch.setattr(
        "ldbench.doctor.checks.CHECKS", tuple(c for c in CHECKS if c[0] in ("data sets", "disk", "memory"))
    )
    ended = ldbench("doctor")
    assert (ended.code, ended.err) == (1, "")  # no training step was tried
    assert "\x1b" not in ended.out
    assert "mnist" in ended.out
