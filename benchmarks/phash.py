"""Number of 64 bits of a perceptual hash that edits of real footage change, and that differ between unrelated videos.

    python -m benchmarks.phash DIR [--seconds 10]

Up to ten seconds of each video that decodes, at 480 lines or less, are encoded at high quality (x264, crf 14) and again
with each edit; all go through the scan. Hashes of the same time are compared if that of the original is informative.
For `trim` the nearer of two shifts by a whole hash interval is used, which is off by 0.12 s. `by_16` is the share of
bits that change among each 16 of the hash, lowest frequencies first. `worst` is the mean of the file with the most
changes. Prints one line per edit and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from benchmarks.measuring import video_files
from cluster.arrays import UInt64Array
from pipelines.video.decode import DecodeError, open_video
from pipelines.video.frame_hashes import HASH_INTERVAL_S
from pipelines.video.phash import is_informative, mirrored
from pipelines.video.scan import scan_video

MAX_LINES = 480
TRIM_S = 0.37


@dataclass(frozen=True)
class Edit:
    """An edit of a video: how it is scaled, filtered, thinned out, trimmed and encoded."""

    crf: int = 23
    scale: tuple[float, float] = (1.0, 1.0)
    """Factors of the width and of the height."""
    filter: str = ""
    """Name of a filter of FFmpeg, and its arguments below."""
    filter_arguments: str = ""
    every: int = 1
    """Every n-th frame is kept."""
    skip_s: float = 0.0
    """Seconds cut off at the start."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of x264."""


ORIGINAL = Edit(crf=14)
EDITS = {
    "re-encode, crf 34": Edit(crf=34),
    "other frame types": Edit(options=(("bf", "0"), ("g", "25"))),
    "rescale to 1/3": Edit(scale=(1 / 3, 1 / 3)),
    "squeeze to 2/3 of the width": Edit(scale=(2 / 3, 1.0)),
    "letterbox": Edit(filter="pad", filter_arguments="iw:2*trunc(ih*0.665):0:2*trunc(ih*0.0825)"),
    "pillarbox": Edit(filter="pad", filter_arguments="2*trunc(iw*0.665):ih:2*trunc(iw*0.0825):0"),
    "mirror": Edit(filter="hflip"),
    "brightness +30": Edit(filter="lutyuv", filter_arguments=r"y=clip(val+30\,16\,235)"),
    "contrast x 1.3": Edit(filter="lutyuv", filter_arguments=r"y=clip((val-128)*1.3+128\,16\,235)"),
    "contrast x 0.7": Edit(filter="lutyuv", filter_arguments=r"y=clip((val-128)*0.7+128\,16\,235)"),
    "gamma 0.7": Edit(filter="lutyuv", filter_arguments="y=gammaval(0.7)"),
    "gamma 1.4": Edit(filter="lutyuv", filter_arguments="y=gammaval(1.4)"),
    "saturation x 1.8": Edit(filter="hue", filter_arguments="s=1.8"),
    "hue + 40 degrees": Edit(filter="hue", filter_arguments="h=40"),
    "half the frame rate": Edit(every=2),
    "trim": Edit(skip_s=TRIM_S),
}


def first_frames(path: Path, seconds: float) -> tuple[list[VideoFrame], list[int], Fraction]:
    """Return a video's first frames as yuv420p with even sides, their PTS, and the time base. Raises `DecodeError`."""
    frames, pts = [], []
    with open_video(str(path)) as video:
        info = video.info
        scale = min(1.0, MAX_LINES / min(info.coded_width, info.coded_height))
        size = (int(info.coded_width * scale) // 2 * 2, int(info.coded_height * scale) // 2 * 2)
        for decoded in video.decoded_frames():
            if (decoded.pts - info.start_pts) * info.time_base >= seconds:
                break
            frames.append(decoded.frame.reformat(*size, "yuv420p"))
            pts.append(decoded.pts - info.start_pts)
        return frames, pts, info.time_base


def write(path: Path, frames: Sequence[VideoFrame], pts: Sequence[int], time_base: Fraction, edit: Edit) -> Path:
    """Encode frames with an edit by x264, and return the path."""
    first = next(i for i, p in enumerate(pts) if p * time_base >= edit.skip_s)
    width, height = (
        max(32, round(side * share / 2) * 2)
        for side, share in zip((frames[0].width, frames[0].height), edit.scale, strict=True)
    )
    with av.open(str(path), "w") as out:
        stream = None
        chosen = [
            frame.reformat(width, height, interpolation=Interpolation.AREA) for frame in frames[first :: edit.every]
        ]
        for frame, p in zip(_filtered(chosen, time_base, edit), pts[first :: edit.every], strict=True):
            if stream is None:
                options = {"preset": "veryfast", "crf": str(edit.crf), **dict(edit.options)}
                stream = out.add_stream("libx264", rate=30, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.time_base = time_base
                stream.codec_context.thread_count = 1
            # A copy of the frame, since an unedited one is the original's, whose PTS must stay.
            copy = VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")
            copy.pts, copy.time_base = p - pts[first], time_base
            out.mux(stream.encode(copy))
        assert stream is not None
        out.mux(stream.encode(None))
    return path


def _filtered(frames: Sequence[VideoFrame], time_base: Fraction, edit: Edit) -> Iterator[VideoFrame]:
    if not edit.filter:
        yield from frames
        return
    graph, pixel_format = Graph(), av.VideoFormat("yuv420p")
    source = graph.add_buffer(width=frames[0].width, height=frames[0].height, format=pixel_format, time_base=time_base)
    filtering = graph.add(edit.filter, edit.filter_arguments) if edit.filter_arguments else graph.add(edit.filter)
    sink = graph.add("buffersink")
    source.link_to(filtering)
    filtering.link_to(sink)
    graph.configure()
    for frame in frames:
        graph.push(frame)
        filtered = graph.pull()
        assert isinstance(filtered, VideoFrame)
        yield filtered


def hashes(path: Path) -> dict[int, int]:
    """Return the hashes of a video by the number of their hash interval."""
    scan = scan_video(str(path))
    step = HASH_INTERVAL_S / scan.media.time_base
    return {round((item.pts - scan.media.start_pts) / step): item.phash for shot in scan.shots for item in shot.hashes}


def differing(original: dict[int, int], copy: dict[int, int], shift: int = 0, mirror: bool = False) -> UInt64Array:
    """Return the differing bits of each interval that both have and whose hash is informative in the original.

    The copy's interval k is the original's k + `shift`.
    """
    both = [k for k in copy if k + shift in original]
    a, b = (np.array(values, np.uint64) for values in ([original[k + shift] for k in both], [copy[k] for k in both]))
    return np.asarray(a ^ (mirrored(b) if mirror else b), np.uint64)[is_informative(a)]


def summary(files: Sequence[UInt64Array]) -> dict[str, Any]:
    """Return the figures of an edit from the differing bits of each file."""
    changed = np.concatenate(files)
    counts = np.bitwise_count(changed)
    bits = (changed[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).mean(axis=0)
    return {
        "mean": round(float(counts.mean()), 2),
        "median": float(np.median(counts)),
        "p95": float(np.percentile(counts, 95)),
        "worst": round(max(float(np.bitwise_count(one).mean()) for one in files if len(one)), 1),
        "by_16": [round(float(share), 4) for share in bits.reshape(4, 16).mean(axis=1)],
        "hashes": len(changed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    originals: dict[str, dict[int, int]] = {}
    changed: dict[str, list[UInt64Array]] = {name: [] for name in EDITS}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.mp4"
        for path in video_files(arguments.folder):
            try:
                frames, pts, time_base = first_frames(path, arguments.seconds)
            except DecodeError as error:
                print(f"{path.name}: skipped, {error}")
                continue
            original = originals[path.name] = hashes(write(copy, frames, pts, time_base, ORIGINAL))
            for name, edit in EDITS.items():
                if not any(p * time_base >= edit.skip_s for p in pts):
                    continue
                found = hashes(write(copy, frames, pts, time_base, edit))
                # The intervals of a copy that begins later lie between two of the original.
                tried = [
                    differing(original, found, shift, name == "mirror") for shift in ((1, 2) if edit.skip_s else (0,))
                ]
                changed[name].append(
                    min(tried, key=lambda one: float(np.bitwise_count(one).mean()) if len(one) else 65.0)
                )
    edits = {name: summary(files) for name, files in changed.items()}
    for name, row in edits.items():
        print(
            f"{name:30} mean {row['mean']:5.2f}  median {row['median']:3.0f}  95% {row['p95']:4.0f}  "
            f"worst file {row['worst']:5.1f}  {row['by_16']}"
        )
    every = [np.array(list(values.values()), np.uint64) for values in originals.values()]
    every = [one[is_informative(one)] for one in every]
    differences = np.concatenate(
        [np.bitwise_count(a[:, None] ^ b).ravel() for i, a in enumerate(every) for b in every[:i]]
    )
    unrelated = {
        "mean": round(float(differences.mean()), 1),
        "deviation": round(float(differences.std()), 1),
        "min": int(differences.min()),
        "pairs": len(differences),
    }
    print(json.dumps({"files": len(originals), "edits": edits, "unrelated": unrelated}))


if __name__ == "__main__":
    main()
