"""Decode videos by exact presentation time stamps (PTS): probe, iterate, and read sampled spans at the size they are needed.

Every open of a video goes through `open_video`. Times are integers in units of the stream's time base, never frame numbers
divided by an average rate, which is wrong for a variable frame rate.

Shape legend: T frames, H height, W width, C colour channels (red, green, blue).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import av
import av.error
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from cluster import storage
from pipelines.video.errors import DecodeError as DecodeError
from pipelines.video.errors import decode_error
from pipelines.video.scale import Box, Pixels, centre_crop, crop_scaled, pixels, rescale, scaled_size, to_upright
from pipelines.video.still import IMAGE_SUFFIXES, read_image, resize_image

OPEN_LOG = "WORLDLOOM_OPEN_LOG"
"""Environment variable: a file that gets one line with the URI each time a video is opened, in whatever process."""

BAD_PACKETS = 64
"""Packets that may fail before the first frame, and frames that may step back in time, before a stream is given up. Streams
cut out of a broadcast start with up to a group of pictures (about 12 to 60 frames) that cannot be decoded."""

NO_PTS_FORMATS = frozenset({"avi"})
"""Containers that store no PTS: FFmpeg guesses them, wrongly for packed B-frames (54 of 164 frames out of order in an Xvid
file), while the decoding times of frames in the order they come out do rise."""

SKIPPABLE_CODECS = frozenset({"h264", "hevc"})
"""Codecs that mark frames no other refers to, and whose decoders skip them and the loop filter (VP9, AV1 and MPEG-4 gain nothing)."""

MISSING_S = 1.0
MISSING_SHARE = 0.1
"""A stream that ends this much before the end its header declares is truncated: more than 1 s and more than a tenth. Honest
headers are off by a few frames: rounding, edit lists, a last frame without duration."""

HD_LINES = 720
"""Untagged video with at least this many lines is BT.709, and less is BT.601, as players assume."""

MAX_PIXELS = 1 << 26
"""Largest picture that is decoded: 8192 x 8192. A damaged header may claim far more, and 5 kB of it then take minutes and gigabytes."""

ASPECTS = (Fraction(1, 16), Fraction(16))
"""Widths of a pixel to its height that are believed; others are damage, and square is the better guess."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,gif,image2,h264,hevc,obu,m4v,y4m,"
    "yuv4mpegpipe,rm,dv,wav,mp3,aac,flac"
)
"""Containers that are opened. Not playlists, which make a file name other files, and text that FFmpeg would draw."""

HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer functions of high dynamic range, by their number in ITU-T H.273: SMPTE ST 2084 and ARIB STD-B67."""

VideoPacket: TypeAlias = "Packet[VideoStream]"

_RANGES = {int(ColorRange.MPEG): "limited", int(ColorRange.JPEG): "full"}
_KNOWN_COLORSPACES = frozenset({0, 1, 4, 5, 6, 7, 9})
"""Matrix coefficients of ITU-T H.273 that swscale converts: RGB, BT.709, FCC, BT.601 twice, SMPTE 240M, BT.2020. The others
(YCgCo, ICtCp and reserved numbers) are taken for untagged: rare, and a wrong tint costs less than the file."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file's headers and its first frame say.

    `width` and `height` are those of the picture as displayed, after rotation and with square pixels. `rotation_deg` is the
    counter-clockwise rotation that makes it upright, already applied. `duration_s` is what the header claims, None if nothing.
    `hdr` is pq or hlg for a picture of high dynamic range, which a display of standard range shows pale, else None.
    """

    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation_deg: int
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
        """Seconds a PTS unit lasts."""
        return Fraction(self.time_base_num, self.time_base_den)


@dataclass(frozen=True)
class Picture:
    """A decoded frame with its exact PTS and its duration, in units of the time base (0 where the file does not say)."""

    pts: int
    duration: int
    frame: VideoFrame


@dataclass(frozen=True)
class Span:
    """Sampled frames: `frames` is uint8 `[T, H, W, 3]` RGB, `pts` the source frame each one shows, `crop` the box kept.

    `crop` is (x0, y0, x1, y1) in pixels of the picture as displayed (`MediaInfo.width` x `MediaInfo.height`), exclusive ends.
    """

    frames: Pixels
    pts: tuple[int, ...]
    crop: Box


class Video:
    """An open video stream; `open_video` makes it. It reads forward, or from a key frame after `seek`."""

    def __init__(self, uri: str, container: InputContainer, threads: int) -> None:
        self.uri = uri
        self._container = container
        self._stream = _choose_stream(uri, container)
        self._stream.codec_context.thread_count = threads
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        _check_size(uri, self._stream)
        self._threads = threads
        self._reformatter = VideoReformatter()
        # What opening reads until the first frame, for those who want the packets from the start.
        self._head: list[VideoPacket] = []
        self._opening = True
        self._pictures = self._decode()
        first = next(self._pictures, None)
        if first is None:
            raise DecodeError(f"{_name(uri)}: no frame can be decoded")
        self._opening = False
        self.info = _media_info(container, self._stream, first)
        self._pictures = itertools.chain([first], self._pictures)

    @property
    def has_pts(self) -> bool:
        """Whether the container stores presentation times."""
        return self._container.format.name not in NO_PTS_FORMATS

    @property
    def can_skip(self) -> bool:
        """Whether frames may be passed over: the codec marks those no other frame refers to, and packets have their PTS."""
        return self.info.codec in SKIPPABLE_CODECS and self.has_pts

    def packets(self) -> Iterator[VideoPacket]:
        """The stream's packets from its start, in decoding order; once, and instead of `pictures`. Raises `DecodeError`."""
        head, self._head = self._head, []
        return self._demux(head)

    def packets_from(self, pts: int) -> Iterator[VideoPacket]:
        """The packets from a key frame shown at `pts` or before it. Raises `DecodeError`, also where the container cannot seek."""
        one_second = max(1, int(1 / self.info.time_base))
        # Containers index decoding times, which lie a few frames before the PTS: the first try may land too late.
        for target in (pts, pts - one_second, pts - 10 * one_second, self.info.start_pts):
            try:
                self._container.seek(target, stream=self._stream, backward=True)
            except av.error.FFmpegError as error:
                raise decode_error(self.uri, error) from error
            packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, self._demux([]))
            key = next(packets, None)
            if key is not None and key.pts is not None and (key.pts <= pts or target == self.info.start_pts):
                return itertools.chain([key], packets)
        raise DecodeError(f"{_name(self.uri)}: the container cannot seek to PTS {pts}")

    def decoder(self, loop_filter: bool = True) -> VideoCodecContext:
        """A decoder for this stream's packets: the stream's own, or one of its own without the loop filter (but for key frames).

        Only the codecs that `can_skip` have the latter; it is 1.2 to 1.7 times as fast.
        """
        context = self._stream.codec_context
        if loop_filter:
            return context
        decoder = CodecContext.create(context.name, "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.extradata = context.extradata
        decoder.thread_count = self._threads
        decoder.options = {"max_pixels": str(MAX_PIXELS), "skip_loop_filter": "nokey"}
        return decoder

    def _demux(self, head: list[VideoPacket]) -> Iterator[VideoPacket]:
        yield from head
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            raise decode_error(self.uri, error) from error

    def pictures(self) -> Iterator[Picture]:
        """The frames in presentation order, PTS strictly rising. Raises `DecodeError` where the stream is damaged or ends too early.

        Packets that fail before the first frame are passed over, as at the start of a broadcast; after it, a packet that fails
        fails the file: what follows is drawn on top of damage, and nobody wants to train on that.
        """
        return self._pictures

    def seek(self, pts: int) -> bool:
        """Continue with a key frame shown at `pts` or before. False where the container cannot do that; then open it anew.

        Frames that come out before the first key frame are passed over: they may refer to frames that were not decoded
        (open groups of pictures).
        """
        one_second = max(1, int(1 / self.info.time_base))
        # Containers index decoding times, which lie a few frames before the PTS: the first try may land too late.
        for target in (pts, pts - one_second):
            try:
                self._container.seek(target, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                return False
            pictures = self._decode()
            key = next((picture for picture in pictures if picture.frame.key_frame), None)
            if key is None:
                return False
            if key.pts <= pts:
                self._pictures = itertools.chain([key], pictures)
                return True
        return False

    def array(self, frame: VideoFrame, width: int, height: int, pixel_format: str = "rgb24") -> Pixels:
        """A frame as an upright uint8 array of displayed size `width` x `height`, in full range; antialiased."""
        scaled = rescale(self._reformatter, frame, *self._coded(width, height), pixel_format, _colorspace(frame))
        return to_upright(pixels(scaled), self.info.rotation_deg)

    def small(self, reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> VideoFrame:
        """A frame at a displayed size as yuv420p in full range, not yet upright; `reformatter` holds what swscale prepares for a size."""
        return rescale(reformatter, frame, *self._coded(width, height), "yuv420p", _colorspace(frame))

    def _coded(self, width: int, height: int) -> tuple[int, int]:
        """A displayed size as the frame lies in the file."""
        return (height, width) if round(self.info.rotation_deg / 90) % 2 else (width, height)

    def _decode(self) -> Iterator[Picture]:
        last: Picture | None = None
        failures, steps_back = 0, 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if self._opening and packet.size:
                    self._head.append(packet)
                frames = self._stream.codec_context.decode(packet if packet.size else None)
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                failures += 1
                if last is not None or failures > BAD_PACKETS:
                    raise decode_error(self.uri, error) from error
                failed = error
                continue
            for frame in frames:
                picture = self.place(frame, last)
                if last is not None and picture.pts <= last.pts:
                    steps_back += 1
                    if steps_back > BAD_PACKETS:
                        raise DecodeError(f"{_name(self.uri)}: time stamps step back at PTS {last.pts}")
                    continue
                last = picture
                yield picture
        if last is None and failures:
            raise decode_error(self.uri, failed) from failed
        if last is not None:
            self.check_complete(last.pts + last.duration)

    def place(self, frame: VideoFrame, last: Picture | None) -> Picture:
        """PTS of a frame; where the container has none (raw streams), frames follow each other at the stream's rate."""
        duration = int(frame.duration or 0)
        pts = frame.pts if self.has_pts else frame.dts
        if pts is not None:
            return Picture(int(pts), duration, frame)
        assert self._stream.time_base is not None
        if not duration and self._stream.guessed_rate:
            duration = round(1 / (self._stream.guessed_rate * self._stream.time_base))
        if last is None:
            return Picture(int(self._stream.start_time or 0), max(duration, 1), frame)
        return Picture(last.pts + max(last.duration, 1), max(duration, 1), frame)

    def check_complete(self, end_pts: int) -> None:
        """Raises `DecodeError` where the frames end long before what the header declares."""
        stream = self._stream
        if not stream.duration or stream.time_base is None:
            return
        declared_s = float(stream.duration * stream.time_base)
        decoded_s = float((end_pts - (stream.start_time or 0)) * stream.time_base)
        if declared_s - decoded_s > max(MISSING_S, MISSING_SHARE * declared_s):
            raise DecodeError(
                f"{_name(self.uri)}: truncated: frames end at {decoded_s:.2f} s of the {declared_s:.2f} s the header declares"
            )


@contextlib.contextmanager
def open_video(uri: str, threads: int = 1) -> Iterator[Video]:
    """Open a local or remote video; the one place where a video is opened. Raises `DecodeError`.

    One decoder thread by default: workers come one a core, and threads of theirs would only fight. The stream is the one
    FFmpeg takes for the best, which passes over cover pictures. Errors of remote storage are raised as they are.
    """
    if log := os.environ.get(OPEN_LOG):
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(uri + "\n")
    with contextlib.ExitStack() as stack:
        source: Any = (
            str(storage.local_path(uri)) if storage.is_local(uri) else stack.enter_context(storage.open_input(uri))
        )
        try:
            container = stack.enter_context(
                av.open(source, metadata_errors="ignore", options={"format_whitelist": FORMATS})
            )
        except av.error.FFmpegError as error:
            raise decode_error(uri, error) from error
        yield Video(uri, container, threads)


def probe(uri: str) -> MediaInfo:
    """Read a video's headers and decode its first frame. Raises `DecodeError`."""
    with open_video(uri) as video:
        return video.info


def frames(
    uri: str, width: int | None = None, height: int | None = None, pixel_format: str = "rgb24"
) -> Iterator[tuple[int, Pixels]]:
    """Every frame in presentation order as (PTS, uint8 array), upright and straight at the size wanted.

    The array is `[H, W, 3]` for rgb24 and bgr24, `[H, W]` for gray8. The size defaults to the displayed one. Raises `DecodeError`.
    """
    with open_video(uri) as video:
        for picture in video.pictures():
            yield (
                picture.pts,
                video.array(picture.frame, width or video.info.width, height or video.info.height, pixel_format),
            )


def read_span(
    uri: str, start_pts: int, end_pts: int, *, fps: float, frames: int, width: int, height: int, crop: Box | None = None
) -> Span:
    """Decode `frames` frames of a span, sampled at `fps` from `start_pts`, as RGB of `width` x `height`.

    Frame k is the one shown at start + k/fps: the last whose PTS is not later than that moment, rounded to the time base
    as the container rounded its PTS; before the first frame, the first. `end_pts` is exclusive: no frame at or past it is used. The picture is scaled
    (antialiased) to cover the size and cropped around its centre, or `crop` is kept: (x0, y0, x1, y1) in displayed pixels.

    An image (by its suffix) gives its one picture, whatever the span. Raises `DecodeError` for a file that cannot be decoded
    or has no frame in the span, and `ValueError` for a span too short for the frames asked for.
    """
    if frames < 1 or width < 1 or height < 1 or not fps > 0:
        raise ValueError(f"{frames} frames of {width}x{height} at {fps:g} fps: all of them must be positive")
    if is_image(uri):
        if frames != 1:
            raise ValueError(f"{frames} frames of {_name(uri)}: an image has 1")
        image = read_image(uri)
        box = crop or centre_crop(image.width, image.height, width, height)
        return Span(resize_image(image, box, width, height)[None], (0,), box)
    with open_video(uri) as video:
        if start_pts <= video.info.start_pts or video.seek(start_pts):
            return _sample(video, start_pts, end_pts, fps, frames, width, height, crop)
    with open_video(uri) as video:
        return _sample(video, start_pts, end_pts, fps, frames, width, height, crop)


def target_pts(start_pts: int, end_pts: int, fps: float, frames: int, time_base: Fraction) -> list[int]:
    """The moments of a sampled span, in units of the time base; the last one is kept inside the span.

    Raises `ValueError` when the span ends before the last moment: it may start at `end_pts`, but not lie past it.
    """
    step = 1 / (Fraction(fps).limit_denominator(1001) * time_base)
    # Half up, so that 66.67 ms finds the frame that a time base of 1 ms puts at 67.
    targets = [start_pts + int(k * step + Fraction(1, 2)) for k in range(frames)]
    if end_pts <= start_pts or targets[-1] > end_pts:
        span_s = float((end_pts - start_pts) * time_base)
        raise ValueError(
            f"{frames} frames at {fps:g} fps need {(frames - 1) / fps:g} s, but the span has {span_s:g} s; ask for fewer frames"
        )
    return [min(target, end_pts - 1) for target in targets]


def is_image(uri: str) -> bool:
    """Whether the suffix of a URI is that of a still image."""
    return PurePosixPath(uri).suffix.lower() in IMAGE_SUFFIXES


def _sample(
    video: Video, start_pts: int, end_pts: int, fps: float, frames: int, width: int, height: int, crop: Box | None
) -> Span:
    targets = target_pts(start_pts, end_pts, fps, frames, video.info.time_base)
    box = crop or centre_crop(video.info.width, video.info.height, width, height)
    size = scaled_size(video.info.width, video.info.height, box, width, height)
    output: NDArray[np.uint8] = np.empty((frames, height, width, 3), np.uint8)
    used: list[int] = []

    def show(picture: Picture, until: int) -> None:
        """Fill all frames whose moment comes before `until`, when the next picture is shown."""
        first = len(used)
        while len(used) < frames and targets[len(used)] < until:
            used.append(picture.pts)
        if len(used) > first:
            output[first : len(used)] = crop_scaled(
                video.array(picture.frame, *size), box, video.info.width, video.info.height, width, height
            )

    shown: Picture | None = None
    for picture in video.pictures():
        if shown is not None:
            show(shown, picture.pts)
        if len(used) == frames or picture.pts >= end_pts:
            break
        shown = picture
    if shown is None:
        raise DecodeError(f"{_name(video.uri)}: no frame before PTS {end_pts}")
    show(shown, end_pts)
    if shown.duration and shown.pts + shown.duration <= start_pts and picture is shown:
        raise DecodeError(
            f"{_name(video.uri)}: the frames end at PTS {shown.pts + shown.duration}, before the span from {start_pts}"
        )
    return Span(output, tuple(used), box)


def _choose_stream(uri: str, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise DecodeError(f"{_name(uri)}: no video stream")
    if stream.codec_context is None:
        raise DecodeError(f"{_name(uri)}: the video stream is in a codec nobody knows")
    return stream


def _check_size(uri: str, stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{_name(uri)}: the picture is {width}x{height}, more than {MAX_PIXELS} pixels")


def _media_info(container: InputContainer, stream: VideoStream, first: Picture) -> MediaInfo:
    assert stream.time_base is not None
    frame, aspect = first.frame, stream.sample_aspect_ratio
    # Square pixels: the wider side is stretched to what is displayed, the lines are kept.
    width = max(1, round(frame.width * aspect)) if aspect and ASPECTS[0] <= aspect <= ASPECTS[1] else frame.width
    turned = round(frame.rotation / 90) % 2 != 0
    duration_s = float(stream.duration * stream.time_base) if stream.duration else None
    if duration_s is None and container.duration:
        duration_s = container.duration / av.time_base
    rate = stream.average_rate or stream.guessed_rate
    return MediaInfo(
        codec=stream.codec_context.codec.canonical_name,
        width=frame.height if turned else width,
        height=width if turned else frame.height,
        coded_width=frame.width,
        coded_height=frame.height,
        rotation_deg=frame.rotation,
        fps=float(rate) if rate else None,
        time_base_num=stream.time_base.numerator,
        time_base_den=stream.time_base.denominator,
        start_pts=first.pts,
        duration_s=duration_s,
        pixel_format=frame.format.name,
        color_range="full"
        if frame.format.name.startswith("yuvj")
        else _RANGES.get(int(frame.color_range), "unspecified"),
        bit_depth=max((component.bits for component in frame.format.components), default=8),
        hdr=HDR_TRANSFERS.get(int(stream.codec_context.color_trc or 0)),
        interlaced=bool(frame.interlaced_frame),
        n_video_streams=len(container.streams.video),
    )


def _colorspace(frame: VideoFrame) -> Colorspace | None:
    """The matrix of an untagged frame, or of one tagged with a matrix that swscale does not know; None where the frame says it."""
    if int(frame.colorspace) in _KNOWN_COLORSPACES:
        return None
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def _name(uri: str) -> str:
    return PurePosixPath(uri).name
