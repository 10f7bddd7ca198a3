"""The activation store: the output of the dropped stages for every training sample, read by sample index.

A store lives on the device while it fits the budget, then in pinned host memory, then in a memory-mapped file. A sample is
one flat row in its memory format; rows are padded so that wide loads stay aligned.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldbench.devices import free_host_bytes
from ldbench.errors import UserError, shown
from ldbench.kernels import gather_rows, quantize_rows, row_stride, scale_count

Tier = Literal["device", "pinned", "disk"]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


AUTO_SHARE = 0.5  # of what is free: the other half is for the live stages, the next store and other people


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class StoreLost(Exception):
    """The file of a memory-mapped store was truncated: its rows are gone, and touching them would end the process."""


@dataclass(frozen=True)
class StoreBudget:
    """Bytes a store may take in each tier. On a CPU "device" is the host's memory and there is no pinned tier."""

    device: int
    pinned: int
    disk: int

    def tier_for(self, size: int) -> Tier | None:
        """The fastest tier that holds ``size`` bytes, or None."""
        for tier in ("device", "pinned", "disk"):
            if size <= getattr(self, tier):
                return tier
        return None


def parse_bytes(text: str) -> int:
    """Bytes from "512MiB", "4GB", "1.5g" or a plain number. Raises ``UserError``."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] == "i":
        raise UserError(f"cache budget {shown(text)} is no size: write bytes or a size such as 512MiB or 4GB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_budget(text: str) -> list[int]:
    """Bytes per tier from "DEVICE", "DEVICE,HOST" or "DEVICE,HOST,DISK". Raises ``UserError``."""
    sizes = [parse_bytes(part) for part in text.split(",")]
    if len(sizes) > 3:
        raise UserError(f"cache budget {shown(text)} has more than three sizes (device, host, disk)")
    return sizes


def resolve_budget(text: str | None, device: torch.device, folder: Path) -> StoreBudget:
    """The budget ``--cache-budget`` asks for.

    Args:
        text: None for half of what is free in each tier; "DEVICE", "DEVICE,HOST" or "DEVICE,HOST,DISK" sizes.
        device: where training runs.
        folder: an existing folder on the disk that would hold a memory-mapped store.
    """
    host = int(free_host_bytes() * AUTO_SHARE)
    on_gpu = device.type == "cuda"
    auto = [
        int(torch.cuda.mem_get_info(device)[0] * AUTO_SHARE) if on_gpu else host,
        host if on_gpu else 0,
        int(shutil.disk_usage(folder).free * AUTO_SHARE),
    ]
    parts = parse_budget(text) if text is not None else []
    sizes = parts + auto[len(parts) :]
    return StoreBudget(sizes[0], sizes[1] if on_gpu else 0, sizes[2])


def store_bytes(samples: int, shape: Sequence[int], dtype: str) -> int:
    """Bytes of a store of ``samples`` activations of ``shape`` (one sample), padding and int8 scales included."""
    scales = 4 * scale_count(shape) if dtype == "int8" else 0
    torch_dtype = DTYPES[dtype]
    stride: int = row_stride(math.prod(shape), torch_dtype)
    return samples * (stride * torch_dtype.itemsize + scales)


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
        self, samples: int, shape: Sequence[int], dtype: str, tier: Tier, device: torch.device, *,
        channels_last: bool = False, folder: Path | None = None, reopen: Path | None = None,
    ) -> None:  # fmt: skip
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
    def nbytes(self) -> int:
        """Bytes held, scales included."""
        return self.rows.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def write(self, indices: Tensor, activations: Tensor) -> None:
        """Store activations [B, *shape] as the rows ``indices`` (int64 [B], CPU). Raises ``StoreLost``, see ``read``."""
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
        """Activations [B, *shape] of the samples ``indices`` (int64 [B], CPU) on the device, in the dtype they were computed in.

        Raises ``StoreLost`` when the file was truncated.
        """
        self._check_file()
        batch: Tensor = gather_rows(
            self.rows, indices, self.shape, dtype=self.out_dtype, scales=self.scales, channels_last=self.channels_last,
            device=self.device,
        )  # fmt: skip
        return batch

    def relative_error(self, indices: Tensor, activations: Tensor) -> float:
        """Root mean square of what storing changed in these rows, relative to that of the activations; 0 for an exact store."""
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
