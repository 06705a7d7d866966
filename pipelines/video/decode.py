"""Open and decode videos by exact presentation timestamps (PTS): probe, read in order, seek to a key frame.

Every video is opened through `open_video`. Times are integers in units of the stream's time base. They are never frame
numbers divided by an average rate, which is wrong for a variable frame rate.

Shape legend: H height, W width.
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
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from cluster import storage
from cluster.arrays import UInt8Array
from cluster.unreadable import WatchedFile, check_readable
from pipelines.video.media_info import MediaInfo, media_info
from pipelines.video.scale import assumed_colorspace, packed_array, rescale

OPEN_LOG = "WORLDLOOM_OPEN_LOG"
"""Environment variable with the path of a log file. Each time any process opens a video, it appends a line with the
URI."""

MAX_BAD_PACKETS = 64
"""Largest number of packets that may fail before the first frame, and of frames whose PTS does not rise, before a
stream is given up. Streams cut out of a broadcast start with up to a group of pictures (about 12 to 60 frames) that
cannot be decoded."""

MAX_STEP_BACK_S = Fraction(1)
"""Longest step back of the clock that is taken for a few misplaced frames, which are left out; after a longer one, the
frames are those of another recording, at times that were shown already."""

AVFMT_TS_DISCONT = 0x200
"""Flag of FFmpeg's containers whose timestamps may jump."""

NO_PTS_FORMATS = frozenset({"avi"})
"""Containers that store no PTS. FFmpeg guesses them, wrongly for packed B-frames (54 of 164 frames out of order in an
Xvid file), while the decoding timestamps of frames in the order they come out do rise."""

SKIPPABLE_CODECS = frozenset({"h264", "hevc"})
"""Codecs that mark frames no other frame refers to, and whose decoders can skip these frames and the loop filter (VP9,
AV1 and MPEG-4 gain nothing)."""

MAX_MISSING_S = 1.0
MAX_MISSING_SHARE = 0.1
"""A stream is truncated if it ends before the end its header declares by more than 1 s and by more than a tenth of the
duration. Honest headers are off by a few frames: rounding, edit lists, a last frame without duration."""

MAX_PIXELS = 1 << 26
"""Largest frame that is decoded, in pixels: 8192 x 8192. A damaged header may claim far more, and 5 kB of it then take
minutes and gigabytes."""

CONTAINER_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,gif,apng,image2,h264,hevc,"
    "obu,m4v,y4m,yuv4mpegpipe,rm,dv,wav,mp3,aac,flac"
)
"""Containers that are opened. Playlists are not, as they make a file name other files, nor is text, which FFmpeg would
draw."""

NOT_A_VIDEO = (
    "not in a container that is read as video; name a still image under images:, and convert an animated WebP to GIF, "
    "APNG or MP4"
)

VideoPacket: TypeAlias = "Packet[VideoStream]"


class DecodeError(ValueError):
    """An error of a file that cannot be decoded.

    The message has the file's name, and the class and text of the decoder's error.
    """


def decode_error(uri: str, error: BaseException) -> DecodeError:
    """Return a `DecodeError` with the class and the text of the error that caused it."""
    return DecodeError(f"{file_name(uri)}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame with its exact PTS and duration, in units of the time base (duration 0 if not known)."""

    pts: int
    duration: int
    frame: VideoFrame


class Video:
    """An open video stream, made by `open_video`.

    It is read forward, from the start or, after `seek`, from a key frame.
    """

    def __init__(self, uri: str, container: InputContainer, threads: int) -> None:
        self.uri = uri
        self._container = container
        self._stream = _choose_stream(uri, container)
        self._stream.codec_context.thread_count = threads
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        _check_size(uri, self._stream)
        self._threads = threads
        self._reformatter = VideoReformatter()
        # The packets read until the first frame comes out, kept for `packets`, which starts with them.
        self._opening_packets: list[VideoPacket] = []
        self._opening = True
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise DecodeError(f"{file_name(uri)}: no frame can be decoded")
        self._opening = False
        self.info = media_info(container, self._stream, first.frame, first.pts)
        self._frames = itertools.chain([first], self._frames)

    @property
    def has_pts(self) -> bool:
        """Whether the container stores presentation timestamps."""
        return self._container.format.name not in NO_PTS_FORMATS

    @property
    def clock_may_jump(self) -> bool:
        """Whether the container allows for jumps of the clock, as transport streams do. Seeking may then skip some."""
        return bool(self._container.format.flags & AVFMT_TS_DISCONT)

    @property
    def can_skip(self) -> bool:
        """Whether frames may be skipped: the codec marks those no other frame refers to, and packets have their PTS."""
        return self.info.codec in SKIPPABLE_CODECS and self.has_pts

    def packets(self) -> Iterator[VideoPacket]:
        """Return the stream's packets from its start, in decoding order; once, and instead of `decoded_frames`.

        Raises `DecodeError`.
        """
        opening_packets, self._opening_packets = self._opening_packets, []
        return self._demux(opening_packets)

    def packets_from(self, pts: int) -> Iterator[VideoPacket]:
        """Return the packets from a key frame shown at `pts` or earlier.

        Raises `DecodeError`, also if the container cannot seek.
        """
        one_second = max(1, int(1 / self.info.time_base))
        # Containers index decoding timestamps, which lie a few frames before the PTS: the first try may land too late.
        for target in (pts, pts - one_second, pts - 10 * one_second, self.info.start_pts):
            try:
                self._container.seek(target, stream=self._stream, backward=True)
            except av.error.FFmpegError as error:
                raise decode_error(self.uri, error) from error
            packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, self._demux([]))
            key = next(packets, None)
            if key is not None and key.pts is not None and (key.pts <= pts or target == self.info.start_pts):
                return itertools.chain([key], packets)
        raise DecodeError(f"{file_name(self.uri)}: the container cannot seek to PTS {pts}")

    def decoder(self, loop_filter: bool = True) -> VideoCodecContext:
        """Return a decoder for this stream's packets: the stream's, or a new one without the loop filter.

        The latter still filters key frames and is 1.2 to 1.7 times as fast. It needs a codec for which `can_skip` is
        true.
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

    def decoded_frames(self) -> Iterator[DecodedFrame]:
        """Return the frames in presentation order, PTS strictly rising.

        Raises `DecodeError`, while it is read, if the stream is damaged or truncated.
        Packets that fail before the first frame are skipped, as at the start of a broadcast. A packet that fails later
        fails the file: the frames after it are predicted from damaged ones, and must not be trained on.
        """
        return self._frames

    def seek(self, pts: int) -> bool:
        """Continue with a key frame shown at `pts` or earlier; False if the container cannot, and must be opened again.

        Frames that come out before the first key frame are skipped: they may refer to frames that were not decoded
        (open groups of pictures).
        """
        one_second = max(1, int(1 / self.info.time_base))
        # Containers index decoding timestamps, which lie a few frames before the PTS: the first try may land too late.
        for target in (pts, pts - one_second):
            try:
                self._container.seek(target, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                return False
            frames = self._decode()
            key = next((decoded for decoded in frames if decoded.frame.key_frame), None)
            if key is None:
                return False
            if key.pts <= pts:
                self._frames = itertools.chain([key], frames)
                return True
        return False

    def to_array(self, frame: VideoFrame, width: int, height: int, pixel_format: str = "rgb24") -> UInt8Array:
        """Return a frame as an upright uint8 array of displayed size `width` x `height`, in full range, antialiased.

        The array is `[H, W, 3]` for rgb24 and bgr24, `[H, W]` for gray8.
        """
        size = self._coded_size(width, height)
        scaled = rescale(self._reformatter, frame, *size, pixel_format, assumed_colorspace(frame))
        return self.info.orientation.upright(packed_array(scaled))

    def to_yuv420p(self, reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> VideoFrame:
        """Return a frame at a displayed size as yuv420p in full range, not yet upright.

        `reformatter` caches the scaler's tables, which belong to one size.
        """
        return rescale(reformatter, frame, *self._coded_size(width, height), "yuv420p", assumed_colorspace(frame))

    def with_pts(self, frame: VideoFrame, previous: DecodedFrame | None) -> DecodedFrame:
        """Return a frame with its PTS.

        In containers without PTS (raw streams), frames follow each other at the stream's rate.
        """
        duration = int(frame.duration or 0)
        pts = frame.pts if self.has_pts else frame.dts
        if pts is not None:
            return DecodedFrame(int(pts), duration, frame)
        assert self._stream.time_base is not None
        if not duration and self._stream.guessed_rate:
            duration = round(1 / (self._stream.guessed_rate * self._stream.time_base))
        if previous is None:
            return DecodedFrame(int(self._stream.start_time or 0), max(duration, 1), frame)
        return DecodedFrame(previous.pts + max(previous.duration, 1), max(duration, 1), frame)

    def check_step_back(self, last_pts: int, pts: int, n_misplaced: int) -> None:
        """Raise `DecodeError` for a frame that is not later than the last one, if it is none of a few misplaced ones.

        `n_misplaced` counts these, with this one.
        """
        assert self._stream.time_base is not None
        step_s = float((last_pts - pts) * self._stream.time_base)
        if step_s > MAX_STEP_BACK_S:
            raise DecodeError(
                f"{file_name(self.uri)}: the clock jumps back by {step_s:.2f} s at PTS {last_pts}, as where recordings "
                f"were joined; write them with one clock: ffmpeg -i {file_name(self.uri)} -c copy joined.mp4"
            )
        if n_misplaced > MAX_BAD_PACKETS:
            raise DecodeError(f"{file_name(self.uri)}: timestamps step back at PTS {last_pts}")

    def check_complete(self, end_pts: int) -> None:
        """Raise `DecodeError` if the frames end, at `end_pts`, long before the end that the header declares."""
        stream = self._stream
        if not stream.duration or stream.time_base is None:
            return
        declared_s = float(stream.duration * stream.time_base)
        decoded_s = float((end_pts - (stream.start_time or 0)) * stream.time_base)
        # FFmpeg guesses how long the last frame of some formats is shown, such as MPEG-TS.
        guessed_s = 1 / float(stream.guessed_rate) if stream.guessed_rate else 0.0
        if declared_s - decoded_s > max(MAX_MISSING_S, MAX_MISSING_SHARE * declared_s) + guessed_s:
            name, ends = file_name(self.uri), f"frames end at {decoded_s:.2f} s"
            raise DecodeError(f"{name}: truncated: {ends} of the {declared_s:.2f} s the header declares")

    def _coded_size(self, width: int, height: int) -> tuple[int, int]:
        """Return a displayed size as (width, height) of the frame as coded, before rotation."""
        return (height, width) if self.info.orientation.sideways else (width, height)

    def _demux(self, opening_packets: list[VideoPacket]) -> Iterator[VideoPacket]:
        yield from opening_packets
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            raise decode_error(self.uri, error) from error

    def _decode(self) -> Iterator[DecodedFrame]:
        last: DecodedFrame | None = None
        failures, n_misplaced = 0, 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if self._opening and packet.size:
                    self._opening_packets.append(packet)
                frames = self._stream.codec_context.decode(packet if packet.size else None)
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                failures += 1
                if last is not None or failures > MAX_BAD_PACKETS:
                    raise decode_error(self.uri, error) from error
                failed = error
                continue
            for frame in frames:
                decoded = self.with_pts(frame, last)
                if last is not None and decoded.pts <= last.pts:
                    n_misplaced += 1
                    self.check_step_back(last.pts, decoded.pts, n_misplaced)
                    continue
                last = decoded
                yield decoded
        if last is None and failures:
            raise decode_error(self.uri, failed) from failed
        if last is not None:
            self.check_complete(last.pts + last.duration)


@contextlib.contextmanager
def open_video(uri: str, threads: int = 1) -> Iterator[Video]:
    """Open a local or remote video. Raises `DecodeError`, and `OSError` if its bytes cannot be read.

    One decoder thread is the default: there is one worker per core, and more threads would compete with the other
    workers. The stream is the one that FFmpeg rates best, which excludes cover art.
    """
    if log := os.environ.get(OPEN_LOG):
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(uri + "\n")
    with contextlib.ExitStack() as stack:
        watched: WatchedFile | None = None
        if not storage.is_local(uri):
            watched = WatchedFile(uri, stack.enter_context(storage.open_input(uri)))
        try:
            container = _open_container(uri, watched or str(storage.local_path(uri)))
            yield Video(uri, stack.enter_context(container), threads)
        except Exception as error:
            if watched and watched.error not in (None, error):
                raise watched.error from error
            if watched is None and isinstance(error, DecodeError | av.error.FFmpegError):
                check_readable(str(storage.local_path(uri)), error)
            raise
        if watched and watched.error:
            raise watched.error


def _open_container(uri: str, source: Any) -> Any:
    """Return an `InputContainer`. Raises `DecodeError`."""
    try:
        return av.open(source, metadata_errors="ignore", options={"format_whitelist": CONTAINER_FORMATS})
    except av.error.ArgumentError as error:
        raise DecodeError(f"{file_name(uri)}: {type(error).__name__}: {NOT_A_VIDEO}") from error
    except av.error.FFmpegError as error:
        raise decode_error(uri, error) from error


def probe(uri: str) -> MediaInfo:
    """Read a video's headers and decode its first frame. Raises `DecodeError`."""
    with open_video(uri) as video:
        return video.info


def read_frames(
    uri: str, width: int | None = None, height: int | None = None, pixel_format: str = "rgb24"
) -> Iterator[tuple[int, UInt8Array]]:
    """Yield every frame in presentation order as (PTS, upright uint8 array), scaled once to the requested size.

    The array is `[H, W, 3]` for rgb24 and bgr24, `[H, W]` for gray8. The size defaults to the displayed one. Raises
    `DecodeError`.
    """
    with open_video(uri) as video:
        size = width or video.info.width, height or video.info.height
        for decoded in video.decoded_frames():
            yield decoded.pts, video.to_array(decoded.frame, *size, pixel_format)


def file_name(uri: str) -> str:
    """Return the last component of a URI, for error messages."""
    return PurePosixPath(uri).name


def _choose_stream(uri: str, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise DecodeError(f"{file_name(uri)}: no video stream")
    if stream.codec_context is None:
        raise DecodeError(f"{file_name(uri)}: the video stream is in an unknown codec")
    return stream


def _check_size(uri: str, stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{file_name(uri)}: the frames are {width}x{height}, more than {MAX_PIXELS} pixels")
