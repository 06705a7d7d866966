"""A film of two hours, made by looping real footage: the memory a scan takes, and how much sooner two workers are done.

    python -m benchmarks.film DIR [--hours 2] [--keep FILE]

The packets of the footage's H.264 files of one size are written one after another until the film is long enough; nothing is
encoded again. It is scanned whole in a process of its own, whose peak memory is reported; then, divided into pieces, by one
process and by two. The three scans must be equal. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import av

from pipelines.video.measure import Part
from pipelines.video.scan import Piece, ScanSettings, VideoScan, divide, join_pieces, scan_piece, scan_video


def make_film(source: Path, film: Path, hours: float) -> int:
    """Loop the packets of one video. Returns the number of frames."""
    n_frames = 0
    with av.open(str(film), "w") as out, av.open(str(source)) as once:
        stream = once.streams.video[0]
        target = out.add_stream_from_template(stream)
        target.time_base = stream.time_base
        assert stream.time_base is not None
        assert stream.duration is not None
        packets = [
            (bytes(packet), packet.pts, packet.dts, packet.duration, packet.is_keyframe)
            for packet in once.demux(stream)
            if packet.size
        ]
        loops = int(hours * 3600 / float(stream.duration * stream.time_base)) + 1
        for loop in range(loops):
            shift = loop * stream.duration
            for data, pts, dts, duration, is_key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration = (pts or 0) + shift, (dts or 0) + shift, duration
                packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, target, is_key
                out.mux(packet)
                n_frames += 1
    return n_frames


def peak_mb() -> float:
    """Highest resident memory of this program in MB; `getrusage` would count what the parent held when it started this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scan_whole(path: str) -> tuple[VideoScan, float, float]:
    """The scan, its wall seconds, and the peak resident memory of this process in MB."""
    start = time.monotonic()
    scan = scan_video(path, ScanSettings())
    return scan, time.monotonic() - start, peak_mb()


def scan_one(task: tuple[str, Piece]) -> tuple[Part | None, float]:
    path, piece = task
    return scan_piece(path, ScanSettings(), piece.first, piece.end), peak_mb()


def scan_divided(pool: Pool, path: str, pieces: Sequence[Piece]) -> tuple[VideoScan, float, float]:
    """The joined scan, wall seconds with joining, and the highest peak memory of a worker in MB."""
    start = time.monotonic()
    results = pool.map(scan_one, [(path, piece) for piece in pieces], chunksize=1)
    scan = join_pieces(path, ScanSettings(), [part for part, _ in results])
    return scan, time.monotonic() - start, max(peak for _, peak in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument(
        "--source", default="subtitled_portrait_362x640.mp4", help="the file of the folder that is looped"
    )
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        film = str(Path(folder) / "film.mp4")
        n_frames = make_film(arguments.folder / arguments.source, Path(film), arguments.hours)
        pieces = divide(film)
        if len(pieces) < 2:
            raise SystemExit(f"{film} is too short to be divided; ask for more hours")
        print(f"{n_frames} frames, {Path(film).stat().st_size >> 20} MB, {len(pieces)} pieces", flush=True)
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            whole, whole_s, whole_mb = pool.apply(scan_whole, (film,))
        print(f"whole: {whole_s:.1f} s, {whole_mb:.0f} MB at most", flush=True)
        walls = {}
        for workers in (1, 2):
            with spawn.Pool(workers) as pool:
                # The processes are up before the clock runs.
                pool.map(divide, [film] * workers, chunksize=1)
                scan, walls[workers], piece_mb = scan_divided(pool, film, pieces)
            print(f"{workers} workers: {walls[workers]:.1f} s, {piece_mb:.0f} MB at most", flush=True)
            assert scan == whole, f"the pieces of {workers} workers, joined, are not the scan of the whole"
    result = {
        "n_frames": n_frames,
        "pieces": len(pieces),
        "shots": len(whole.shots),
        "whole_s": round(whole_s, 1),
        "whole_peak_mb": round(whole_mb),
        "piece_peak_mb": round(piece_mb),
        "one_worker_s": round(walls[1], 1),
        "two_workers_s": round(walls[2], 1),
        "speedup": round(walls[1] / walls[2], 2),
        "equal": True,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
