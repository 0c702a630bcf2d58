"""Keeping freed memory in the process, where the system allows it."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what tensors free, instead of giving it back at every step.

    Large tensors are otherwise mapped, cleared and unmapped page by page in each step, which
    costs up to half of the time on a CPU. Says whether it took effect (glibc on Linux only).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
