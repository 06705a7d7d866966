"""What the scan costs: CPU seconds against a plain decode of the same files, and against PySceneDetect, side by side in one run.

    python -m benchmarks.scan DIR [--repeats 3] [--detector signature]

The plain decode is PyAV reading every frame and doing nothing with it. PySceneDetect is its own `detect(file, ContentDetector())`, which
finds hard cuts and nothing else. The ratios are of sums over the H.264 and HEVC files whose short side is 480 pixels or more;
`all_files` has those over every file that can be decoded. Prints a line a file and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import scenedetect

from pipelines.video.decode import DecodeError, probe
from pipelines.video.scan import ScanSettings, scan_video
from pipelines.video.shot_boundaries import DetectorName

SHORT_SIDE = 480
CODECS = ("h264", "hevc")


def decode(path: str) -> None:
    """Every frame, and nothing else."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        assert stream is not None
        for _ in container.decode(stream):
            pass


def detect(path: str) -> None:
    """PySceneDetect's own loop over its own decoder."""
    scenedetect.detect(path, scenedetect.ContentDetector())


def cpu_s(function: Callable[[str], Any], path: str) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    function(path)
    return time.process_time() - start


def measure(path: Path, settings: ScanSettings, repeats: int) -> dict[str, Any] | None:
    """Medians of `repeats` rounds, in which each of the three takes its turn; None for a file that cannot be decoded.

    PySceneDetect is left out where OpenCV cannot read the file (AV1).
    """
    try:
        info = probe(str(path))
        scan_video(str(path), settings)
    except DecodeError:
        return None
    works: dict[str, Callable[[str], Any]] = {"decode": decode, "scan": lambda p: scan_video(p, settings)}
    if cv2.VideoCapture(str(path)).read()[0]:
        works["pyscenedetect"] = detect
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(cpu_s(work, str(path)))
    median = {f"{name}_cpu_s": round(statistics.median(values), 4) for name, values in times.items()}
    beside = median.get("pyscenedetect_cpu_s")
    size = (info.coded_width, info.coded_height)
    return {
        "file": path.name,
        "codec": info.codec,
        "size": "x".join(map(str, size)),
        "counts": info.codec in CODECS and min(size) >= SHORT_SIDE,
        **median,
        "to_decode": round(median["scan_cpu_s"] / median["decode_cpu_s"], 3),
        "to_pyscenedetect": round(median["scan_cpu_s"] / beside, 3) if beside else None,
    }


def ratio(rows: Sequence[dict[str, Any]], to: str) -> float | None:
    both = [row for row in rows if f"{to}_cpu_s" in row]
    total = sum(row[f"{to}_cpu_s"] for row in both)
    return round(sum(row["scan_cpu_s"] for row in both) / total, 3) if total else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--detector", default="signature")
    arguments = parser.parse_args()
    detector: DetectorName = arguments.detector
    settings = ScanSettings(detector=detector)
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for path in sorted(arguments.folder.iterdir()):
        if path.suffix.lower() not in (".mp4", ".mov", ".mkv", ".avi", ".webm"):
            continue
        row = measure(path, settings, arguments.repeats)
        if row is None:
            skipped.append(path.name)
            continue
        rows.append(row)
        beside = row["to_pyscenedetect"] or math.nan
        print(
            f"{row['file']:34} {row['codec']:6} {row['size']:>10}  {row['to_decode']:6.2f} decodes  {beside:6.2f} PySceneDetects"
        )
    counted = [row for row in rows if row["counts"]]
    result = {
        "cpu_ratio_to_decode": ratio(counted, "decode"),
        "cpu_ratio_to_pyscenedetect": ratio(counted, "pyscenedetect"),
        "all_files": {
            "cpu_ratio_to_decode": ratio(rows, "decode"),
            "cpu_ratio_to_pyscenedetect": ratio(rows, "pyscenedetect"),
        },
        "repeats": arguments.repeats,
        "detector": detector,
        "cannot_be_decoded": skipped,
        "files": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
