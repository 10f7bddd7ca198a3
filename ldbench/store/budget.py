"""How large a store may be in each tier, and how large it gets."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ldbench.devices import free_host_bytes
from ldbench.errors import UserError, nearest, shown
from ldbench.kernels import row_stride, scale_count

Tier = Literal["device", "pinned", "disk"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
AUTO_SHARE = 0.5  # of what is free: the other half is for the live stages, the next store and other people
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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


@dataclass(frozen=True)
class StoreOptions:
    """What an activation store may be.

    Attributes:
        dtype: of its rows: "fp32", "bf16", "fp16" or "int8".
        budget: bytes it may take in each tier, in numbers or as ``resolve_budget`` reads them; None: half of what is
            free.
        folder: where a memory-mapped store may lie; None: a temporary folder.
        identity: names the data's content; with it a memory-mapped store can be taken up again after an interruption.
    """

    dtype: str = "fp32"
    budget: str | StoreBudget | None = None
    folder: Path | None = None
    identity: str | None = None

    def check(self) -> None:
        """Raises ``UserError`` where the dtype is unknown or the budget no sizes."""
        if self.dtype not in DTYPES:
            raise UserError(f"the store's dtype {shown(self.dtype)} is unknown: {nearest(str(self.dtype), DTYPES)}")
        if isinstance(self.budget, str):
            parse_budget(self.budget)


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


def resolve_budget(wanted: str | StoreBudget | None, device: torch.device, folder: Path) -> StoreBudget:
    """The budget ``--cache-budget`` asks for.

    Args:
        wanted: None for half of what is free in each tier; "DEVICE", "DEVICE,HOST" or "DEVICE,HOST,DISK" sizes; or a
            budget, which it is then.
        device: where training runs.
        folder: an existing folder on the disk that would hold a memory-mapped store.
    """
    if isinstance(wanted, StoreBudget):
        return wanted
    host = int(free_host_bytes() * AUTO_SHARE)
    on_gpu = device.type == "cuda"
    auto = [
        int(torch.cuda.mem_get_info(device)[0] * AUTO_SHARE) if on_gpu else host,
        host if on_gpu else 0,
        int(shutil.disk_usage(folder).free * AUTO_SHARE),
    ]
    parts = parse_budget(wanted) if wanted is not None else []
    sizes = parts + auto[len(parts) :]
    return StoreBudget(sizes[0], sizes[1] if on_gpu else 0, sizes[2])


def store_bytes(samples: int, shape: Sequence[int], dtype: str) -> int:
    """Bytes of a store of ``samples`` activations of ``shape`` (one sample), padding and int8 scales included."""
    scales = 4 * scale_count(shape) if dtype == "int8" else 0
    torch_dtype = DTYPES[dtype]
    stride: int = row_stride(math.prod(shape), torch_dtype)
    return samples * (stride * torch_dtype.itemsize + scales)
