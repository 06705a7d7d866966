"""Measure the commands that read a whole curation: seconds, CPU seconds and peak memory of each, with Python's start.

    python -m benchmarks.commands [100000] [--folder DIR] [--only plan ledger ...]

Writes the curation first (see `synthetic.py`), to `--folder` if it holds none yet, or else to a temporary folder. Then
runs each command in a process of its own. Prints one line of JSON last: the figures of each command.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.synthetic import curation_for

COMMANDS = {
    "curate": ("curate", "--inline"),
    "plan": ("plan",),
    "ledger": ("ledger",),
    "whatif": ("whatif", "--no-curves", "--set", "curate.keep.motion.min=0.02"),
    "report": ("report",),
    "audit": ("audit", "--pairs", "0"),
    "status": ("status",),
}
"""Arguments of each command beside the recipe, or beside the run's folder for `status`. `curate` has nothing to do but
to write the splits, which `audit` reads."""
MEASURED = """
import sys
from benchmarks.measuring import peak_memory_mb
from pipelines import cli
try:
    cli.main()
finally:
    print(f"peak_mb={peak_memory_mb():.0f}", file=sys.stderr)
"""


def measure(recipe: Path, name: str) -> dict[str, float]:
    """Run a command once; return its seconds on the clock and of CPUs, and its peak memory in MB."""
    command, *options = COMMANDS[name]
    subject = recipe.parent / "out" if name == "status" else recipe
    arguments = [sys.executable, "-c", MEASURED, command, str(subject), *options]
    start_s, cpu_s = time.monotonic(), cpu_of_children_s()
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"worldloom {command} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    peak_mb = int(ended.stderr.rpartition("peak_mb=")[2])
    seconds = {"seconds": time.monotonic() - start_s, "cpu_s": cpu_of_children_s() - cpu_s}
    return {**{key: round(value, 1) for key, value in seconds.items()}, "peak_mb": peak_mb}


def cpu_of_children_s() -> float:
    """Return the CPU seconds of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    with curation_for(arguments.clips, arguments.folder) as recipe:
        found = {}
        for name in arguments.only:
            found[name] = measure(recipe, name)
            print(name, found[name], flush=True)
    print(json.dumps({"clips": arguments.clips, **found}))


if __name__ == "__main__":
    main()
