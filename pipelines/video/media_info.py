"""Facts about a video, from its container's headers and its first decoded frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from pipelines.video.orientation import Orientation, frame_orientation

PIXEL_ASPECT_RANGE = (Fraction(1, 16), Fraction(16))
"""Smallest and largest ratio of a pixel's width to its height that is believed; others are damage, and square is the
better guess."""

HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer functions of high dynamic range, by their number in ITU-T H.273: SMPTE ST 2084 and ARIB STD-B67."""

_RANGES = {int(ColorRange.MPEG): "limited", int(ColorRange.JPEG): "full"}


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a video stream, from the headers and the first frame.

    `width` and `height` are those of a frame as displayed, after rotation and with square pixels. A frame is upright
    after it is rotated by `rotation_deg` counter-clockwise, which `width` and `height` include, and then flipped from
    left to right if `mirrored`. `duration_s` is the header's claim, None if it makes none. `hdr` is "pq" or "hlg" for
    high dynamic range, which looks pale on a display of standard range, else None.
    """

    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation_deg: int
    mirrored: bool
    fps: float | None
    time_base_num: int
    time_base_den: int
    start_pts: int
    duration_s: float | None
    pixel_format: str
    color_range: str
    bit_depth: int
    hdr: str | None
    interlaced: bool
    n_video_streams: int

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of PTS."""
        return Fraction(self.time_base_num, self.time_base_den)

    @cached_property
    def orientation(self) -> Orientation:
        """The orientation of decoded frames."""
        return Orientation(self.rotation_deg, self.mirrored)


def media_info(container: InputContainer, stream: VideoStream, first: VideoFrame, start_pts: int) -> MediaInfo:
    """Return the facts about a stream whose first frame is `first`, shown at `start_pts`."""
    assert stream.time_base is not None
    aspect = stream.sample_aspect_ratio
    smallest, largest = PIXEL_ASPECT_RANGE
    # Square pixels: the width is stretched to what is displayed, the number of lines is kept.
    width = max(1, round(first.width * aspect)) if aspect and smallest <= aspect <= largest else first.width
    orientation = frame_orientation(first)
    duration_s = float(stream.duration * stream.time_base) if stream.duration else None
    if duration_s is None and container.duration:
        duration_s = container.duration / av.time_base
    rate = stream.average_rate or stream.guessed_rate
    pixel_format = first.format.name
    color_range = _RANGES.get(int(first.color_range), "unspecified")
    return MediaInfo(
        codec=stream.codec_context.codec.canonical_name,
        width=first.height if orientation.sideways else width,
        height=width if orientation.sideways else first.height,
        coded_width=first.width,
        coded_height=first.height,
        rotation_deg=orientation.rotation_deg,
        mirrored=orientation.mirrored,
        fps=float(rate) if rate else None,
        time_base_num=stream.time_base.numerator,
        time_base_den=stream.time_base.denominator,
        start_pts=start_pts,
        duration_s=duration_s,
        pixel_format=pixel_format,
        color_range="full" if pixel_format.startswith("yuvj") else color_range,
        bit_depth=max((component.bits for component in first.format.components), default=8),
        hdr=HDR_TRANSFERS.get(int(stream.codec_context.color_trc or 0)),
        interlaced=bool(first.interlaced_frame),
        n_video_streams=len(container.streams.video),
    )
