"""CPU time of the scan, beside a plain decode of the same files and beside PySceneDetect, in one run.

    python -m benchmarks.scan DIR [--repeats 3] [--detector signature]

The plain decode is PyAV reading every frame without using it. PySceneDetect is `detect(file, ContentDetector())`, which
finds only hard cuts. The ratios are of sums over the H.264 and HEVC files whose short side is 480 pixels or more;
`all_files` has those over every file that can be decoded. Prints one line per file and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import scenedetect

from benchmarks.measuring import cpu_s, video_files
from pipelines.video.decode import DecodeError, probe
from pipelines.video.scan import ScanSettings, scan_video
from pipelines.video.shot_boundaries import DetectorName

MIN_SHORT_SIDE = 480
CODECS = ("h264", "hevc")


def decode(path: str) -> None:
    """Decode every frame of the best video stream without using it."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        assert stream is not None
        for _ in container.decode(stream):
            pass


def detect(path: str) -> None:
    """Run PySceneDetect's loop over its own decoder."""
    scenedetect.detect(path, scenedetect.ContentDetector())


def measure(path: Path, settings: ScanSettings, repeats: int) -> dict[str, Any] | None:
    """Return the medians of `repeats` rounds of all methods, or None for a file that cannot be decoded.

    PySceneDetect is left out if OpenCV cannot read the file (AV1).
    """
    uri = str(path)
    try:
        info = probe(uri)
        scan_video(uri, settings)
    except DecodeError:
        return None
    methods: dict[str, Callable[[], object]] = {
        "decode": partial(decode, uri),
        "scan": partial(scan_video, uri, settings),
    }
    if cv2.VideoCapture(uri).read()[0]:
        methods["pyscenedetect"] = partial(detect, uri)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            times[name].append(cpu_s(method))
    median = {f"{name}_cpu_s": round(statistics.median(values), 4) for name, values in times.items()}
    pyscenedetect_s = median.get("pyscenedetect_cpu_s")
    size = (info.coded_width, info.coded_height)
    return {
        "file": path.name,
        "codec": info.codec,
        "size": "x".join(map(str, size)),
        "counts": info.codec in CODECS and min(size) >= MIN_SHORT_SIDE,
        **median,
        "to_decode": round(median["scan_cpu_s"] / median["decode_cpu_s"], 3),
        "to_pyscenedetect": round(median["scan_cpu_s"] / pyscenedetect_s, 3) if pyscenedetect_s else None,
    }


def ratio(rows: Sequence[dict[str, Any]], method: str) -> float | None:
    """Return the CPU time of the scan over that of another method, summed over the files that have both."""
    both = [row for row in rows if f"{method}_cpu_s" in row]
    total = sum(row[f"{method}_cpu_s"] for row in both)
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
    for path in video_files(arguments.folder):
        row = measure(path, settings, arguments.repeats)
        if row is None:
            skipped.append(path.name)
            continue
        rows.append(row)
        to_pyscenedetect = row["to_pyscenedetect"] or math.nan
        print(
            f"{row['file']:34} {row['codec']:6} {row['size']:>10}  {row['to_decode']:6.2f} of a decode  "
            f"{to_pyscenedetect:6.2f} of PySceneDetect"
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
