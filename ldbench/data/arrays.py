"""NumPy arrays as tensors, whatever way they lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """The numbers of an array as a tensor of its shape and dtype: in its own memory, or in a copy where no tensor can
    lie there, since it is read-only, of another byte order, or walked through backwards.
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    plain = all(step >= 0 and step % native.itemsize == 0 for step in native.strides)
    return torch.from_numpy(native if native.flags.writeable and plain else np.array(native, order="C"))
