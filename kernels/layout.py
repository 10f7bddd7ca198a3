"""Where tensors lie in memory: their order, what they share, and whether anything of it changed since the last look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# One call for all tensors instead of three a tensor: what torch's own compiler guards its graphs with.
TensorGuards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)

_DTYPE_NUMBERS: dict[torch.dtype, int] = {}


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory, each place once, in whatever order."""
    return coalesced(tensor) in ((), ((1, tensor.numel()),))


def coalesced(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """(stride, size) of the fewest loops that visit the tensor's places, innermost first, in any order it has them.

    Two tensors at one address with equal loops hold the same elements, transposed or not.
    """
    loops: list[tuple[int, int]] = []
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1):
        if loops and stride == loops[-1][0] * loops[-1][1]:
            loops[-1] = loops[-1][0], loops[-1][1] * size
        else:
            loops.append((stride, size))
    return tuple(loops)


def same_order(param: Tensor, snapshot: Tensor) -> bool:
    """Whether both are dense and run through memory in the same order, so that a kernel may treat them as flat."""
    if param.is_contiguous() and snapshot.is_contiguous():
        return True
    dims = [i for i, n in enumerate(param.shape) if n != 1]
    return is_dense(param) and all(param.stride(i) == snapshot.stride(i) for i in dims)


def repeats_places(tensor: Tensor) -> bool:
    """Whether several elements share one place, as after ``expand``."""
    end = 1
    for stride, size in coalesced(tensor):
        if stride < end:
            return True
        end = stride * (size - 1) + end
    return False


def span(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor that is not empty, and one past its last."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def signature(tensors: Iterable[Tensor]) -> list[int]:
    """Address, dtype, shape and strides of each tensor as one flat list: equal lists mean that nothing changed."""
    flat: list[int] = []
    for tensor in tensors:
        number = _DTYPE_NUMBERS.setdefault(tensor.dtype, len(_DTYPE_NUMBERS))
        flat += (tensor.data_ptr(), number, tensor.dim(), *tensor.shape, *tensor.stride())
    return flat


class Watch:
    """Remembers where tensors lie and how, and tells whether that still holds; made for being asked at every step.

    What is compared at a look are all addresses and, by one call into torch, all dtypes, shapes and strides. Where that
    call says no, which it also does for changes that do not matter here (``requires_grad``), the signature decides.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.signature = signature(self.tensors)
        self._addresses = list(map(Tensor.data_ptr, self.tensors))
        self._guards = _guards(self.tensors)

    def unchanged(self) -> bool:
        """Whether every tensor has the address, dtype, shape and strides that it had."""
        if list(map(Tensor.data_ptr, self.tensors)) != self._addresses:
            return False
        if self._guards is not None and self._guards.check(*self.tensors):
            return True
        if signature(self.tensors) != self.signature:
            return False
        self._guards = _guards(self.tensors)
        return True


def _guards(tensors: Sequence[Tensor]) -> Any:
    if TensorGuards is None or not tensors:
        return None
    shapes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)
