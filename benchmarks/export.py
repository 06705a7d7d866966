"""CPU time of cutting clips: stream copies beside encoding the same clips, with and without verification.

    python -m benchmarks.export DIR [--repeats 3] [--frames 48] [--preset medium]

A clip is the longest span from a file's first frame on, of at most `--frames` frames, that can be copied; files without
one (AVI, for instance) are not counted. All methods take turns and the median of `--repeats` counts. Prints one line
per file and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measuring import cpu_s, video_files
from pipelines.export.clip_files import CutSettings, cut_video
from pipelines.export.stream_copy import find_copyable_packets
from pipelines.video.decode import DecodeError, open_video


def longest_span(uri: str, n_frames: int) -> tuple[int, int, int] | None:
    """Return (start PTS, end PTS, frames) of the span to cut, or None if no such span can be copied."""
    with open_video(uri) as video:
        pts = []
        for frame in video.decoded_frames():
            pts.append(frame.pts)
            if len(pts) > n_frames:
                break
        else:
            pts.append(pts[-1] + 1)
    for count in range(len(pts) - 1, 0, -1):
        with open_video(uri) as video:
            packets, _ = find_copyable_packets(video, pts[0], pts[count])
            if packets:
                return pts[0], pts[count], count
    return None


def measure(path: Path, n_frames: int, repeats: int, preset: str) -> dict[str, Any] | None:
    """Return the median CPU seconds of each method for a file, or None if it cannot be decoded or copied."""
    try:
        span = longest_span(str(path), n_frames)
    except DecodeError:
        return None
    if span is None:
        return None
    start_pts, end_pts, count = span
    methods = {
        f"{'copy' if copies else 'encode'}{'_verified' if verify else ''}": CutSettings.model_validate(
            {"stream_copy": copies, "verify": verify, "preset": preset}
        )
        for copies in (True, False)
        for verify in (False, True)
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, settings in methods.items():
                work = partial(cut_video, str(path), start_pts, end_pts, Path(folder, "clip.mp4"), settings)
                times[name].append(cpu_s(work))
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
    for path in video_files(arguments.folder):
        row = measure(path, arguments.frames, arguments.repeats, arguments.preset)
        if row is None:
            skipped.append(path.name)
            continue
        rows.append(row)
        print(
            f"{row['file']:34} {row['frames']:4} frames  copy {row['copy_cpu_s']:7.3f} s, "
            f"verified {row['copy_verified_cpu_s']:7.3f} s  encode {row['encode_cpu_s']:7.3f} s, "
            f"verified {row['encode_verified_cpu_s']:7.3f} s"
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
