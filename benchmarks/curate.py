"""CPU time of a whole curation beside a plain decode of its footage, and the share of it that is Ray's.

    python -m benchmarks.curate FOLDER [--files 200]

Copies of the footage, each with its own name, are curated to shards as `worldloom curate` does it, without
neural scores: scan, cut, keep, dedup, captions by rule, linear autoencoder. This runs once on Ray and once in one
process, each in a process whose CPU time is read with that of all it starts. Beside that are measured a plain PyAV
decode of the same files; the same runs of the footage without copies; and that run in one process with `frames` and
`score.text_area` added.

Ray's share is the CPU time of a run on it beyond that of the run in one process. Most of it is paid once per run,
however long: Ray's own processes, and the imports of each worker. The additional time of the short run stands for that,
so `start_cpu_s` and `share_after_start` tell the two parts apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.measuring import video_files

STEPS: list[dict[str, object]] = [
    {"scan": {}},
    {"cut": {"min_s": 1.0, "max_s": 5.0}},
    {"keep": {"luma": {"min": 0.05, "max": 0.97}, "frozen_share": {"max": 0.9}}},
    {"dedup": {"method": "near"}},
    {"caption": {"engine": "signals"}},
    {
        "encode": {
            "autoencoder": {"name": "linear", "channels": 16},
            "buckets": [{"size": 256, "frames": [1, 17, 33], "fps": 8}],
        }
    },
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
"""Program of the plain decode. A file that does not decode counts until it fails."""

MARK = "WORLDLOOM_BENCHMARK"
"""Environment variable that marks all processes of a run, also those whose parents do not wait for them, as Ray's
workers."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.1
"""Seconds between two readings of the CPU time of all processes."""


def cpu_of(command: list[str]) -> tuple[float, float]:
    """Return (CPU seconds, seconds on the clock) of a command with all processes it starts.

    CPU time is read ten times a second, and what a process does after the last reading is lost.
    """
    mark = secrets.token_hex(8)
    start_s = time.monotonic()
    ticks: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        while (running := _ticks(mark)) or process.poll() is None:
            ticks |= running
            time.sleep(POLL_S)
        seconds = time.monotonic() - start_s
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")
    return sum(ticks.values()) / TICKS_PER_S, seconds


def _ticks(mark: str) -> dict[tuple[str, str], int]:
    """Return the clock ticks of CPU of each marked process, by pid and start time."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                # After the name, which may contain spaces: state is field 3, utime and stime are 14 and 15, the start
                # time is 22.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[folder.name, fields[19]] = int(fields[11]) + int(fields[12])
    return found


def copies(footage: list[Path], folder: Path, n: int) -> list[str]:
    """Write `n` files, copies of the footage in turn, and return their paths."""
    folder.mkdir()
    paths = []
    for i in range(n):
        original = footage[i % len(footage)]
        paths.append(str(folder / f"{i // len(footage):03d}-{original.name}"))
        shutil.copyfile(original, paths[-1])
    return paths


def run(folder: Path, out: Path, steps: list[dict[str, object]], *options: str) -> tuple[float, float]:
    """Curate the files of a folder, and return (CPU seconds, seconds on the clock)."""
    recipe = {"name": "curate", "out": str(out), "sources": [{"videos": f"{folder}/*"}], "curate": steps}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    return cpu_of([str(Path(sys.executable).with_name("worldloom")), "curate", str(path), *options])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=200)
    arguments = parser.parse_args()
    footage = video_files(arguments.folder)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        once, many = copies(footage, scratch / "once", len(footage)), copies(footage, scratch / "many", arguments.files)
        decode_once, _ = cpu_of([sys.executable, "-c", DECODE, *once])
        decode_many, _ = cpu_of([sys.executable, "-c", DECODE, *many])
        curate_once, _ = run(scratch / "once", scratch / "out-once", STEPS, "--inline")
        ray_once, _ = run(scratch / "once", scratch / "out-ray-once", STEPS)
        text_once, _ = run(scratch / "once", scratch / "out-text", [*STEPS[:4], *TEXT_AREA, *STEPS[4:]], "--inline")
        inline, _ = run(scratch / "many", scratch / "out-inline", STEPS, "--inline")
        on_ray, ray_s = run(scratch / "many", scratch / "out-ray", STEPS)
    start = ray_once - curate_once
    result = {
        "files": len(many),
        "decode_cpu_s": round(decode_many, 1),
        "inline_cpu_s": round(inline, 1),
        "ray_cpu_s": round(on_ray, 1),
        "ray_s": round(ray_s, 1),
        "cpu_ratio_to_decode": round(on_ray / decode_many, 3),
        "inline_cpu_ratio_to_decode": round(inline / decode_many, 3),
        "ray_share": round((on_ray - inline) / on_ray, 3),
        "ray": {
            "start_cpu_s": round(start, 1),
            "share_after_start": round((on_ray - start - inline) / (on_ray - start), 3),
        },
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
