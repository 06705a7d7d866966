"""Scan of a film of two hours, looped from real footage: its peak memory, and the speedup of two workers.

    python -m benchmarks.film DIR [--hours 2] [--source FILE]

The packets of one H.264 file are written one after another until the film is long enough; nothing is encoded again. The
film is scanned whole in a process of its own, whose peak memory is reported, and then in pieces, by one process and by
two. The three scans must be equal. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import av

from benchmarks.measuring import peak_memory_mb
from pipelines.video.scan import Piece, ScanSettings, VideoScan, divide, join_pieces, scan_piece, scan_video
from pipelines.video.segment_meter import Measurements


def make_film(source: Path, film: Path, hours: float) -> int:
    """Write the packets of one video over and over, and return the number of frames."""
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


def scan_whole(path: str) -> tuple[VideoScan, float, float]:
    """Return the scan, its seconds on the clock, and the peak memory of this process in MiB."""
    start = time.monotonic()
    scan = scan_video(path, ScanSettings())
    return scan, time.monotonic() - start, peak_memory_mb()


def scan_one_piece(task: tuple[str, Piece]) -> tuple[Measurements | None, float]:
    """Return the measurements of a piece and the peak memory of this process in MiB."""
    path, piece = task
    return scan_piece(path, ScanSettings(), piece.first, piece.end), peak_memory_mb()


def scan_in_pieces(pool: Pool, path: str, pieces: Sequence[Piece]) -> tuple[VideoScan, float, float]:
    """Return the joined scan, its seconds on the clock, and the highest peak memory of a worker in MiB."""
    start = time.monotonic()
    results = pool.map(scan_one_piece, [(path, piece) for piece in pieces], chunksize=1)
    scan = join_pieces(path, ScanSettings(), [measured for measured, _ in results])
    return scan, time.monotonic() - start, max(peak for _, peak in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--source", default="subtitled_portrait_362x640.mp4", help="file of the folder to loop")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        film = str(Path(folder) / "film.mp4")
        n_frames = make_film(arguments.folder / arguments.source, Path(film), arguments.hours)
        pieces = divide(film)
        if len(pieces) < 2:
            raise SystemExit(f"{film} is too short for two pieces; give more --hours")
        print(f"{n_frames} frames, {Path(film).stat().st_size >> 20} MB, {len(pieces)} pieces", flush=True)
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            whole, whole_s, whole_mb = pool.apply(scan_whole, (film,))
        print(f"whole: {whole_s:.1f} s, peak {whole_mb:.0f} MB", flush=True)
        walls = {}
        for workers in (1, 2):
            with spawn.Pool(workers) as pool:
                # Start the processes before the clock runs.
                pool.map(divide, [film] * workers, chunksize=1)
                scan, walls[workers], piece_mb = scan_in_pieces(pool, film, pieces)
            print(f"{workers} workers: {walls[workers]:.1f} s, peak {piece_mb:.0f} MB", flush=True)
            assert scan == whole, f"the joined pieces of {workers} workers differ from the scan of the whole film"
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
