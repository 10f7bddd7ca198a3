"""Records: whole files or none, JSON that any reader takes, packed bits that unpack."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldbench.errors import UserError
from ldbench.io.atomic import write_text
from ldbench.io.checksums import SCHEMA_VERSION, ZEROS, plain, seal
from ldbench.records.cell_files import finished, open_results, pack_bits, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1.5, math.nan, (math.inf,)], "b": {"c": 2**70}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, None, [None]], "b": {"c": 2**70}}


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_bits_unpack_to_the_images_that_were_right(correct: list[bool]) -> None:
    raw = np.frombuffer(base64.b64decode(pack_bits(correct)), dtype=np.uint8)
    assert np.unpackbits(raw)[: len(correct)].astype(bool).tolist() == correct


@pytest.mark.parametrize(
    ("content", "done"),
    [
        ({"schema_version": SCHEMA_VERSION, "status": "finished"}, True),
        ({"schema_version": SCHEMA_VERSION, "status": "diverged"}, True),
        ({"schema_version": SCHEMA_VERSION, "status": "failed"}, False),
        ({"schema_version": SCHEMA_VERSION + 1, "status": "finished"}, False),
        ([1], False),
        (None, False),
    ],
)
def test_only_a_whole_result_of_this_schema_counts_as_finished(content: object, done: bool, tmp_path: Path) -> None:
    if isinstance(content, dict):
        text = json.dumps({"sha256": ZEROS} | content)
        (tmp_path / "result.json").write_bytes(seal(text.encode()))
    elif content is not None:
        (tmp_path / "result.json").write_text(json.dumps(content))
    assert finished(tmp_path) is done


def test_damaged_json_reads_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    assert read_json(tmp_path / "x.json") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        open_results(tmp_path / "file" / "results")


def test_plain_keeps_everything_else() -> None:
    assert plain({"x": [True, None, "text", 3]}) == {"x": [True, None, "text", 3]}
