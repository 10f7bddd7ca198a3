"""What the tests of bad input share: a command run in this process, and values nobody meant."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import strategies as st


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def ldbench(*arguments: object) -> Ended:
    """Run a command as the shell would; whatever it does not turn into an exit code is raised."""
    from ldbench.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["ldbench", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Ended(int(code), *texts)


def refused(ended: Ended) -> bool:
    """Whether a command was refused; checks that it was then refused well: exit code 2, one line, no traceback."""
    assert "Traceback" not in ended.out + ended.err
    if ended.code == 0:
        assert ended.err == ""
        return False
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("ldbench: ")
    assert 15 < len(ended.err) < 1100
    assert ended.err.strip().isprintable()
    return True


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


words = st.sampled_from(
    [
        "",
        " ",
        "..",
        "../..",
        "/",
        "~",
        "-",
        "--",
        "--model",
        "none",
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "nan",
        "[/]",
        "[bold]",
        "%s",
        "{0}",
        "a b",
        "résumé",
        "\u202e",
        "\u00e9",
        "日本語",
        "\U0001f600",
        "x" * 300,
        "x" * 5000,
        "x:y",
        ":",
        "a:",
        ":b",
        "..:x",
        "folder:",
        "folder:..",
        "folder:[/x]",
        "synthetic:",
        "synthetic:1x9x9:2:x",
        "synthetic:1x1x1:" + "9" * 5000 + ":1",
        "9" * 5000,
        "cuda:99999999999999999999",
        "0.5,0.5",
        "1,2,3",
        ",",
        "\t",
        "a\nb",
        "\x1b[31m",
    ]
)
text = words | st.text(max_size=20)
numbers = st.sampled_from(
    [
        0,
        1,
        2,
        -1,
        2**31,
        2**63,
        -(2**63),
        10**400,
        0.0,
        -0.0,
        0.5,
        1.0,
        -1.5,
        1e-320,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ]
)
scalars = st.booleans() | numbers | st.integers(-5, 50) | st.floats() | text
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
