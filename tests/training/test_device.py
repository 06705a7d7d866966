"""Memory that a step frees stays with the process: counted by the pages that it asks the kernel for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from training import host_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")

PAGES_OF_A_STEP = 2**26 // 4096
STEPS = """
import resource, sys, threading
from training.device import own_device
import torch

def pages():
    # The allocator sets a few freed blocks of each size aside first.
    for _ in range(16):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)

if "keep" in sys.argv:
    assert own_device().type == "cpu"
thread = threading.Thread(target=pages)
if "thread" in sys.argv:
    thread.start()
    thread.join()
else:
    pages()
"""


def pages_of_a_step(*options: str, **environment: str) -> float:
    """Pages that a process asks for in each of ten steps, which write to 64 MB and free them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    found = subprocess.run(
        [sys.executable, "-c", STEPS, *options], env=clean | environment, capture_output=True, text=True, check=True
    )
    return float(found.stdout)


def test_a_step_asks_for_all_its_pages_unless_they_are_kept() -> None:
    assert pages_of_a_step() > 0.9 * PAGES_OF_A_STEP
    assert pages_of_a_step("keep") < 0.1 * PAGES_OF_A_STEP


def test_threads_keep_theirs_by_the_environment_of_their_process() -> None:
    assert pages_of_a_step("thread") > 0.9 * PAGES_OF_A_STEP
    assert pages_of_a_step("thread", **host_memory.environment()) < 0.1 * PAGES_OF_A_STEP


def test_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert host_memory.environment()["MALLOC_MMAP_THRESHOLD_"] == "1000000"
    assert host_memory.environment()["MALLOC_ARENA_MAX"] == "1"
    assert pages_of_a_step("keep", MALLOC_MMAP_THRESHOLD_="1000000") > 0.9 * PAGES_OF_A_STEP
