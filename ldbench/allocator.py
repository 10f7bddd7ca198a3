"""The C allocator's habit of giving memory back, which makes the time of a training step on a CPU a matter of luck."""

from __future__ import annotations

import ctypes
import functools
import platform

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the rest of the process. Whether it does.

    By default glibc returns large blocks to the system and fetches them anew, zeroed page by page: of a step of a narrow
    ResNet-18 on a CPU 5 to 15 % of the time, and which blocks it hits changes from run to run. The most that training
    needs at any time stays the same. Elsewhere than with glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(bool(set_option(option, value)) for option, value in wanted)
