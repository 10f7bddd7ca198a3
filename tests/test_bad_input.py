"""Whatever is typed: a plan that can run, or exit code 2 with one line and nothing written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ldbench.cli import main
from ldbench.config import Experiment, experiment_from_dict
from ldbench.errors import UserError
from ldbench.runner import plan

# Values that are right for some key, and values that are right for none.
GOOD = st.sampled_from(
    ["resnet18", "vgg11_bn", "digits", "full", "short", "learn-and-drop", "freeze", "schedule", "sgd", "adamw", "last",
     "cosine", "none", "final", "cpu", "fp32", "int8", "flip+crop", 1, 2, 16, 100, 0.25, 0.5, True, [0, 1], ["full"]]
)  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "../..", "a b", "ünïcode", "\u202eabc", "\ud800", "x" * 5000, "a\nb", "\0", "$(ls)", "<b>"]
    ),
)
NUMBERS = st.one_of(
    st.integers(), st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**400)]), st.floats(), st.booleans(),
    st.sampled_from([float("nan"), float("inf"), 1e308, -0.0, 5e-324]),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(GOOD, WORDS, NUMBERS, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=4,
)
KEYS = st.one_of(st.sampled_from([*Experiment.__dataclass_fields__]), WORDS)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"lr": 10**400})
@example({"policy": {"learn-and-drop": {"patience": float("nan")}}})
@example({"policy": {"learn-and-drop": 3}})
@example({"model": ["resnet18"], "method": []})
@example({"method": ["freeze"]})
def test_any_table_is_a_plan_or_one_line(table: dict[str, object]) -> None:
    try:
        cells = plan(experiment_from_dict(table))
    except UserError:
        return
    assert cells
    assert len({cell.cell_id for cell in cells}) == len(cells)
    for cell in cells:
        assert "/" not in cell.cell_id
        assert not cell.cell_id.startswith(".")


def run_main(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``ldbench ARGUMENTS``, in this process."""
    out, err = io.StringIO(), io.StringIO()
    typed = mock.patch.object(sys, "argv", ["ldbench", *arguments])
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with typed, redirected[0], redirected[1], pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything under ``folder``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


def assert_one_line(code: int, err: str) -> None:
    assert code == 2, err
    assert err.startswith("ldbench: "), err
    assert len(err.strip("\n").split("\n")) == 1, err
    assert "Traceback" not in err


OPTIONS = ["--model", "--dataset", "--method", "--seeds", "--epochs", "--batch-size", "--lr", "--schedule", "--augment",
           "--device", "--precision", "--train-size", "--test-size", "--val-size", "--image-size", "--width",
           "--eval-every", "--short-budgets", "--save-model", "--data-root", "--cache-dtype", "--cache-budget",
           "--check-every", "--cost-table", "--checkpoint-minutes", "--set", "--out", "--no-such-option", "-x"]  # fmt: skip
TYPED = st.one_of(
    WORDS, st.integers().map(str), st.floats().map(str),
    st.sampled_from(["resnet18", "digits", "full", "short", "0,1", "0.5,0.25", "1,,2", "cpu", "cuda:99", "folder:/nowhere",
                     "folder:", "synthetic:1x8x8:4:64", "synthetic:0x0x0:0:0", "synthetic:axb", "os:getcwd", "no.such:thing",
                     "1e999", "4GiB,,", "-4GiB", "learn-and-drop.patience=3", "learn-and-drop.=", "x.y=[", "../../etc"]),
)  # fmt: skip
ARGUMENTS = st.lists(st.one_of(st.tuples(st.sampled_from(OPTIONS), TYPED), st.tuples(TYPED)), min_size=1, max_size=3)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(ARGUMENTS)
@example([("--out", "a\0b")])
@example([("--data-root", "a\0b"), ("--dataset", "mnist")])
@example([("a\0b.toml",)])
@example([("--set", "learn-and-drop.no_such=1")])
@example([("--lr", "nan")])
@example([("--cost-table", "\0")])
def test_any_command_line_is_a_plan_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str]]
) -> None:
    arguments = [word for part in parts for word in part]
    folder = tmp_path_factory.getbasetemp() / "typed"
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        code, out, err = run_main(["run", *arguments, "--dry-run"])
    assert snapshot(folder) == {}
    if code != 0:
        assert_one_line(code, err)
    elif "--help" not in arguments:
        assert "cells, results would go to" in out or out.startswith("{"), arguments


@pytest.mark.parametrize(
    "text",
    ["", "[", "epochs = ", "epochs = 'x", '"\\ud800" = 1', "epochs = 1\nepochs = 2", "policy = 3", "[policy]\nfull = 3",
     "seeds = [1, 1]", "seeds = 1e999", "model = [[1]]", "{}", "null", "[1]", '{"epochs": NaN}', '{"a": {"b": ' * 3000],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_broken_experiment_file_is_one_line(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"experiment{suffix}"
    path.write_text(text)
    for more in ([], ["--set", "learn-and-drop.patience=3"]):
        code, _, err = run_main(["run", str(path), *more, "--dry-run", "--out", str(tmp_path / "out")])
        if code != 0:
            assert_one_line(code, err)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_experiment_file_that_is_no_file_or_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe epochs = 3")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    for name in ("folder.toml", "bytes.toml", "loop.toml", "none.toml", "x" * 5000 + ".toml"):
        code, _, err = run_main(["run", str(tmp_path / name), "--dry-run"])
        assert_one_line(code, err)


def test_an_out_that_cannot_be_written_stops_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below", "\0", "x" * 300):
        code, _, err = run_main(["run", "--epochs", "1", "--quiet", "--out", str(tmp_path / out)])
        assert_one_line(code, err)
    assert snapshot(tmp_path) == {str(tmp_path / "file"): b"mine"}


HOSTILE = {
    "list": b"[]", "null": b"null", "number": b"1e999", "text": b'"x"', "bytes": b"\xff\xfe\x00", "empty": b"",
    "deep": b"[" * 100_000, "deep object": b'{"a":' * 50_000, "huge number": b'{"seed": ' + b"9" * 5000 + b"}",
    "wrong types": json.dumps({"schema_version": 1, "model": 3, "seed": [], "status": {}}).encode(),
    "half": b'{"schema_version": 1, "model": "resnet',
}  # fmt: skip


def test_a_folder_of_damaged_records_is_reported_with_what_is_wrong(tmp_path: Path) -> None:
    for name, content in HOSTILE.items():
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_bytes(content)
    (tmp_path / "cells" / "directory" / "result.json").mkdir(parents=True)
    (tmp_path / "cells" / "loop").mkdir()
    (tmp_path / "cells" / "loop" / "result.json").symlink_to("result.json")
    (tmp_path / "cells" / "a file").write_text("x")
    (tmp_path / "cells" / "ring").symlink_to(tmp_path / "cells")
    for command in (["report"], ["report", "--json"], ["verify"]):
        code, _, err = run_main([command[0], str(tmp_path), *command[1:]])
        assert "Traceback" not in err, err
        assert code in (0, 1, 2)
        if code == 2:
            assert_one_line(code, err)


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_folder_that_is_none_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "empty", "loop", "none", "\0", "x" * 5000):
        code, _, err = run_main([command, str(tmp_path / name)])
        assert_one_line(code, err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        code, _, err = run_main(["run", "--epochs", "1", "--quiet", "--out", str(tmp_path / "out")])
        assert_one_line(code, err)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "arguments", [["--model", "nothing"], ["--dataset", "nothing"], ["--width", "-1"], ["--device", "tpu"]]
)
def test_profile_refuses_what_run_refuses(arguments: list[str]) -> None:
    assert_one_line(*run_main(["profile", *arguments])[::2])
