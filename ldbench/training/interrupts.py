"""What Ctrl-C and a scheduler's SIGTERM do: the first ends the step and saves, the second ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system wants the process to end. Not a ``KeyboardInterrupt``: Typer gives those a code of its
    own.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopRequest:
    """Remembers a request to stop until work reaches a point where it can be gone on with.

    Outside ``deferred`` a signal raises ``Interrupted`` where the process stands. Within it the first signal is only
    noted, and whoever works calls ``check`` at points where everything can be saved. Any second signal ends the process
    at once, by ``os._exit``.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM in this block; in a thread other than the main one nothing can be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {number: signal.signal(number, self._handle) for number in HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals in this block instead of raising; one that was noted and not checked is raised at its end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check_deferred(self) -> None:
        """``check`` within ``deferred``; elsewhere a signal raises by itself."""
        if self._deferred:
            self.check()

    def check(self) -> None:
        """Raises ``Interrupted`` when a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            os.write(2, b"\nldbench: stopped at once; the last checkpoint is kept\n")
            os._exit(128 + number)
        self.number = number
        if not self._deferred:
            raise Interrupted(number)
        os.write(2, b"\nldbench: ending this step and saving a checkpoint; once more to stop at once\n")
