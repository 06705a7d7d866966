"""JPEG images of a few frames per clip: at exact times or at peaks of change.

They are decoded once, for every score and captioner that uses them. Clips of one file share the open file and are
decoded one after the other. The images of a clip do not depend on which other clips are read with it.

Shape legend: H height, W width of the images on which changes are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.video.decode import DecodedFrame, DecodeError, Video, file_name, open_video
from pipelines.video.scale import Box, crop_scaled, scaled_size
from pipelines.video.still_images import encode_jpeg, fit_long_side, read_image, resize_image

MIN_SEEK_GROUPS = 2
"""A time more than this many groups of pictures (GOPs) ahead is sought instead of decoded to: a seek goes back by up to
one GOP."""

MAX_DECODE_AHEAD_S = 5
"""Seconds between two clips up to which the second is decoded to and not sought. Without this, clips of a file with few
key frames cost the decoding of everything before them: 1.2 CPU s instead of 0.5 for the six of a trailer of 30 s that
has one key frame."""

CHANGE_AREA = 64 * 36
"""Pixels of the image on which changes are measured: enough for what moves, and cheap compared with the decoding of a
frame."""

FrameChoice = Literal["middles", "peaks"]


@dataclass(frozen=True)
class FrameSampling:
    """Settings of which frames of a clip are sampled, and of the JPEG images made of them.

    A clip of n images is divided into n equal intervals. `at` chooses the frame of each: the one at its middle, or the
    one at its peak of change. `long_side` is in pixels; smaller sources are not enlarged. `quality` is that of JPEG, of
    100.
    """

    fps: float = 1.0
    max_frames: int = 8
    long_side: int = 448
    quality: int = 90
    at: FrameChoice = "middles"

    def count(self, duration_s: Fraction) -> int:
        """Return the number of images of a clip: `fps` per second, rounded half up, from 1 to `max_frames`."""
        rate = Fraction(self.fps).limit_denominator(10**6)
        return min(self.max_frames, max(1, int(duration_s * rate + Fraction(1, 2))))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) of the images of content of this size: same aspect, not larger."""
        return fit_long_side(width, height, min(self.long_side, max(width, height)))


@dataclass(frozen=True)
class FrameImages:
    """JPEG images of frames of a clip, upright, in time order.

    The times of these frames are in seconds from the clip's start.
    """

    images: tuple[bytes, ...]
    times_s: tuple[float, ...]


class _CannotSeekError(Exception):
    """The container cannot seek: the file has to be read from its start."""


def interval_middles(start_pts: int, end_pts: int, count: int) -> list[int]:
    """Return the middles of `count` equal intervals of a span, in whole units of the time base, rounded down."""
    return [start_pts + (end_pts - start_pts) * (2 * k + 1) // (2 * count) for k in range(count)]


def interval_starts(start_pts: int, end_pts: int, count: int) -> list[int]:
    """Return the starts of `count` equal intervals of a span, in whole units of the time base, rounded up."""
    return [start_pts + -(-(end_pts - start_pts) * k // count) for k in range(count)]


def images_of_still(uri: str, sampling: FrameSampling, box: Box | None = None) -> FrameImages:
    """Return a box of a still image, by default all of it, as the only image of a clip. Raises `DecodeError`."""
    image = read_image(uri)
    box = box or (0, 0, image.width, image.height)
    pixels = resize_image(image, box, *sampling.size(box[2] - box[0], box[3] - box[1]))
    return FrameImages((encode_jpeg(pixels, sampling.quality),), (0.0,))


def images_of_spans(
    uri: str, spans: Sequence[tuple[int, int]], sampling: FrameSampling, boxes: Sequence[Box | None] | None = None
) -> list[FrameImages | Exception]:
    """Return the images of each span (start and exclusive end, in PTS) of a video, or the error of its decoding.

    `boxes` are the boxes of their frames to show, (x0, y0, x1, y1) in pixels as displayed; None is the whole frame.
    The frame at a time is the one shown then: the last whose PTS is not later. A frame shown at two of the times is
    returned once. Spans cost least in the order of their starts. The file is opened once, and again only after an
    error, or for a span before the current frame that cannot be sought.
    """
    done: list[FrameImages | Exception] = []
    unseekable = -1
    boxes = boxes or [None] * len(spans)
    while len(done) < len(spans):
        reader: _ForwardReader | None = None
        try:
            with open_video(uri) as video:
                reader = _ForwardReader(video)
                while len(done) < len(spans):
                    span = spans[len(done)]
                    if not reader.go_to(span[0], may_seek=unseekable != len(done)):
                        break
                    done.append(_read_images(video, reader, span, boxes[len(done)], sampling))
        except _CannotSeekError:
            unseekable = len(done)
        except Exception as error:  # returned for the span, or for all spans if the file cannot be opened
            if reader is None:
                done += [error] * (len(spans) - len(done))
            elif not reader.decoded_ahead:
                done.append(error)
            # Otherwise the damage may lie before the span, which is read once more, from a key frame near its start.
    return done


def _read_images(
    video: Video, reader: _ForwardReader, span: tuple[int, int], box: Box | None, sampling: FrameSampling
) -> FrameImages:
    info, (start_pts, end_pts) = video.info, span
    time_base = info.time_base
    box = box or (0, 0, info.width, info.height)
    width, height = sampling.size(box[2] - box[0], box[3] - box[1])
    size = scaled_size(info.width, info.height, box, width, height)
    images: dict[int, bytes] = {}
    count = sampling.count((end_pts - start_pts) * time_base)
    if sampling.at == "middles":
        frames = _frames_at_middles(reader, start_pts, end_pts, count)
    else:
        frames = _frames_at_peaks(video, reader, start_pts, end_pts, count)
    for decoded in frames:
        if decoded.pts >= end_pts:
            raise DecodeError(f"{file_name(video.uri)}: no frame from PTS {start_pts} to {end_pts}")
        decoded_end_pts = decoded.pts + decoded.duration
        if reader.at_end and decoded.duration and decoded_end_pts <= start_pts:
            raise DecodeError(
                f"{file_name(video.uri)}: the frames end at PTS {decoded_end_pts}, before the clip from {start_pts}"
            )
        if decoded.pts not in images:
            frame = video.to_array(decoded.frame, *size)
            image = crop_scaled(frame, box, info.width, info.height, width, height)
            images[decoded.pts] = encode_jpeg(image, sampling.quality)
    # A clip that starts between two frames begins with the earlier one.
    return FrameImages(tuple(images.values()), tuple(float(max(0, pts - start_pts) * time_base) for pts in images))


def _frames_at_middles(reader: _ForwardReader, start_pts: int, end_pts: int, count: int) -> Iterator[DecodedFrame]:
    return (reader.shown_at(pts) for pts in interval_middles(start_pts, end_pts, count))


def _frames_at_peaks(
    video: Video, reader: _ForwardReader, start_pts: int, end_pts: int, count: int
) -> Iterator[DecodedFrame]:
    """Yield the frame of each interval that differs most from the one before it, the earliest of equals.

    An interval in which no frame begins has none. The clip's first frame has no change, so it is chosen only if its
    interval has no other frame. One frame is held besides the one that is decoded.
    """
    info = video.info
    scale = math.sqrt(CHANGE_AREA / (info.width * info.height))
    size = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    ends = [*interval_starts(start_pts, end_pts, count)[1:], end_pts]
    before_HW: NDArray[np.int16] | None = None
    best: tuple[float, DecodedFrame] | None = None
    interval = 0
    for decoded in reader.frames_from(start_pts, end_pts):
        grey_HW = video.to_array(decoded.frame, *size, "gray8").astype(np.int16)
        change = -1.0 if before_HW is None else float(np.abs(grey_HW - before_HW).mean())
        before_HW = grey_HW
        while decoded.pts >= ends[interval] and interval < count - 1:
            if best is not None:
                yield best[1]
            best, interval = None, interval + 1
        if best is None or change > best[0]:
            best = change, decoded
    if best is not None:
        yield best[1]


class _ForwardReader:
    """A reader that decodes a video forward, and seeks where that saves decoding.

    Decoding on and seeking give the same frames: both reach a frame through all packets from the last key frame before
    it.
    """

    def __init__(self, video: Video) -> None:
        self.at_end = False
        """Whether the last frame was decoded."""
        self.decoded_ahead = False
        """Whether the current span was reached by decoding on from the one before it."""
        self._video = video
        self._frames = video.decoded_frames()
        self._shown: DecodedFrame | None = None
        self._next: DecodedFrame | None = None
        self._key_pts: int | None = None
        self._gop_pts: int | None = None
        """Length of the last complete GOP, None if not known."""
        self._may_seek = True

    def go_to(self, start_pts: int, may_seek: bool) -> bool:
        """Prepare to read a span; return False if the file has to be opened again for it."""
        unread = self._next is None
        self._may_seek = may_seek
        self.decoded_ahead = False
        if unread and (not may_seek or start_pts <= self._video.info.start_pts):
            return True
        if not may_seek:
            return False
        if (
            self._next is not None
            and self._shown is not None
            and self._shown.pts <= start_pts <= self._next.pts + self._decode_ahead_pts()
        ):
            self.decoded_ahead = True
        elif start_pts <= self._video.info.start_pts:
            return False
        else:
            self._seek(start_pts)
        return True

    def shown_at(self, pts: int) -> DecodedFrame:
        """Return the frame shown at a PTS, which must not decrease between calls; before the first frame, the first."""
        while not self.at_end and (self._shown is None or self._next is None or self._next.pts <= pts):
            if self._next is not None:
                self._shown = self._next
                if (
                    self._may_seek
                    and self._gop_pts is not None
                    and self._shown.frame.key_frame
                    and pts - self._shown.pts > MIN_SEEK_GROUPS * self._gop_pts
                ):
                    self._seek(pts)
            self._read()
        assert self._shown is not None
        return self._shown

    def frames_from(self, start_pts: int, end_pts: int) -> Iterator[DecodedFrame]:
        """Yield the frame shown at the start of a span, and every frame that begins in it."""
        yield self.shown_at(start_pts)
        while not self.at_end and self._next is not None and self._next.pts < end_pts:
            yield self.shown_at(self._next.pts)

    def _read(self) -> None:
        decoded = next(self._frames, None)
        if decoded is None:
            self.at_end = True
            return
        self._next = decoded
        if decoded.frame.key_frame:
            self._gop_pts = decoded.pts - self._key_pts if self._key_pts is not None else None
            self._key_pts = decoded.pts

    def _seek(self, pts: int) -> None:
        if not self._video.seek(pts):
            raise _CannotSeekError
        self._frames = self._video.decoded_frames()
        self._shown = self._next = self._key_pts = None
        self.at_end = False

    def _decode_ahead_pts(self) -> int:
        """Return how far ahead a span may start to be decoded to.

        It is as far as a seek might go back, and at least five seconds.
        """
        return max(self._gop_pts or 0, int(MAX_DECODE_AHEAD_S / self._video.info.time_base))
