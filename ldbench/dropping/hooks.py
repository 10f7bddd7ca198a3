"""What a loop's owner may have called while the engine works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hooks:
    """What is called while the engine works.

    Attributes:
        on_batch: before every minibatch of a store being built; may raise, and the engine is then as it was before.
        on_build: gives the context in which stores are built, such as a meter's window.
        note: told what went wrong without ending the run.
    """

    on_batch: Callable[[], None] = lambda: None
    on_build: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    note: Callable[[str], None] = lambda what: None
