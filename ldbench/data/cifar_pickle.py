"""CIFAR-10's batches are pickles of 2009: read here without a pickle's power to call what it likes.

A pickle is a program whose only way out is to name a function or class. Every name is refused but the three that
NumPy's arrays are made of, and these stand for inert holders of what follows them: nothing of NumPy or else runs.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldbench.errors import one_line


class NoBatch(Exception):
    """These bytes are no batch of CIFAR-10; the message is the reason."""


class _Held:
    """What a pickle says of an array or of its type, kept as said."""

    def __init__(self, *said: Any) -> None:
        self.said = said
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


_KNOWN = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise NoBatch(f"it names {module}.{name}, which no batch of images needs"[:200])
        return _Held


def read_batch(data: bytes) -> dict[str, Any]:
    """The dictionary in ``data``: text, numbers and lists as they are, uint8 arrays as arrays. Raises ``NoBatch``."""
    try:
        # Latin 1 keeps every byte of the Python 2 strings, those of arrays included.
        found = _Reader(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(found, dict):
            raise NoBatch("it holds no dictionary")
        return {str(key): _array(value) if isinstance(value, _Held) else value for key, value in found.items()}
    except NoBatch:
        raise
    except Exception as error:  # whatever a damaged or malicious pickle makes the reader stumble over
        raise NoBatch(one_line(error, kind=True)) from error


def _array(held: _Held) -> NDArray[np.uint8]:
    _, shape, kind, by_columns, text = held.state
    if kind.said[0] != "u1" or by_columns:
        raise NoBatch("its array does not hold rows of bytes")
    return np.frombuffer(text.encode("latin1"), np.uint8).reshape(shape).copy()
