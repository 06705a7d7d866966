"""Cores of the connected Ray, and whether ended work frees them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def no_automatic_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in the block, unless code calls it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wait_for_free_cores(timeout_s: float = 60) -> None:
    """Wait until no work holds a core. Raises `AssertionError` if that takes longer than `timeout_s`."""
    import ray

    end_s = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0)) < (total := ray.cluster_resources()["CPU"]):
        assert time.monotonic() < end_s, f"{free:g} of {total:g} cores are free after {timeout_s:g} s"
        time.sleep(0.2)
