"""What a whole curation costs beside a plain decode of its footage, and how much of that is Ray.

    python -m benchmarks.curate FOLDER [--files 200]

Copies of the footage, each with a name of its own, are curated to shards as `worldloom run --only curate` does it, without
neural scores: scan, cut, keep, dedup, captions by rule, linear autoencoder. Once on Ray, once in one process, each in a process
of its own whose CPU time is read when all it started has ended. Beside that, a plain PyAV decode of the same files; the same run
of the footage as it is, of which nothing is a copy; and that run with `frames` and `score.text_area` in it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

STEPS: list[dict[str, object]] = [
    {"scan": {}},
    {"cut": {"min_s": 1.0, "max_s": 5.0}},
    {"keep": {"luma": {"min": 0.05, "max": 0.97}, "frozen_share": {"max": 0.9}}},
    {"dedup": {"method": "near"}},
    {"caption": {"engine": "signals"}},
    {"encode": {"autoencoder": {"name": "linear", "channels": 16}, "buckets": [{"size": 256, "frames": [1, 17, 33], "fps": 8}]}},
]
TEXT_AREA: list[dict[str, object]] = [{"frames": {}}, {"score.text_area": {}}]

DECODE = """
import sys, av
for path in sys.argv[1:]:
    try:
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            for _ in container.decode(container.streams.video[0]):
                pass
    except (av.error.FFmpegError, IndexError):
        pass
"""
"""A file that does not decode costs what it costs until it fails."""

PR_SET_CHILD_SUBREAPER = 36


def cpu_of(command: list[str]) -> tuple[float, float]:
    """(CPU seconds, seconds) of a command with all it starts: also what outlives it, as Ray's processes do for a moment."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    seconds = time.monotonic() - start_s
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def copies(footage: list[Path], folder: Path, n: int) -> list[str]:
    """As many files, made of copies of the footage in turn."""
    folder.mkdir()
    made = []
    for i in range(n):
        original = footage[i % len(footage)]
        made.append(str(folder / f"{i // len(footage):03d}-{original.name}"))
        shutil.copyfile(original, made[-1])
    return made


def run(folder: Path, out: Path, steps: list[dict[str, object]], *options: str) -> tuple[float, float]:
    recipe = {"name": "curate", "out": str(out), "sources": [{"videos": f"{folder}/*"}], "curate": steps}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    return cpu_of([str(Path(sys.executable).with_name("worldloom")), "run", str(path), "--only", "curate", *options])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=200)
    arguments = parser.parse_args()
    footage = sorted(path for path in arguments.folder.iterdir() if path.suffix in {".mp4", ".mkv", ".avi", ".mov", ".webm"})
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        once, many = copies(footage, scratch / "once", len(footage)), copies(footage, scratch / "many", arguments.files)
        decode_once, _ = cpu_of([sys.executable, "-c", DECODE, *once])
        decode_many, _ = cpu_of([sys.executable, "-c", DECODE, *many])
        curate_once, _ = run(scratch / "once", scratch / "out-once", STEPS, "--inline")
        text_once, _ = run(scratch / "once", scratch / "out-text", [*STEPS[:4], *TEXT_AREA, *STEPS[4:]], "--inline")
        inline, _ = run(scratch / "many", scratch / "out-inline", STEPS, "--inline")
        on_ray, ray_s = run(scratch / "many", scratch / "out-ray", STEPS)
    result = {
        "files": len(many),
        "decode_cpu_s": round(decode_many, 1),
        "inline_cpu_s": round(inline, 1),
        "ray_cpu_s": round(on_ray, 1),
        "ray_s": round(ray_s, 1),
        "cpu_ratio_to_decode": round(on_ray / decode_many, 3),
        "ray_share": round((on_ray - inline) / on_ray, 3),
        "without_copies": {
            "files": len(once),
            "decode_cpu_s": round(decode_once, 1),
            "cpu_ratio_to_decode": round(curate_once / decode_once, 3),
            "with_text_area": round(text_once / decode_once, 3),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
