"""Measure the time of the command `worldloom whatif`, the start of Python included, on a synthetic curation.

    python -m benchmarks.whatif [10000] [--repeats 3] [--folder DIR]

Writes the curation first (see `synthetic.py`), to `--folder` if it holds none yet, or else to a temporary folder.
Then runs `whatif` with another threshold `--repeats` times. Prints one line of JSON last: the medians of wall seconds
and of CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.synthetic import curation_for

QUESTION = ("--set", "curate.keep.motion.min=0.02")


def cpu_of_children_s() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_whatif(recipe: Path) -> tuple[float, float]:
    """Run `worldloom whatif` once and return its wall seconds and CPU seconds."""
    start_s, start_cpu_s = time.monotonic(), cpu_of_children_s()
    finished = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "whatif", str(recipe), *QUESTION],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"worldloom whatif ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return time.monotonic() - start_s, cpu_of_children_s() - start_cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with curation_for(arguments.clips, arguments.folder) as recipe:
        times = [run_whatif(recipe) for _ in range(arguments.repeats)]
    seconds, cpu_s = (round(statistics.median(values), 2) for values in zip(*times, strict=True))
    print(json.dumps({"clips": arguments.clips, "seconds": seconds, "cpu_s": cpu_s, "repeats": arguments.repeats}))


if __name__ == "__main__":
    main()
