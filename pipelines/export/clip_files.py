"""Cut a clip out of its source: by stream copy if that gives exactly the clip's frames, otherwise by encoding them.

A clip is a source and a span [start, end) in exact PTS of the scanned video stream. The MP4 file has exactly the
frames whose PTS lie in the span: the first at PTS 0, the others at their distance from it in the source, in the same
time base. It has no sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from cluster import storage
from cluster.config import Settings
from pipelines.export.h264 import H264Settings, encode_span
from pipelines.export.stream_copy import find_copyable_packets, write_packets
from pipelines.video.decode import DecodeError, VideoPacket, open_video, probe
from pipelines.video.media_info import MediaInfo
from pipelines.video.scale import Box
from pipelines.video.still_images import read_image

Mode = Literal["copied", "encoded"]

COPIED_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Suffixes of image files that every reader takes; others (BMP, TIFF) are written upright as PNG."""


CROPPED_IMAGE_QUALITY = 95
"""JPEG and WebP quality of images whose bars are cut off; PNG has none."""


class CutSettings(Settings):
    """Settings of how clips are cut."""

    stream_copy: bool = Field(
        True, description="Copy the stream where that gives exactly the clip's frames; false encodes every clip."
    )
    crf: int = Field(18, ge=0, le=51, description="Quality of encoded clips (x264's rate factor): 0 best, 51 worst.")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        Field("medium", description="x264's preset; slower ones make smaller files.")
    )
    verify: bool = Field(
        True, description="Decode each written clip and compare the number and times of its frames with the source's."
    )


@dataclass(frozen=True)
class Cut:
    """The properties of a clip's file."""

    mode: Mode
    reason: str | None
    """Why the clip was not copied."""
    n_frames: int
    first_pts: int
    """PTS of the first frame in the source."""
    width: int
    height: int
    """Pixels of a frame as displayed."""
    fps: float | None
    """Average over the clip's frames; the source's for a single frame, and None for an image."""
    size_bytes: int


def cut_video(
    uri: str, start_pts: int, end_pts: int, path: Path, settings: CutSettings, crop: Box | None = None
) -> Cut:
    """Write a clip of a video to an MP4 file at a local path; of its frames only the box `crop`, unless it is None.

    The box is (x0, y0, x1, y1) in pixels as displayed. A clip that is cropped is never copied.

    Raises `DecodeError` if the source cannot be decoded, or if the frames of the file are not those of the span.
    """
    with open_video(uri) as video:
        info = video.info
        if crop == (0, 0, info.width, info.height):
            crop = None
        packets: list[VideoPacket]
        reason: str | None
        if crop is not None:
            packets, reason = [], "bars are cut off"
        elif settings.stream_copy:
            packets, reason = find_copyable_packets(video, start_pts, end_pts)
        else:
            packets, reason = [], "stream copy is switched off"
        if packets:
            pts = sorted(packet.pts for packet in packets if packet.pts is not None)
            write_packets(packets, path, info.time_base, end_pts)
            difference = _difference(path, pts, info.time_base) if settings.verify else None
            if difference is None:
                return _cut("copied", None, pts, info, path)
            reason = f"the copy differs from the span: {difference}"
        pts = encode_span(video, start_pts, end_pts, path, H264Settings(settings.crf, settings.preset, crop))
    difference = _difference(path, pts, info.time_base) if settings.verify else None
    if difference is not None:
        raise DecodeError(f"{PurePosixPath(uri).name}: the encoded clip differs from the span: {difference}")
    if crop is not None:
        info = probe(str(path))
    return _cut("encoded", reason, pts, info, path)


def _difference(path: Path, pts: list[int], time_base: Fraction) -> str | None:
    """Return how the number or times of a file's frames differ from those of `pts`; None if they do not."""
    expected_s = [(value - pts[0]) * time_base for value in pts]
    try:
        with open_video(str(path)) as video:
            found_s = [frame.pts * video.info.time_base for frame in video.decoded_frames()]
    except DecodeError as error:
        return str(error)
    if len(found_s) != len(expected_s):
        return f"{len(found_s)} frames instead of {len(expected_s)}"
    for number, (found, expected) in enumerate(zip(found_s, expected_s, strict=True)):
        if found != expected:
            return f"frame {number} at {float(found):.6f} s instead of {float(expected):.6f} s"
    return None


def _cut(mode: Mode, reason: str | None, pts: list[int], info: MediaInfo, path: Path) -> Cut:
    fps = info.fps if len(pts) < 2 else float((len(pts) - 1) / ((pts[-1] - pts[0]) * info.time_base))
    return Cut(mode, reason, len(pts), pts[0], info.width, info.height, fps, path.stat().st_size)


def cut_image(uri: str, path: Path, crop: Box | None = None) -> Cut:
    """Write an image to a local path: a copy of the file, or upright as PNG (see `image_suffix`).

    If `crop` is a smaller box, (x0, y0, x1, y1) in pixels as displayed, only that is written. Raises `DecodeError`.
    """
    image = read_image(uri)
    mode: Mode
    reason = None
    if crop is not None and crop != (0, 0, image.width, image.height):
        mode, reason = "encoded", "bars are cut off"
        image = image.crop(crop)
        image.save(path, quality=CROPPED_IMAGE_QUALITY)
    elif path.suffix == ".png" and image_suffix(uri) != PurePosixPath(uri).suffix.lower():
        mode = "encoded"
        image.save(path, "PNG")
    else:
        mode = "copied"
        path.write_bytes(storage.read_bytes(uri))
    return Cut(mode, reason, 1, 0, image.width, image.height, None, path.stat().st_size)


def image_suffix(uri: str) -> str:
    """Return the suffix of the file that an image is written to."""
    suffix = PurePosixPath(uri).suffix.lower()
    return suffix if suffix in COPIED_IMAGES else ".png"
