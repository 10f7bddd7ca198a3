"""The activation store: the output of the dropped stages for every training sample, read by sample index.

A store lives on the device while it fits the budget, then in pinned host memory, then in a memory-mapped file. A
sample is one flat row in its memory format; rows are padded so that wide loads stay aligned.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldbench.kernels import gather_rows, quantize_rows, row_stride, scale_count
from ldbench.store.budget import DTYPES, Tier


class StoreLost(Exception):
    """The file of a memory-mapped store was truncated: its rows are gone, and touching them would end the process."""


class ActivationStore:
    """Activations of ``samples`` training samples.

    Args:
        samples: number of rows.
        shape: one activation, (C, H, W) or (D,) or (T, D).
        dtype: "fp32", "bf16", "fp16" or "int8" (with one scale per sample and channel, or per sample for small maps).
        tier: where the rows lie.
        device: where minibatches are wanted.
        channels_last: the memory format minibatches are wanted in.
        folder: where a memory-mapped file is made; needed for the disk tier.
        reopen: a file of an earlier, equal store to map instead of making one; the caller has checked it.
    """

    def __init__(
        self,
        samples: int,
        shape: Sequence[int],
        dtype: str,
        tier: Tier,
        device: torch.device,
        *,
        channels_last: bool = False,
        folder: Path | None = None,
        reopen: Path | None = None,
    ) -> None:
        self.samples, self.shape, self.dtype, self.tier = samples, tuple(shape), dtype, tier
        self.device, self.channels_last = device, channels_last and len(self.shape) == 3
        self.out_dtype = torch.float32
        self.file: Path | None = reopen
        self._handle: int | None = None
        self._mapped = torch.empty(0, dtype=torch.uint8)
        stride = row_stride(math.prod(self.shape), DTYPES[dtype], pinned=tier == "pinned")
        self.rows = self._allocate(stride, folder)
        self.scales: Tensor | None = None
        if dtype == "int8":
            self.scales = self._allocate_scales()

    def _allocate(self, stride: int, folder: Path | None) -> Tensor:
        size = (self.samples, stride)
        torch_dtype = DTYPES[self.dtype]
        if self.tier == "device":
            return torch.zeros(size, dtype=torch_dtype, device=self.device)
        if self.tier == "pinned":
            return torch.zeros(size, dtype=torch_dtype, pin_memory=True)
        rows = math.prod(size) * torch_dtype.itemsize
        self._map(rows + (4 * self.samples * scale_count(self.shape) if self.dtype == "int8" else 0), folder)
        return self._mapped[:rows].view(torch_dtype).view(size)

    def _allocate_scales(self) -> Tensor:
        size = (self.samples, scale_count(self.shape))
        if self.tier == "disk":  # behind the rows in the same file, so that the file alone is the store
            return self._mapped[self.rows.nbytes :].view(torch.float32).view(size)
        if self.tier == "pinned":
            return torch.zeros(size, pin_memory=True)
        return torch.zeros(size, device=self.device)

    def _map(self, size: int, folder: Path | None) -> None:
        """Map ``size`` bytes of a new file in ``folder``, or of the file to reopen."""
        if self.file is None:
            self._handle, name = tempfile.mkstemp(prefix="store-", suffix=".bin", dir=folder)
            self.file = Path(name)
            try:  # claim the blocks now: a full disk is an error here, a bus error inside a memory map
                os.posix_fallocate(self._handle, 0, max(1, size))
            except OSError:
                self.close()
                raise
        else:
            self._handle = os.open(self.file, os.O_RDWR)
        self._mapped = torch.from_file(str(self.file), shared=True, size=size, dtype=torch.uint8)

    @property
    def largest(self) -> float:
        """The largest value that a row holds; int8 rows are scaled to hold any float32."""
        return torch.finfo(torch.float32 if self.dtype == "int8" else DTYPES[self.dtype]).max

    @property
    def nbytes(self) -> int:
        """Bytes held, scales included."""
        return self.rows.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def write(self, indices: Tensor, activations: Tensor) -> None:
        """Store activations [B, *shape] as rows ``indices`` (int64 [B], CPU). Raises ``StoreLost``, see ``read``."""
        self._check_file()
        self.out_dtype = activations.dtype
        where = indices.to(self.rows.device)
        if self.scales is not None:
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            rows, scales = quantize_rows(activations.contiguous(memory_format=layout))
            self.rows[where, : rows.shape[1]] = rows.to(self.rows.device)
            self.scales[where] = scales.to(self.scales.device)
            return
        if self.channels_last:
            activations = activations.permute(0, 2, 3, 1)
        flat = activations.reshape(len(indices), -1)
        self.rows[where, : flat.shape[1]] = flat.to(self.rows.device, self.rows.dtype)

    def _check_file(self) -> None:
        if self._handle is not None and os.fstat(self._handle).st_size < len(self._mapped):
            raise StoreLost(f"{self.file} was truncated")

    def read(self, indices: Tensor) -> Tensor:
        """Activations [B, *shape] of the samples ``indices`` (int64 [B], CPU) on the device, in the dtype they came in.

        Raises ``StoreLost`` when the file was truncated.
        """
        self._check_file()
        batch: Tensor = gather_rows(
            self.rows,
            indices,
            self.shape,
            dtype=self.out_dtype,
            scales=self.scales,
            channels_last=self.channels_last,
            device=self.device,
        )
        return batch

    def relative_error(self, indices: Tensor, activations: Tensor) -> float:
        """Root mean square of what storing changed in these rows, relative to the activations; 0 if exact."""
        exact = activations.double()
        change = self.read(indices).double() - exact
        return float(change.square().sum().sqrt() / exact.square().sum().sqrt().clamp_min(1e-300))

    def close(self, *, keep_file: bool = False) -> None:
        """Free the rows; delete the file of the disk tier, unless ``keep_file``."""
        self.rows = torch.empty(0)
        self.scales = None
        self._mapped = torch.empty(0, dtype=torch.uint8)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self.file is not None and not keep_file:
            self.file.unlink(missing_ok=True)
        self.file = None
