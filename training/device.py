"""The device that a process trains on by default, the number of its threads, and glibc settings that keep memory freed
by one training step for the next.

By default glibc returns every freed block of over 32 MB to the kernel, and in threads everything that such a block
held. Each training step then asks for the same memory again, page by page, and the kernel first fills each page with
zeros. With tensors on the CPU this takes a tenth of a step's time, and a quarter with ZeRO, which copies all gradients
and weights. The settings below avoid that; in exchange, a process never shrinks below the most memory it has held.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    # Benchmarks of a GPU run where torch is installed and pydantic, which settings need, is not.
    from training.workers import Device

MAX_KEPT_BYTES = 1 << 30
"""Size of the largest freed block that glibc keeps."""

ALLOCATOR_SETTINGS = "PYTORCH_CUDA_ALLOC_CONF"
"""Environment variable with the settings of torch's allocator of GPU memory."""

THRESHOLDS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""glibc's limits on the blocks it keeps: environment variable, and the option number of `mallopt` (`malloc.h`)."""


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU.

    With the CPU, the main thread keeps freed memory from now on. With the GPU, torch follows `gpu_environment`, unless
    this process has used the GPU before.
    """
    os.environ.update(gpu_environment())
    if torch.cuda.is_available():
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def device_for(choice: Device) -> torch.device:
    """Return the device that the setting `device` of a training in this process names; auto is `default_device`.

    Raises `ValueError` for cuda if torch sees no GPU.
    """
    if choice == "cpu":
        keep_freed_memory()
        return torch.device("cpu")
    device = default_device()
    if choice != "auto" and device.type != choice:
        raise ValueError(
            f"{choice}: torch {torch.__version__} sees no GPU on this machine; install torch with CUDA and the driver, "
            "or write device: auto, or cpu"
        )
    return device


@contextlib.contextmanager
def computing_in_one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone inside the block.

    Convolutions divide an image among threads, and round differently for some numbers of them: on a CPU, latents of
    `causal` with 3 or 7 threads differed from those with 1, 2, 4 or 16.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def memory_environment() -> dict[str, str]:
    """Return environment variables with which a new process keeps freed memory in all its threads.

    Variables that the user has set keep their values.
    """
    # Only glibc's first arena can grow to any size, so all threads have to share it.
    wanted = {"MALLOC_ARENA_MAX": "1"} | dict.fromkeys(THRESHOLDS, str(MAX_KEPT_BYTES))
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def cpu_environment() -> dict[str, str]:
    """Return environment variables of a new process that trains on CPUs: those of `memory_environment`, and none of the
    GPUs that the machine may have.
    """
    return memory_environment() | {"CUDA_VISIBLE_DEVICES": ""}


def gpu_environment() -> dict[str, str]:
    """Return environment variables with which torch extends segments of a GPU's memory instead of adding new ones.

    Packs differ in size from step to step, and memory in segments of fixed sizes is lost between them. A value that the
    user has set is kept.
    """
    return {ALLOCATOR_SETTINGS: os.environ.get(ALLOCATOR_SETTINGS, "expandable_segments:True")}


def keep_freed_memory() -> None:
    """Keep freed memory in the main thread of this process; do nothing without glibc or for thresholds that the user
    has set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, option in THRESHOLDS.items():
            if name not in os.environ:
                mallopt(option, MAX_KEPT_BYTES)
