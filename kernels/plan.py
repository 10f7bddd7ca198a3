"""What ``delta_norms`` works on: checked tensors, and the tables that tell its kernel where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Position in ``Tables.chunks``. The order is arbitrary and fixed.
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BLOCK = (
    4096  # elements per program: 16 per thread at 8 warps, few enough registers that 3 programs share an SM of sm_90
)


@dataclass(frozen=True)
class Tables:
    """Device tables of one plan.

    Attributes:
        pointers: int64 [2 T] on the host, the addresses of parameters and snapshots the tables were built for.
        chunks: per entry of ``DTYPES`` int64 [chunks, 4]: address of the parameter's and of the snapshot's chunk (bytes),
            elements in it, and its row of ``sums``.
        strided: (index of the parameter, row of ``sums``) of pairs without a common dense order.
        offsets: int64 [n_layers + 1], the rows of ``sums`` where each layer begins and ends.
        sums: float64 [rows, 2], scratch: each chunk's sums of squares, of the movement and of the snapshot.
    """

    pointers: Tensor
    chunks: list[Tensor]
    strided: list[tuple[int, int]]
    offsets: Tensor
    sums: Tensor


def addresses(params: Sequence[Tensor], snapshots: Sequence[Tensor]) -> list[int]:
    """Where the tensors lie now: the addresses of the parameters, then of the snapshots."""
    return [tensor.data_ptr() for tensors in (params, snapshots) for tensor in tensors]


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory, each place once, in whatever order."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(param: Tensor, snapshot: Tensor) -> bool:
    """Whether both are dense and run through memory in the same order, so that the kernel may treat them as flat."""
    if param.is_contiguous() and snapshot.is_contiguous():
        return True
    dims = [i for i, n in enumerate(param.shape) if n != 1]
    return is_dense(param) and all(param.stride(i) == snapshot.stride(i) for i in dims)


def chunk_rows(param: int, snapshot: int, numel: int, itemsize: int, first: int, block: int) -> Tensor:
    """int64 [chunks, 4] of one tensor of ``numel`` elements at the addresses ``param`` and ``snapshot`` (bytes).

    Addresses are whole 64-bit numbers here, so no offset of the kernel grows past ``block`` elements.
    """
    starts = torch.arange(0, numel, block, dtype=torch.int64)
    counts = (numel - starts).clamp_(max=block)
    slots = first + torch.arange(len(starts), dtype=torch.int64)
    return torch.stack([param + starts * itemsize, snapshot + starts * itemsize, counts, slots], dim=1)


def counted(params: Sequence[Tensor], layers: Sequence[int]) -> list[int]:
    """Indices of the parameters to count: not empty, and not tied to an earlier one of the same layer."""
    seen: dict[tuple[object, ...], int] = {}
    for i, (param, layer) in enumerate(zip(params, layers, strict=True)):
        if param.numel():
            seen.setdefault((layer, param.data_ptr(), param.shape, param.stride(), param.dtype), i)
    return list(seen.values())


def build_tables(
    params: Sequence[Tensor], snapshots: Sequence[Tensor], layers: Sequence[int], n_layers: int, block: int = BLOCK
) -> Tables:
    """Tables for these tensors as they lie now.

    A parameter listed again in one layer counts once there; its second snapshot is still written. Such a repetition
    goes to rows of ``sums`` behind the last layer's, which nobody adds up.
    """
    device = params[0].device if params else torch.device("cpu")
    once = set(counted(params, layers))
    written = {snapshots[i].data_ptr() for i in once}
    entries = [(layers[i], i) for i in once]
    entries += [(n_layers, i) for i, s in enumerate(snapshots) if s.numel() and s.data_ptr() not in written]
    chunks: list[list[Tensor]] = [[] for _ in DTYPES]
    strided, ends, row = [], [0] * (n_layers + 1), 0
    for layer, i in sorted(entries):
        param, snapshot = params[i], snapshots[i]
        if same_order(param, snapshot):
            rows = chunk_rows(param.data_ptr(), snapshot.data_ptr(), param.numel(), param.element_size(), row, block)
            chunks[DTYPES.index(param.dtype)].append(rows)
            row += len(rows)
        else:
            strided.append((i, row))
            row += 1
        ends[layer] = row
    for layer in range(1, n_layers + 1):
        ends[layer] = max(ends[layer], ends[layer - 1])
    none = torch.empty(0, 4, dtype=torch.int64)
    return Tables(
        pointers=torch.tensor(addresses(params, snapshots), dtype=torch.int64),
        chunks=[torch.cat([none, *rows]).to(device) for rows in chunks],
        strided=strided,
        offsets=torch.tensor([0, *ends[:n_layers]], dtype=torch.int64, device=device),
        sums=torch.zeros(max(row, 1), 2, dtype=torch.float64, device=device),
    )


class DeltaNormPlan:
    """What ``delta_norms`` works on, checked once. Tensors may move afterwards: every call looks where they lie.

    Args:
        params: parameters of any shape, strides and floating dtype, all on one device.
        snapshots: one tensor per parameter with its shape and dtype, in memory of its own.
        layers: layer of each parameter, from 0 to ``n_layers - 1``; several parameters may share one. A parameter listed
            twice in one layer counts once there, one listed in two layers counts in both.
        n_layers: number of layers; one without parameters has norm 0.
        block: elements per program of the kernel, a power of two; tests make it small.

    Raises:
        ValueError: lengths, shapes, dtypes or devices that do not match, snapshots that share memory with each other or
            with a parameter, a layer out of range.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        snapshots: Sequence[Tensor],
        layers: Sequence[int],
        n_layers: int,
        block: int = BLOCK,
    ) -> None:
        if not len(params) == len(snapshots) == len(layers):
            lengths = f"{len(params)}, {len(snapshots)} and {len(layers)}"
            raise ValueError(f"params, snapshots and layers differ in length: {lengths}")
        if n_layers < 0:
            raise ValueError(f"n_layers must not be negative, not {n_layers}")
        if any(not 0 <= layer < n_layers for layer in layers):
            raise ValueError(f"layers must lie between 0 and {n_layers - 1}")
        if block < 1 or block & (block - 1):
            raise ValueError(f"block must be a power of two, not {block}")
        self.params, self.snapshots, self.n_layers = list(params), list(snapshots), n_layers
        self.layer_list, self.block = [int(layer) for layer in layers], block
        self.device = torch.device("cpu")
        self._addresses: list[int] | None = None
        self._tables: Tables | None = None
        self.follow()

    def _check(self) -> None:
        for i, (param, snapshot) in enumerate(zip(self.params, self.snapshots, strict=True)):
            if (param.shape, param.dtype, param.device) != (snapshot.shape, snapshot.dtype, snapshot.device):
                raise ValueError(f"snapshots[{i}] differs from params[{i}] in shape, dtype or device")
            if param.dtype not in DTYPES:
                raise ValueError(f"params[{i}] is {param.dtype}; norms are for float32, float16, bfloat16 and float64")
            if param.device != self.params[0].device:
                raise ValueError(f"params[{i}] is on {param.device}, params[0] on {self.params[0].device}")
        self._check_apart()

    def _check_apart(self) -> None:
        spans = []  # (first byte, one past the last, whether a snapshot, index)
        for is_snapshot, tensors in ((False, self.params), (True, self.snapshots)):
            for i, tensor in enumerate(tensors):
                if tensor.numel():
                    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
                    start = tensor.data_ptr()
                    spans.append((start, start + (last + 1) * tensor.element_size(), is_snapshot, i))
        reach: dict[bool, tuple[int, int]] = {False: (0, -1), True: (0, -1)}  # furthest end so far, and whose it is
        for start, end, is_snapshot, i in sorted(spans):
            for other_is in (False, True) if is_snapshot else (True,):
                limit, j = reach[other_is]
                same = is_snapshot and other_is and self._same_pair(i, j)
                if start < limit and not same:
                    mine, theirs = ("snapshots" if kind else "params" for kind in (is_snapshot, other_is))
                    raise ValueError(f"{mine}[{i}] shares memory with {theirs}[{j}]; clone the snapshots")
            reach[is_snapshot] = max(reach[is_snapshot], (end, i))

    def _same_pair(self, i: int, j: int) -> bool:
        """Whether two entries are the same parameter with the same snapshot in the same layer."""

        def identity(k: int) -> tuple[object, ...]:
            pair = (self.params[k], self.snapshots[k])
            return (self.layer_list[k], *[(t.data_ptr(), t.shape, t.stride()) for t in pair])

        return identity(i) == identity(j)

    def tables(self) -> Tables:
        """The kernel's tables, built at the first call and again after a tensor moved.

        Inside ``torch.compile`` the last ones, since addresses are unknown there; the custom op looks again.

        Raises:
            ValueError: what moved no longer matches.
            RuntimeError: a tensor moved, or the tables were never built, while a CUDA graph is captured.
        """
        if self._tables is not None and torch.compiler.is_compiling():
            return self._tables
        tables: Tables = self._current_tables()
        return tables

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _current_tables(self) -> Tables:
        moved = addresses(self.params, self.snapshots) != self._addresses
        if moved or self._tables is None:
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("call delta_norms once with this plan before capturing it in a CUDA graph")
            self.follow()
            self._tables = build_tables(self.params, self.snapshots, self.layer_list, self.n_layers, self.block)
        return self._tables

    def follow(self) -> None:
        """Check again what moved since the last look. Raises ``ValueError`` where it no longer matches."""
        now = addresses(self.params, self.snapshots)
        if now != self._addresses:
            self._check()
            self.device = self.params[0].device if self.params else torch.device("cpu")
            self._addresses = now
