"""Video files that a sample extends, connects, closes into a loop or edits, read as `encode` reads videos."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from cluster.arrays import Pixels
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.video.decode import DecodeError, open_video
from pipelines.video.spans import FrameGrid, read_span
from training.sampling.settings import SampleSettings, VideoShape

MEDIA_FRAGMENT = re.compile(r"#t=([0-9.]*)(?:,([0-9.]+))?$")
"""A part of a file in seconds, in the form of the W3C's media fragments: `#t=2,5`, `#t=2` or `#t=,5`."""


class GivenVideo(NamedTuple):
    """A part of a video file, in PTS with an exclusive end."""

    uri: str
    start_pts: int
    end_pts: int
    time_base: Fraction
    width: int
    height: int


def check_videos(samples: Iterable[SampleSettings]) -> None:
    """Open every given video of these samples once. Raises `ConfigError` as `read_given_video` does."""
    for file in dict.fromkeys(file for sample in samples for file in sample.videos().values()):
        find_given_video(file)


def read_given_video(file: str, shape: VideoShape) -> Pixels:
    """Return all frames `[T, height, width, 3]` of a video file, or of a part such as `heron.mp4#t=2,5`.

    They have the rate and the size of `shape`, whose number of frames does not count: frames are scaled to cover the
    size and cropped around their centre. Smaller videos are enlarged, with a warning. Raises `ConfigError` for a file
    that is missing or no video, and for a part that is not in it.
    """
    given = find_given_video(file)
    if given.width < shape.width or given.height < shape.height:
        log.warning(
            f"{file}: is {given.width}x{given.height} and is enlarged to {shape.width}x{shape.height}; "
            "training never enlarges videos"
        )
    duration = (given.end_pts - given.start_pts) * given.time_base
    n_frames = max(1, math.ceil(duration * Fraction(shape.fps).limit_denominator(1001)))
    grid = FrameGrid(shape.fps, n_frames, shape.width, shape.height)
    try:
        return read_span(given.uri, given.start_pts, given.end_pts, grid).frames
    except (DecodeError, OSError) as error:
        raise ConfigError(f"{file}: cannot be decoded: {error}") from error


def find_given_video(file: str) -> GivenVideo:
    """Return the part of a video file that is named, by default all of it. Raises `ConfigError`, naming the file."""
    match = MEDIA_FRAGMENT.search(file)
    uri = file[: match.start()] if match else file
    try:
        with open_video(uri) as video:
            info = video.info
            if video.has_pts:
                last = max(packet.pts + (packet.duration or 0) for packet in video.packets() if packet.pts is not None)
            else:
                last = info.start_pts + round(Fraction(info.duration_s or 0) / info.time_base)
    except (DecodeError, OSError) as error:
        raise ConfigError(f"{uri}: cannot be read as a video: {error}; name a video file") from error
    start_s, end_s = _part(match, file)
    start_pts = info.start_pts + math.floor(start_s / info.time_base)
    end_pts = last if end_s is None else min(last, info.start_pts + math.ceil(end_s / info.time_base))
    if start_pts >= end_pts:
        length_s = float((last - info.start_pts) * info.time_base)
        raise ConfigError(f"{file}: there is nothing in that part; the video has {length_s:.3g} seconds")
    return GivenVideo(uri, start_pts, end_pts, info.time_base, info.width, info.height)


def _part(match: re.Match[str] | None, file: str) -> tuple[Fraction, Fraction | None]:
    """Return the first and last second of a media fragment; None for the end of the file."""
    if match is None:
        return Fraction(0), None
    try:
        return Fraction(match[1] or 0), None if match[2] is None else Fraction(match[2])
    except ValueError:
        raise ConfigError(f"{file}: '{match[0]}' is not a part of a video; write its seconds, '#t=2,5'") from None
