"""Cutting a clip out of its source: a stream copy where that is exact, and encoded anew where it is not.

A clip is a source and a span [start, end) in exact PTS of the video stream that was scanned. What is written has exactly the frames
whose PTS lie in the span, in MP4, the first at PTS 0 and the others as far from it as in the source, in the same time base. Sound is
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from cluster import storage
from cluster.config import Settings
from pipelines.export.copying import find_run, write_run
from pipelines.export.encoding import encode_span
from pipelines.video.decode import DecodeError, MediaInfo, open_video
from pipelines.video.still_images import read_image

Mode = Literal["copied", "encoded"]

COPIED_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Image files that every reader takes; others (BMP, TIFF) are written upright as PNG."""


class CutSettings(Settings):
    """How clips are cut."""

    stream_copy: bool = Field(
        True, description="Copy the stream where that gives exactly the clip's frames; false encodes every clip."
    )
    crf: int = Field(18, ge=0, le=51, description="Quality of encoded clips (x264's rate factor): 0 best, 51 worst.")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        Field("medium", description="x264's preset: slower makes smaller files.")
    )
    verify: bool = Field(
        True,
        description="Decode what was written and compare the number of frames and their moments with the source's.",
    )


@dataclass(frozen=True)
class Cut:
    """What was written. `reason` says why a clip was not copied; `first_pts` is the source PTS of its first frame.

    Sizes are those of the picture as displayed; `fps` is the average over the clip's frames (for a single one, the source's).
    """

    mode: Mode
    reason: str | None
    n_frames: int
    first_pts: int
    width: int
    height: int
    fps: float | None
    size_bytes: int


def cut_video(uri: str, start_pts: int, end_pts: int, path: Path, settings: CutSettings) -> Cut:
    """Write a clip of a video to an MP4 file at a local path. Raises `DecodeError`, also where the result is not the span."""
    with open_video(uri) as video:
        info = video.info
        run = find_run(video, start_pts, end_pts) if settings.stream_copy else "copying is switched off"
        if not isinstance(run, str):
            pts = sorted(packet.pts for packet in run if packet.pts is not None)
            write_run(run, path, info.time_base, end_pts)
            fault = _difference(path, pts, info.time_base) if settings.verify else None
            if fault is None:
                return _result("copied", None, pts, info, path)
            run = f"the copy is not the span: {fault}"
        pts = encode_span(video, start_pts, end_pts, path, settings.crf, settings.preset)
    fault = _difference(path, pts, info.time_base) if settings.verify else None
    if fault is not None:
        raise DecodeError(f"{PurePosixPath(uri).name}: what was encoded is not the span: {fault}")
    return _result("encoded", run, pts, info, path)


def _difference(path: Path, pts: list[int], time_base: Fraction) -> str | None:
    """How a file's frames differ from those wanted, in number or moments; None where they do not."""
    wanted = [(moment - pts[0]) * time_base for moment in pts]
    try:
        with open_video(str(path)) as video:
            found = [picture.pts * video.info.time_base for picture in video.decoded_frames()]
    except DecodeError as error:
        return str(error)
    if len(found) != len(wanted):
        return f"{len(found)} frames instead of {len(wanted)}"
    wrong = next((k for k, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other), None)
    return (
        None
        if wrong is None
        else f"frame {wrong} at {float(found[wrong]):.6f} s instead of {float(wanted[wrong]):.6f} s"
    )


def _result(mode: Mode, reason: str | None, pts: list[int], info: MediaInfo, path: Path) -> Cut:
    fps = info.fps if len(pts) < 2 else float((len(pts) - 1) / ((pts[-1] - pts[0]) * info.time_base))
    return Cut(mode, reason, len(pts), pts[0], info.width, info.height, fps, path.stat().st_size)


def cut_image(uri: str, path: Path) -> Cut:
    """Write an image to a local path: the file as it is, or upright as PNG (see `image_suffix`). Raises `DecodeError`."""
    image = read_image(uri)
    if path.suffix == ".png" and image_suffix(uri) != PurePosixPath(uri).suffix.lower():
        mode: Mode = "encoded"
        image.save(path, "PNG")
    else:
        mode = "copied"
        path.write_bytes(storage.read_bytes(uri))
    return Cut(mode, None, 1, 0, image.width, image.height, None, path.stat().st_size)


def image_suffix(uri: str) -> str:
    """Suffix of the file an image is written to."""
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in COPIED_IMAGES:
        return ".png"
    return suffix
