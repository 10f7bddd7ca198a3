"""The tables that tell the kernels of ``delta_norms`` which addresses to read and where to add up."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import coalesced, same_order, signature

# Position in ``Tables.chunks``. The order is arbitrary and fixed.
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BLOCK = (
    4096  # elements per program: 16 per thread at 8 warps, few enough registers that 3 programs share an SM of sm_90
)


@dataclass(frozen=True)
class Tables:
    """Device tables of one plan.

    Attributes:
        signature: int64 on the host, the tensors the tables were built for as `layout.signature` writes them.
        chunks: per entry of ``DTYPES`` int64 [chunks, 4]: address of the parameter's and of the snapshot's chunk
            (bytes), elements in it, and its row of ``sums``.
        strided: (index of the parameter, row of ``sums``) of pairs without a common dense order.
        offsets: int64 [n_layers + 1], the rows of ``sums`` where each layer begins and ends.
        sums: float64 [rows, 2], scratch: each chunk's sums of squares, of the movement and of the snapshot.
    """

    signature: Tensor
    chunks: list[Tensor]
    strided: list[tuple[int, int]]
    offsets: Tensor
    sums: Tensor

    @functools.cached_property
    def launches(self) -> list[tuple[int, Tensor, int]]:
        """(position in ``DTYPES``, its ``chunks``, how many) where there are any."""
        return [(i, chunks, len(chunks)) for i, chunks in enumerate(self.chunks) if len(chunks)]


def chunk_rows(param: int, snapshot: int, numel: int, itemsize: int, first: int, block: int) -> Tensor:
    """int64 [chunks, 4] of one tensor of ``numel`` elements at the addresses ``param`` and ``snapshot`` (bytes).

    Addresses are whole 64-bit numbers here, so no offset of the kernel grows past ``block`` elements.
    """
    starts = torch.arange(0, numel, block, dtype=torch.int64)
    counts = (numel - starts).clamp_(max=block)
    slots = first + torch.arange(len(starts), dtype=torch.int64)
    return torch.stack([param + starts * itemsize, snapshot + starts * itemsize, counts, slots], dim=1)


def counted(params: Sequence[Tensor], layers: Sequence[int]) -> list[int]:
    """Indices of the parameters to count: not empty, and not the same elements, in whatever order, as an earlier one of
    the same layer."""
    seen: dict[tuple[object, ...], int] = {}
    for i, (param, layer) in enumerate(zip(params, layers, strict=True)):
        if param.numel():
            seen.setdefault((layer, param.data_ptr(), param.dtype, coalesced(param)), i)
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
        signature=torch.tensor(signature([*params, *snapshots]), dtype=torch.int64),
        chunks=[torch.cat([none, *rows]).to(device) for rows in chunks],
        strided=strided,
        offsets=torch.tensor([0, *ends[:n_layers]], dtype=torch.int64, device=device),
        sums=torch.zeros(max(row, 1), 2, dtype=torch.float64, device=device),
    )


def check_pairs(params: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless every snapshot has its parameter's shape, dtype and device, all are on one device and
    the dtypes are known."""
    for i, (param, snapshot) in enumerate(zip(params, snapshots, strict=True)):
        if (param.shape, param.dtype, param.device) != (snapshot.shape, snapshot.dtype, snapshot.device):
            raise ValueError(f"snapshots[{i}] differs from params[{i}] in shape, dtype or device")
        if param.dtype not in DTYPES:
            raise ValueError(f"params[{i}] is {param.dtype}; norms are for float32, float16, bfloat16 and float64")
        if param.device != params[0].device:
            raise ValueError(f"params[{i}] is on {param.device}, params[0] on {params[0].device}")
