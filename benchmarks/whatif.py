"""What `worldloom whatif` takes as a command, its start included, on a curation of made-up footage.

    python -m benchmarks.whatif [10000] [--repeats 3] [--folder DIR]

Writes the curation first (see `synthetic.py`; `--folder` keeps it, or takes one that is there), then asks for another threshold as often
as `--repeats` says. Prints one line of JSON last: medians of the seconds on the clock and of the CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.synthetic import write_run

QUESTION = ("--set", "curate.keep.motion.min=0.02")


def cpu_of_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ask(recipe: Path) -> tuple[float, float]:
    """Seconds on the clock and CPU seconds of one `worldloom whatif`."""
    start_s, start_cpu_s = time.monotonic(), cpu_of_children_s()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "whatif", str(recipe), *QUESTION],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"worldloom whatif ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - start_s, cpu_of_children_s() - start_cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        recipe = (arguments.folder or Path(temporary)) / "recipe.yaml"
        if not recipe.exists():
            start_s = time.monotonic()
            write_run(recipe.parent, arguments.clips)
            print(f"wrote a curation of {arguments.clips} clips in {time.monotonic() - start_s:.1f} s")
        times = [ask(recipe) for _ in range(arguments.repeats)]
    seconds, cpu_s = (round(statistics.median(values), 2) for values in zip(*times, strict=True))
    print(json.dumps({"clips": arguments.clips, "seconds": seconds, "cpu_s": cpu_s, "repeats": arguments.repeats}))


if __name__ == "__main__":
    main()
