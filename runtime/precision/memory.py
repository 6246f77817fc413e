"""Keeping freed memory in the process, so that large activations are not paged in at every call.

glibc gives memory of freed activations of some megabytes back to the system at once, and the next
call takes thousands of page faults to get it again: at batch 64 that doubled the latency of one
assignment in three, and of different ones in every process. What the environment variables
MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ do at start-up can be done later.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # numbers of malloc.h
_LARGEST_MMAP_THRESHOLD = 1 << 25  # glibc takes no more on 64 bits
_KEPT_BYTES = 1 << 30
_PAD_BYTES = 1 << 26


def keep_memory() -> bool:
    """Let the process keep up to a gigabyte of freed memory.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _PAD_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
