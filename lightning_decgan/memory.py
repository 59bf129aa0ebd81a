"""Memory that a training step has freed stays with the process, for the next step: on a CPU each step else pays for it.

It changes how fast steps are, never what they compute.
"""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_THRESHOLDS_BYTES = (2**30, 2**25)
"""Blocks below come from memory that is kept. 1 GiB is far above any tensor of a step on a CPU; 32 MiB is the most that
older versions of glibc take."""


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library not to give freed memory back to the kernel; for this process, from now on.

    glibc maps large blocks one by one and unmaps them when they are freed, so the kernel has to find and clear every
    page of a step's activations anew in the next step. The process then holds the most that it ever used, as one that
    trains on a GPU does.

    Returns:
        Whether it was done: with glibc on Linux; elsewhere nothing is changed.

    Example:
        >>> keep_freed_memory() in (True, False)
        True

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _THRESHOLDS_BYTES)
    return mallopt(_M_TRIM_THRESHOLD, max(_THRESHOLDS_BYTES)) == 1 and kept
