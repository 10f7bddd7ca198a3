"""Progress of a run: a live line on a terminal, plain lines when piped, nothing when quiet."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from ldbench.experiment.config import Cell


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cell_title(method: str, budget: float | None) -> str:
    """A method as a person names it: ``short 0.5``."""
    return method if budget is None else f"{method} {budget:g}"


def epochs_run(cell: Cell) -> int:
    """Epochs that the cell trains over all chunks, a last, shorter one of each included."""
    return max(1, math.ceil(cell.epochs * (cell.budget or 1.0))) * (cell.chunks or 1)


class _Pace:
    """How long a run will go on: what epochs of a method on a network have taken this process, of a method not yet
    seen those of its network, of a network not yet seen all. Cells that other processes take over shorten it.
    """

    def __init__(self) -> None:
        self._spent: dict[tuple[str, ...], tuple[float, int]] = {}  # seconds and epochs
        self._keys = _keys("", "")
        self._later: Counter[tuple[str, str]] = Counter()  # epochs by network and method
        self._cells = self._at_first = 0  # to come after this one, and after the first
        self._own = -1

    def began(self, cell: Cell, later: Sequence[Cell]) -> None:
        """A cell of this process, and those it may run after it."""
        self._keys, self._cells, self._own = _keys(cell.model, cell.method), len(later), self._own + 1
        self._at_first = self._at_first or len(later)
        self._later.clear()
        for other in later:
            self._later[other.model, other.method] += epochs_run(other)

    def took(self, seconds: float) -> None:
        """An epoch of the cell is over."""
        for key in self._keys:
            spent, seen = self._spent.get(key, (0.0, 0))
            self._spent[key] = spent + seconds, seen + 1

    def left(self, epochs: int) -> float:
        """Seconds, with so many epochs of the cell to come. At least one epoch is over."""
        later = sum(count * self._seconds(_keys(*place)) for place, count in self._later.items())
        gone = self._at_first - self._cells  # since the first cell, whoever ran them
        together = max(1.0, gone / self._own) if self._own else 1.0
        return epochs * self._seconds(self._keys) + later / together

    def _seconds(self, keys: Sequence[tuple[str, ...]]) -> float:
        spent, seen = next(self._spent[key] for key in keys if key in self._spent)
        return spent / seen


def _keys(model: str, method: str) -> tuple[tuple[str, ...], ...]:
    return (model, method), (model,), ()


class ConsoleProgress:
    """Tells the run to a person on ``console``."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self._status: Status | None = None
        self._title, self._cell_began, self._epoch_began = "", 0.0, 0.0
        self._epochs, self._pace = 0, _Pace()

    def note(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def cell_started(self, cell: Cell, number: int, total: int, later: Sequence[Cell], trying: str = "") -> None:
        """Open the line of a cell, the ``number``-th of ``total``; ``later``: those this process may run after it;
        ``trying``: the values it tries, where it is a run of the tuning.
        """
        self._epochs = epochs_run(cell)
        self._pace.began(cell, later)
        self._cell_began = self._epoch_began = time.monotonic()
        method = cell_title(cell.method, cell.budget)
        scenario = "" if cell.scenario == "scratch" else f"{cell.scenario}, "
        kind, tried = ("tuning run", f", {trying}") if trying else ("cell", "")
        place = f"{kind} {number} of {total}: {cell.model} on {cell.dataset}"
        self._title = f"{place}, {scenario}{method}{tried}, seed {cell.seed}"
        if self.quiet:
            return
        if self.console.is_terminal:
            self._status = self.console.status(escape(self._title))
            self._status.start()
        else:
            self.note(self._title)

    def epoch(self, row: dict[str, Any]) -> None:
        """Tell an epoch: loss, accuracy, live stages, time left of the whole run, see ``_Pace``."""
        if self.quiet:
            return
        now = time.monotonic()
        self._pace.took(now - self._epoch_began)
        self._epoch_began = now
        accuracy = next((row[key] for key in ("test_accuracy", "val_accuracy") if row[key] is not None), None)
        shown = "" if accuracy is None else f", accuracy {accuracy:.4f}"
        stages = f"{row['live_stages']} of {row['live_stages'] + row['dropped_stages']} stages live"
        self._epochs = max(self._epochs, row["epoch"] + 1)  # a method may add steps on the way
        text = f"epoch {row['epoch'] + 1} of {self._epochs}: loss {row['train_loss']:.4f}{shown}, {stages}"
        text += f", about {duration(self._pace.left(self._epochs - row['epoch'] - 1))} left"
        if self._status is not None:
            self._status.update(escape(f"{self._title} | {text}"))
        else:
            self.note(f"  {text}")

    def close(self) -> None:
        """Take the live line away, also when a run ends early."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def cell_ended(self, result: dict[str, Any]) -> None:
        """Close the line of a cell with what it came to."""
        self.close()
        took = duration(time.monotonic() - self._cell_began)
        if result["status"] == "failed":
            self.note(f"{self._title}: FAILED after {took}: {result['error']}")
        elif result["status"] == "diverged":
            self.note(f"{self._title}: DIVERGED after {took}: {result['error']}")
        else:
            accuracy = "" if result["test_accuracy"] is None else f"accuracy {result['test_accuracy']:.4f}, "
            chance = " (at chance level: the recipe does not train this network)" if result["at_chance"] else ""
            drops = "; ".join(
                f"step {d['step']}: {d['cut']} of {len(result['stages'])} stages gone" for d in result["drops"]
            )
            text = f"{self._title}: {accuracy}trained in {result['train_seconds']:.1f} s{chance}"
            self.note(f"{text} [{drops}]" if drops else text)
