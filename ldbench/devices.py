"""Devices and their memory: which one to train on, what it holds, and waiting for it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

from ldbench.errors import UserError

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the rest of the process. Whether it does.

    By default glibc returns large blocks to the system and fetches them anew, zeroed page by page: of a step of a
    narrow ResNet-18 on a CPU 5 to 15 % of the time, and which blocks it hits changes from run to run. The most that
    training needs at any time stays the same. Elsewhere than with glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(bool(set_option(option, value)) for option, value in wanted)


def check_memory(what: str, needed: int, cure: str) -> None:
    """Raises ``UserError`` where ``needed`` bytes are more than the machine's memory."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UserError(f"{what} takes {needed / 1e9:.1f} GB and this machine has {present / 1e9:.1f} GB: {cure}")


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_host_bytes() -> int:
    """Memory the system could hand out now without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def resolve_device(name: str) -> torch.device:
    """The device to train on; "auto" takes CUDA where there is one. Raises ``UserError``."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "this torch sees no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
        raise UserError(f"--device {name}: {built}; use --device cpu or auto")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device
