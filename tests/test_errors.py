"""What users read of an error: one line, never empty, of bounded length."""

from __future__ import annotations

import pytest

from ldbench.errors import one_line


@pytest.mark.parametrize(
    ("error", "said", "with_kind"),
    [
        (ValueError("no such\n  size\tfits\n"), "no such size fits", "ValueError: no such size fits"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (AssertionError(" \n"), "AssertionError", "AssertionError"),
        (RuntimeError("x" * 301), "x" * 300, "RuntimeError: " + "x" * 300),
    ],
)
def test_an_exception_is_told_on_one_short_line(error: BaseException, said: str, with_kind: str) -> None:
    assert one_line(error) == said
    assert one_line(error, kind=True) == with_kind
