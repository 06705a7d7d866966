"""What cutting costs: CPU seconds of a stream copy against those of encoding the same clips anew, with and without verifying.

    python -m benchmarks.export DIR [--repeats 3] [--frames 48] [--preset medium]

A clip is the longest span from a file's first frame on, of at most `--frames` frames, that can be copied; files without one (AVI, say)
are not counted. Both ways take turns and the median of `--repeats` counts. Prints a line a file and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.export.clip_files import CutSettings, cut_video
from pipelines.export.copying import find_run
from pipelines.video.decode import DecodeError, open_video

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def longest_span(uri: str, n_frames: int) -> tuple[int, int, int] | None:
    """(start, end, frames) of the span to be cut; None where none of the first frames can be copied."""
    with open_video(uri) as video:
        pts = []
        for picture in video.decoded_frames():
            pts.append(picture.pts)
            if len(pts) > n_frames:
                break
        else:
            pts.append(pts[-1] + 1)
    for count in range(len(pts) - 1, 0, -1):
        with open_video(uri) as video:
            if not isinstance(find_run(video, pts[0], pts[count]), str):
                return pts[0], pts[count], count
    return None


def cpu_s(uri: str, start_pts: int, end_pts: int, settings: CutSettings, path: Path) -> float:
    start = time.process_time()
    cut_video(uri, start_pts, end_pts, path, settings)
    return time.process_time() - start


def measure(path: Path, n_frames: int, repeats: int, preset: str) -> dict[str, Any] | None:
    """Medians for a file; None for one that cannot be decoded or copied."""
    try:
        span = longest_span(str(path), n_frames)
    except DecodeError:
        return None
    if span is None:
        return None
    start_pts, end_pts, count = span
    ways = {
        f"{'copy' if copies else 'encode'}{'_verified' if verify else ''}": CutSettings.model_validate(
            {"copies": copies, "verify": verify, "preset": preset}
        )
        for copies in (True, False)
        for verify in (False, True)
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, settings in ways.items():
                times[name].append(cpu_s(str(path), start_pts, end_pts, settings, Path(folder, "clip.mp4")))
    return {
        "file": path.name,
        "frames": count,
        **{f"{name}_cpu_s": round(statistics.median(values), 4) for name, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--preset", default="medium")
    arguments = parser.parse_args()
    rows, skipped = [], []
    for path in sorted(arguments.folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        row = measure(path, arguments.frames, arguments.repeats, arguments.preset)
        if row is None:
            skipped.append(path.name)
            continue
        rows.append(row)
        print(
            f"{row['file']:34} {row['frames']:4} frames  copy {row['copy_cpu_s']:7.3f} s, verified {row['copy_verified_cpu_s']:7.3f} s  "
            f"encode {row['encode_cpu_s']:7.3f} s, verified {row['encode_verified_cpu_s']:7.3f} s"
        )
    total = {
        name: sum(row[f"{name}_cpu_s"] for row in rows)
        for name in ("copy", "copy_verified", "encode", "encode_verified")
    }
    result = {
        "cpu_ratio_copy_to_encode": round(total["copy"] / total["encode"], 4),
        "cpu_ratio_verified": round(total["copy_verified"] / total["encode_verified"], 4),
        "repeats": arguments.repeats,
        "preset": arguments.preset,
        "not_counted": skipped,
        "files": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
