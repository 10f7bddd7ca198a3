"""Finds what a user's ``package.module:name`` names. This imports the module, which runs its code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ldbench.errors import UserError, nearest, one_line, shown


def user_callable(what: str, name: str) -> Callable[..., Any]:
    """The function or class that ``name``, written as package.module:factory, stands for.

    Args:
        what: what it is for, such as "model"; errors begin with it.

    Raises:
        UserError: the module can't be imported, or has nothing of that name that can be called.
    """
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise UserError(f"{what} {shown(name)}: write package.module:factory")
    if os.getcwd() not in sys.path:  # noqa: PTH109 - a console script does not look into the current folder by itself
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(path)
    except Exception as error:
        raise UserError(f"{what} {shown(name)}: cannot import {path}: {one_line(error, kind=True)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = "is not callable" if factory is not None else "does not exist"
        raise UserError(f"{what} {shown(name)}: {attribute} {problem} in {path}: {nearest(attribute, public)}")
    return factory  # type: ignore[no-any-return]
