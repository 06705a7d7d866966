"""Measurements and lists of files that several benchmarks share."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm"})


def video_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Return the video files of a folder by their suffix, sorted; with `recursive`, those of its subfolders too."""
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process, all threads, that `work` takes."""
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def wall_s(work: Callable[[], object]) -> float:
    """Return the seconds on the clock that `work` takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def peak_memory_mb() -> float:
    """Return the highest resident memory of this process in MiB, since its start or `reset_peak_memory`.

    On Linux it is read from /proc, since `getrusage` of a child process starts at what its parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak_memory() -> None:
    """Restart the count of `peak_memory_mb`, which Linux does when 5 is written here (proc_pid_clear_refs(5))."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5")
