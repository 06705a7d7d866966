"""Scan damaged videos: each must give a scan or a `DecodeError`, never a crash, a hang or another error.

    python -m benchmarks.fuzz DIR [--variants 1000] [--seed 0] [--workers 2]

Prints each fault with the command that makes its file again, a table of outcomes by kind of damage, and one line of
JSON last. Exits with status 1 if anything crashed, hung or is unaccounted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np

from benchmarks.damage import KINDS, MP4_KINDS, Variant, is_mp4, make_variant
from pipelines.video.decode import DecodeError
from pipelines.video.scan import VideoScan, scan_video

SCANNED, FAILED, RAISED, CRASHED, HUNG = "scanned", "failed", "raised", "crashed", "hung"
OUTCOMES = (SCANNED, FAILED, RAISED, CRASHED, HUNG)
SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mpg", ".flv", ".gif"})


@dataclass(frozen=True)
class Result:
    """The outcome of a variant.

    `peak_mb` is the highest resident memory during the scan, which includes about 200 MB of the interpreter.
    """

    index: int
    variant: Variant
    outcome: str
    detail: str
    seconds: float
    peak_mb: float


def check_scan(scan: VideoScan) -> None:
    """Raise `AssertionError` unless the scan is sound.

    Only transitions lie between shots, and all numbers are finite.
    """
    shots = scan.shots
    transitions = {(boundary.start_pts, boundary.end_pts) for boundary in scan.boundaries}
    assert shots, "no shots"
    assert scan.media.n_frames >= 1, f"{scan.media.n_frames} frames"
    assert math.isfinite(scan.media.source_duration_s), f"{scan.media.source_duration_s} s"
    for shot in shots:
        assert shot.start_pts < shot.end_pts, f"a shot from {shot.start_pts} to {shot.end_pts}"
        numbers = [value for value in vars(shot.signals).values() if isinstance(value, float)]
        assert all(math.isfinite(number) for number in numbers), (
            f"a number of the shot at {shot.start_pts} is not finite: {numbers}"
        )
    for before, after in itertools.pairwise(shots):
        assert (before.end_pts, after.start_pts) in transitions, (
            f"a shot ends at {before.end_pts} and the next starts at {after.start_pts}, without a transition"
        )


def scan_outcome(path: Path) -> tuple[str, str]:
    """Scan a file in this process. Return the outcome, and the class and text of the error.

    A `DecodeError` must name the file.
    """
    try:
        check_scan(scan_video(str(path)))
    except DecodeError as error:
        return (
            (FAILED, str(error))
            if path.name in str(error)
            else (RAISED, f"DecodeError without the file's name: {error}")
        )
    except Exception as error:
        return RAISED, f"{type(error).__name__}: {error}"
    return SCANNED, ""


def variants(folder: Path, count: int, seed: int) -> Iterator[Variant]:
    """Yield `count` variants of the videos in a folder, drawn with weights of one over the square root of their size.

    Variant k depends only on the seed, k and the contents of the folder.
    """
    sources = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.stat().st_size)
    if not sources:
        raise ValueError(f"no videos in {folder}")
    weights = np.array([path.stat().st_size ** -0.5 for path in sources])
    kinds = {False: sorted(set(KINDS) - MP4_KINDS), True: sorted(KINDS)}
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
        data = source.read_bytes()
        kind = str(rng.choice(kinds[is_mp4(data)]))
        yield make_variant(source.name, data, source.suffix, kind, rng)


class Worker:
    """A process that scans one file after another, and is replaced after a crash or a hang. It starts in a second."""

    def __init__(self, memory_gb: float) -> None:
        context = get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(remote, memory_gb), daemon=True)
        self.process.start()
        remote.close()
        self.connection.recv()
        self.index = -1
        self.started = 0.0

    def scan(self, index: int, path: Path) -> None:
        self.index, self.started = index, time.monotonic()
        self.connection.send(path)

    def stop(self) -> int | None:
        """Kill the process, after a second's grace. Return its exit status, negative for a signal."""
        self.process.join(1)
        status = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.connection.close()
        return status


def run(made: Iterator[Variant], scratch: Path, workers: int, limit_s: float, memory_gb: float) -> Iterator[Result]:
    """Scan the variants and yield each result when it is ready.

    A variant that takes more than `limit_s` counts as hung, and its worker is killed.
    """
    pending = enumerate(made)
    idle = [Worker(memory_gb) for _ in range(workers)]
    busy: dict[Connection, tuple[Worker, Variant, Path]] = {}
    try:
        while True:
            while idle and (item := next(pending, None)) is not None:
                index, variant = item
                path = scratch / f"variant-{index}{variant.suffix}"
                path.write_bytes(variant.data)
                worker = idle.pop()
                worker.scan(index, path)
                busy[worker.connection] = (worker, variant, path)
            if not busy:
                return
            ready = connection.wait(list(busy), timeout=1.0)
            now = time.monotonic()
            for pipe in list(busy):
                worker, variant, path = busy[pipe]
                seconds = now - worker.started
                if pipe in ready:
                    try:
                        outcome, detail, peak_mb = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        outcome, detail, peak_mb = CRASHED, f"exit status {worker.stop()}", math.nan
                elif seconds > limit_s:
                    outcome, detail, peak_mb = HUNG, f"more than {limit_s:g} s", math.nan
                    worker.stop()
                else:
                    continue
                del busy[pipe]
                path.unlink()
                yield Result(worker.index, variant, outcome, detail, seconds, peak_mb)
                idle.append(Worker(memory_gb) if outcome in (CRASHED, HUNG) else worker)
    finally:
        for worker in [*idle, *(worker for worker, _, _ in busy.values())]:
            worker.process.kill()
            worker.process.join()


def summary(results: list[Result], count: int) -> dict[str, object]:
    """Return the line of JSON: each variant counts once, as scanned, failed, crashed, hung or unaccounted."""
    outcomes = Counter(result.outcome for result in results)
    known = {outcome: outcomes[outcome] for outcome in (SCANNED, FAILED, CRASHED, HUNG)}
    slowest = max(results, key=lambda result: result.seconds)
    return {
        "variants": count,
        **known,
        "unaccounted": count - sum(known.values()),
        "other_errors": dict(Counter(result.detail.split(":")[0] for result in results if result.outcome == RAISED)),
        "peak_mb": round(max((result.peak_mb for result in results if result.peak_mb == result.peak_mb), default=0)),
        "slowest_s": round(slowest.seconds, 1),
    }


def _work(pipe: Connection, memory_gb: float) -> None:
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send("ready")
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        _reset_peak()
        pipe.send((*scan_outcome(path), _peak_mb()))


def _reset_peak() -> None:
    """Reset the highest resident memory of this process: Linux does so when 5 is written (proc_pid_clear_refs(5))."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5")


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(results: list[Result]) -> str:
    rows = [f"{'damage':18} " + " ".join(f"{outcome:>8}" for outcome in OUTCOMES) + f" {'peak MB':>8} {'slowest s':>9}"]
    for kind in sorted({result.variant.kind for result in results}):
        same_kind = [result for result in results if result.variant.kind == kind]
        counts = Counter(result.outcome for result in same_kind)
        peak = max((result.peak_mb for result in same_kind if result.peak_mb == result.peak_mb), default=math.nan)
        cells = " ".join(f"{counts[outcome]:>8}" for outcome in OUTCOMES)
        rows.append(f"{kind:18} {cells} {peak:8.0f} {max(result.seconds for result in same_kind):9.1f}")
    return "\n".join(rows)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Damaged videos through the scan.")
    parser.add_argument("folder", type=Path, help="videos to damage; they are only read")
    parser.add_argument("--variants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=30.0, help="seconds after which a scan counts as hung")
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=8.0,
        help="address space of a worker in GB; a scan that needs more is out of memory",
    )
    parser.add_argument("--write", type=int, metavar="K", help="write variant K to the current folder and scan nothing")
    options = parser.parse_args()
    made = variants(options.folder, options.variants, options.seed)
    if options.write is not None:
        variant = next(
            variant
            for k, variant in enumerate(variants(options.folder, options.write + 1, options.seed))
            if k == options.write
        )
        path = Path(f"variant-{options.write}{variant.suffix}")
        path.write_bytes(variant.data)
        print(f"{path}: {variant.source}, {variant.kind}, {len(variant.data)} bytes")
        return 0
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        for result in run(made, Path(scratch), options.workers, options.limit_s, options.memory_gb):
            results.append(result)
            if result.outcome not in (SCANNED, FAILED):
                print(f"{result.outcome}: {result.variant.source}, {result.variant.kind}: {result.detail}")
                print(
                    f"  python -m benchmarks.fuzz {options.folder} --seed {options.seed} --write {result.index}",
                    flush=True,
                )
    print(_table(results))
    line = summary(results, options.variants)
    print(json.dumps(line))
    return int(bool(line[CRASHED] or line[HUNG] or line["unaccounted"]))


if __name__ == "__main__":
    sys.exit(main())
