"""Memory that a step frees stays with the process, counted by the pages that it requests from the kernel."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from training.device import device_for, memory_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators"),
]

PAGES_PER_STEP = 2**26 // 4096
STEPS = """
import resource, sys, threading
from training.device import default_device
import torch

def pages():
    # First the allocator puts a few freed blocks of each size aside.
    for _ in range(16):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)

if "keep" in sys.argv:
    assert default_device().type == "cpu"
thread = threading.Thread(target=pages)
if "thread" in sys.argv:
    thread.start()
    thread.join()
else:
    pages()
"""


def pages_per_step(*options: str, **environment: str) -> float:
    """Return the pages that a process requests in each of ten steps, which write to 64 MB and free them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    found = subprocess.run(
        [sys.executable, "-c", STEPS, *options], env=clean | environment, capture_output=True, text=True, check=True
    )
    return float(found.stdout)


def test_the_default_device_keeps_freed_memory() -> None:
    assert pages_per_step() > 0.9 * PAGES_PER_STEP
    assert pages_per_step("keep") < 0.1 * PAGES_PER_STEP


def test_the_environment_keeps_memory_in_threads() -> None:
    assert pages_per_step("thread") > 0.9 * PAGES_PER_STEP
    assert pages_per_step("thread", **memory_environment()) < 0.1 * PAGES_PER_STEP


def test_thresholds_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert memory_environment()["MALLOC_MMAP_THRESHOLD_"] == "1000000"
    assert memory_environment()["MALLOC_ARENA_MAX"] == "1"
    assert pages_per_step("keep", MALLOC_MMAP_THRESHOLD_="1000000") > 0.9 * PAGES_PER_STEP


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error() -> None:
    assert (device_for("auto").type, device_for("cpu").type) == ("cpu", "cpu")
    with pytest.raises(ValueError, match=r"^cuda: torch [^ ]* sees no GPU on this machine; install torch with CUDA"):
        device_for("cuda")
