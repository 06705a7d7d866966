"""A few pictures of each clip, taken at exact times or where max_frames changes: decoded once, for every score and captioner that looks at it.

Clips of one file share the opened file and, one after the other, the decoding. What a clip gives does not depend on which others
are asked for with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.video.decode import DecodedFrame, DecodeError, Video, open_video
from pipelines.video.still_images import encode_jpeg, fit_long_side, read_image, resize_image

LEAP_GROUPS = 2
"""A moment more than this many groups of pictures ahead is sought instead of decoded to: a seek goes back by up to one group."""


GO_ON_S = 5
"""A clip that starts so long after the one before it is decoded to and not sought. Without this, clips of a file with few key frames
cost the decoding of all that was before them: 1.2 CPU s instead of 0.5 for the six of a trailer of 30 s that has one key frame."""


At = Literal["middles", "peaks"]

SMALL_AREA = 64 * 36
"""Pixels of the picture on which changes are measured: enough for what moves, and small against the decoding of a frame."""


@dataclass(frozen=True)
class FrameSampling:
    """How pictures are taken: `fps` a second and at max_frames `max_frames`; `long_side` in pixels, never enlarged; JPEG `quality` of 100.

    `at` says which frame stands for each of the clip's equal parts: the one in its middle, or the one in which max_frames changes.
    """

    fps: float = 1.0
    max_frames: int = 8
    long_side: int = 448
    quality: int = 90
    at: At = "middles"

    def count(self, duration_s: Fraction) -> int:
        """Pictures of a clip: `fps` a second, rounded half up, one at least and `max_frames` at max_frames."""
        return min(
            self.max_frames, max(1, int(duration_s * Fraction(self.fps).limit_denominator(10**6) + Fraction(1, 2)))
        )

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture of a source displayed at this size: of the same aspect, as large or smaller."""
        return fit_long_side(width, height, min(self.long_side, max(width, height)))


@dataclass(frozen=True)
class FrameImages:
    """JPEG pictures of a clip, upright, in time order, and when each is shown, in seconds from the clip's start."""

    images: tuple[bytes, ...]
    times_s: tuple[float, ...]


class _CannotSeekError(Exception):
    """The container cannot go to a place in it: the file is to be read from its start."""


def interval_middles(start_pts: int, end_pts: int, count: int) -> list[int]:
    """The middles of `count` equal parts of a span, in whole units of the time base, rounded down."""
    return [start_pts + (end_pts - start_pts) * (2 * k + 1) // (2 * count) for k in range(count)]


def interval_starts(start_pts: int, end_pts: int, count: int) -> list[int]:
    """The starts of `count` equal parts of a span, in whole units of the time base, rounded up."""
    return [start_pts + -(-(end_pts - start_pts) * k // count) for k in range(count)]


def images_of_still(uri: str, sampling: FrameSampling) -> FrameImages:
    """The one picture of an image. Raises `DecodeError`."""
    image = read_image(uri)
    size = sampling.size(image.width, image.height)
    return FrameImages(
        (encode_jpeg(resize_image(image, (0, 0, image.width, image.height), *size), sampling.quality),), (0.0,)
    )


def images_of_spans(
    uri: str, spans: Sequence[tuple[int, int]], sampling: FrameSampling
) -> list[FrameImages | Exception]:
    """The pictures of each span (start and exclusive end, in PTS) of a video; the error of each that cannot be decoded.

    A picture is the frame shown at its moment: the last whose PTS is not later. A frame shown at two moments is given once.
    Spans in the order of their starts cost least. The file is opened once, and again only after an error and where it cannot be sought.
    """
    done: list[FrameImages | Exception] = []
    from_start = -1
    while len(done) < len(spans):
        reader: _Reader | None = None
        try:
            with open_video(uri) as video:
                reader = _Reader(video)
                while len(done) < len(spans):
                    start_pts, end_pts = spans[len(done)]
                    if not reader.go_to(start_pts, from_start == len(done)):
                        break
                    done.append(_take(video, reader, start_pts, end_pts, sampling))
        except _CannotSeekError:
            from_start = len(done)
        except Exception as error:  # the span's row carries it, or those of all spans where the file cannot be opened
            if reader is None:
                done += [error] * (len(spans) - len(done))
            elif not reader.went_on:
                done.append(error)
            # Else the damage may lie before the span: it is taken once more, from a key frame of its own.
    return done


def _take(video: Video, reader: _Reader, start_pts: int, end_pts: int, sampling: FrameSampling) -> FrameImages:
    time_base = video.info.time_base
    size = sampling.size(video.info.width, video.info.height)
    shown: dict[int, bytes] = {}
    count = sampling.count((end_pts - start_pts) * time_base)
    for picture in (
        _middles(reader, start_pts, end_pts, count)
        if sampling.at == "middles"
        else _peaks(video, reader, start_pts, end_pts, count)
    ):
        if picture.pts >= end_pts:
            raise DecodeError(f"{_name(video.uri)}: no frame from PTS {start_pts} to {end_pts}")
        if reader.ended and picture.duration and picture.pts + picture.duration <= start_pts:
            raise DecodeError(
                f"{_name(video.uri)}: the frames end at PTS {picture.pts + picture.duration}, before the clip from {start_pts}"
            )
        if picture.pts not in shown:
            shown[picture.pts] = encode_jpeg(video.to_array(picture.frame, *size), sampling.quality)
    # A clip that starts between two frames shows the earlier one at first.
    return FrameImages(tuple(shown.values()), tuple(float(max(0, pts - start_pts) * time_base) for pts in shown))


def _middles(reader: _Reader, start_pts: int, end_pts: int, count: int) -> Iterator[DecodedFrame]:
    return (reader.at(moment) for moment in interval_middles(start_pts, end_pts, count))


def _peaks(video: Video, reader: _Reader, start_pts: int, end_pts: int, count: int) -> Iterator[DecodedFrame]:
    """Of each part the frame that differs max_frames from the one before it, the earliest of equals; none of a part in which no frame begins.

    The clip's first frame has none before it, and stands for its part only if nothing else does. Holds one frame besides the one
    that is decoded.
    """
    info = video.info
    scale = math.sqrt(SMALL_AREA / (info.width * info.height))
    size = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    ends = [*interval_starts(start_pts, end_pts, count)[1:], end_pts]
    before: NDArray[np.int16] | None = None
    best: tuple[float, DecodedFrame] | None = None
    part = 0
    for picture in reader.through(start_pts, end_pts):
        now = video.to_array(picture.frame, *size, "gray8").astype(np.int16)
        change = -1.0 if before is None else float(np.abs(now - before).mean())
        before = now
        while picture.pts >= ends[part] and part < count - 1:
            if best is not None:
                yield best[1]
            best, part = None, part + 1
        if best is None or change > best[0]:
            best = change, picture
    if best is not None:
        yield best[1]


class _Reader:
    """Reads a video forward, and seeks where that saves decoding.

    Going on and seeking give the same frames: both come to a frame through all packets from the last key frame before it.
    """

    def __init__(self, video: Video) -> None:
        self.ended = False
        """Whether the last frame was decoded."""
        self.went_on = False
        """Whether the span was come to by decoding on from the one before it."""
        self._video = video
        self._pictures = video.decoded_frames()
        self._shown: DecodedFrame | None = None
        self._next: DecodedFrame | None = None
        self._key_pts: int | None = None
        self._group: int | None = None
        self._may_seek = True

    def go_to(self, start_pts: int, from_start: bool) -> bool:
        """Get ready for a span; False where the file has to be opened anew for it."""
        fresh = self._next is None
        self._may_seek = not from_start
        self.went_on = False
        if fresh and (from_start or start_pts <= self._video.info.start_pts):
            return True
        if from_start:
            return False
        if (
            self._next is not None
            and self._shown is not None
            and self._shown.pts <= start_pts <= self._next.pts + self._far()
        ):
            self.went_on = True
        elif start_pts <= self._video.info.start_pts:
            return False
        else:
            self._seek(start_pts)
        return True

    def at(self, moment: int) -> DecodedFrame:
        """The frame shown at a moment that is not before the last one asked for; the first frame where the moment is before it."""
        while not self.ended and (self._shown is None or self._next is None or self._next.pts <= moment):
            if self._next is not None:
                self._shown = self._next
                if (
                    self._may_seek
                    and self._group is not None
                    and self._shown.frame.key_frame
                    and moment - self._shown.pts > LEAP_GROUPS * self._group
                ):
                    self._seek(moment)
            self._read()
        assert self._shown is not None
        return self._shown

    def through(self, start_pts: int, end_pts: int) -> Iterator[DecodedFrame]:
        """The frame shown at the start of a span, and every one that begins in it."""
        yield self.at(start_pts)
        while not self.ended and self._next is not None and self._next.pts < end_pts:
            yield self.at(self._next.pts)

    def _read(self) -> None:
        picture = next(self._pictures, None)
        if picture is None:
            self.ended = True
            return
        self._next = picture
        if picture.frame.key_frame:
            self._group = picture.pts - self._key_pts if self._key_pts is not None else None
            self._key_pts = picture.pts

    def _seek(self, pts: int) -> None:
        if not self._video.seek(pts):
            raise _CannotSeekError
        self._pictures = self._video.decoded_frames()
        self._shown = self._next = self._key_pts = None
        self.ended = False

    def _far(self) -> int:
        """How far ahead a span may start to be decoded to: as far as a seek might go back."""
        return max(self._group or 0, int(GO_ON_S / self._video.info.time_base))


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]
