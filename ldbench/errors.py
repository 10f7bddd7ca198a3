"""The one exception a user is meant to see."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something the user can put right: printed as one line, exit code 2, no traceback."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Names the choices nearest to ``word``, or all of them when none is near and they are few."""
    options = sorted(choices)
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "choose from " + ", ".join(options) if len(options) <= 12 else f"{len(options)} names are known"


def shown(value: object) -> str:
    """``repr`` short enough for one line; also of what Python refuses to print, such as a number of 5,000 digits."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: BaseException, *, kind: bool = False) -> str:
    """What an exception says, on one line of at most 300 characters; with its ``kind`` in front where that helps."""
    name, said = type(error).__name__, " ".join(str(error).split())[:300]
    return f"{name}: {said}" if kind and said else said or name


def clean(value: Any) -> str:
    """Text of a record made harmless for terminal and page: control and invisible characters become U+FFFD."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in " ".join(text.split()))
