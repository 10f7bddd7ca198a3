"""What a run leaves behind: one folder per cell, JSON with units in the names, written atomically."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldbench.errors import UserError
from ldbench.io.atomic import write_text
from ldbench.io.checksums import Damaged, plain, read_sealed

# Two runs of a cell on one machine with one thread count and cost table agree in every other field, to the bit.
VOLATILE_FIELDS = (
    "train_seconds", "store_read_seconds", "kernel_time_share", "eval_seconds", "cache_build_seconds",
    "scoring_seconds", "data_seconds", "cost_table_seconds", "compile_seconds", "predicted_saved_seconds",
    "peak_memory_bytes", "energy_joules", "energy_bound_joules", "energy_net_joules", "energy_tick_seconds",
    "energy_lag_seconds", "energy_flags", "energy_phases", "energy_unavailable_reason", "finished_at", "environment",
    "drops.build_seconds", "drops.predicted_saving_seconds", "drops.reason", "declined.reason",
    "chunks.train_seconds", "epochs.train_seconds", "epochs.energy_joules", "epochs.energy_bound_joules",
    "epochs.energy_unavailable_reason", "lost_seconds", "lost_flops", "resumes", "checkpoint_seconds", "incidents",
    "pretrain_seconds", "typical_train_seconds", "step_seconds", "sha256",
)  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a sealed ``path``, or None when there is none or it is damaged."""
    try:
        return read_sealed(path)
    except Damaged:
        return None


def finished(folder: Path) -> bool:
    """Whether a cell's folder holds a result that stands. A failed cell is tried again, a diverged one is not."""
    result = read_json(folder / "result.json")
    return result is not None and result.get("status") in ("finished", "diverged")


def check_place(path: Path, what: str) -> None:
    """Raises ``UserError`` where ``path`` could not be made a folder to write ``what`` into; makes nothing."""
    try:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
        refused = None if there.is_dir() else "Not a directory"
        if refused is None and not os.access(there, os.W_OK | os.X_OK):
            refused = "Permission denied"
    except OSError as error:  # such as a name too long for the file system
        refused = error.strerror
    if refused is not None:
        raise UserError(f"{what} cannot be written to {path}: {refused}; choose another --out")


def open_results(path: Path) -> Path:
    """The results folder, made if need be and proven writable. Raises ``UserError``."""
    try:
        (path / "cells").mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path)
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise UserError(f"results cannot be written to {path}: {error.strerror}; choose another --out") from error
    return path


def pack_bits(correct: Iterable[bool]) -> str:
    """Which test images were right: one bit an image, first image in the highest bit, base64."""
    import numpy as np

    return base64.b64encode(np.packbits(np.asarray(list(correct), dtype=bool)).tobytes()).decode()
