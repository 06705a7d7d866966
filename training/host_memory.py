"""Have glibc keep the memory that a step frees, so that the next step writes to pages it has already.

By default glibc gives every block of over 32 MB back to the kernel, and in a thread all that is in one: each step then asks for them anew, page by
page, and the kernel fills each with zeros first. Where tensors are on the CPU that is a tenth of a step's time, and a quarter with ZeRO, which
copies all gradients and weights. What a process holds at its most it holds from then on.
"""

from __future__ import annotations

import ctypes
import os

LARGEST = 1 << 30
"""Bytes of the largest block that is kept."""

THRESHOLDS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""What glibc does not keep above: the variable, and the number that `mallopt` knows it by (`malloc.h`)."""


def environment() -> dict[str, str]:
    """Variables for a process that is yet to start, in any of whose threads memory is kept; what the user has set stands."""
    # Only the first arena grows to any size, so threads have to share it.
    ours = {"MALLOC_ARENA_MAX": "1"} | dict.fromkeys(THRESHOLDS, str(LARGEST))
    return {name: os.environ.get(name, value) for name, value in ours.items()}


def keep() -> None:
    """The same for the main thread of this process; without glibc nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, option in THRESHOLDS.items():
            if name not in os.environ:
                mallopt(option, LARGEST)
