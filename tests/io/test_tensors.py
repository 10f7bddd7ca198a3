"""Checkpoints and sealed files: whole or not there, never trusted without their checksum, and no code in them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldbench.io.checksums import Damaged, check_file, parse, read_sealed, set_aside, write_sealed, write_sealed_lines
from ldbench.io.tensors import read_checkpoint, write_checkpoint
from ldbench.records.integrity import check_any, mend_cell, verify


def state() -> dict[str, object]:
    base = torch.arange(24, dtype=torch.float32).view(1, 4, 2, 3)
    return {
        "weights": {"a": base, "view of a": base[:, 1:3], "channels last": base.to(memory_format=torch.channels_last)},
        "scalar": torch.tensor(3.5),
        "bits": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 2),
        "plain": {"none": None, "nan": math.nan, "inf": -math.inf, "exact": 0.1 + 0.2, "big": 2**70, "text": 'ü"\n'},
        "list": [1, [torch.tensor([7])], {}],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.safetensors", state())
    assert same(state(), read_checkpoint(tmp_path / "c.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_every_byte_of_a_checkpoint_is_watched_over(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"x": torch.arange(4), "y": 1})
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Damaged):
            read_checkpoint(path)
    for length in (0, 1, 8, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            read_checkpoint(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(Damaged):
        read_checkpoint(path)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"step": 1})

    def power_cut(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="Input/output"):
        write_checkpoint(path, {"step": 2})
    assert read_checkpoint(path) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_content_is_on_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{handle}").readlink() == tmp_path else "file")
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_checkpoint(tmp_path / "c.safetensors", {"step": 1})
    assert events == ["file", "rename", "folder"]


def test_sealed_json_tells_truncation_edits_and_newer_schemas_apart(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_sealed(path, {"accuracy": 0.9, "note": '"sha256": "' + "0" * 64})
    assert read_sealed(path)["accuracy"] == 0.9
    whole = path.read_text()
    newer = whole.replace('"schema_version": 1', '"schema_version": 2')
    bare = json.dumps({"schema_version": 1, "accuracy": 1.0})
    damaged = [(whole[:-20], "cannot be read"), (whole.replace("0.9", "0.95"), "edited"), (newer, "newer")]
    for text, reason in (*damaged, (bare, "no checksum"), ("[]", "no JSON object")):
        path.write_text(text)
        with pytest.raises(Damaged, match=reason):
            read_sealed(path)


def test_sealed_lines_notice_a_line_that_went_missing(tmp_path: Path) -> None:
    path = tmp_path / "epochs.jsonl"
    write_sealed_lines(path, [{"epoch": 0}, {"epoch": 1}])
    check_any(path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(Damaged, match="truncated or edited"):
        check_any(path)


def test_damaged_files_are_set_aside_with_the_result_and_nothing_is_deleted(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "one"
    cell.mkdir(parents=True)
    write_sealed(cell / "result.json", {"status": "finished"})
    write_sealed(cell / "config.json", {"lr": 0.1})
    assert not mend_cell(cell, pytest.fail)
    (cell / "config.json").write_text((cell / "config.json").read_text().replace("0.1", "0.2"))
    (cell / "epochs.jsonl").write_text("{")
    assert {path for path, _ in verify(tmp_path)} == {"cells/one/config.json", "cells/one/epochs.jsonl"}
    said: list[str] = []
    assert mend_cell(cell, said.append)
    assert sorted(p.name for p in cell.iterdir()) == [
        f"{name}.damaged-1" for name in ("config.json", "epochs.jsonl", "result.json")
    ]
    assert len(said) == 2
    write_sealed(cell / "result.json", {})
    assert set_aside(cell / "result.json").name == "result.json.damaged-2"


def test_no_pickle_is_opened_however_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(Damaged):
        read_checkpoint(path)
    with pytest.raises(Damaged):
        check_file(path)
    with pytest.raises(Damaged):
        parse(path.read_bytes())
