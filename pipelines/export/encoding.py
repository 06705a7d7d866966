"""Encoding a span anew, as H.264 in MP4: the same frames at the same moments, with the source's colour tags and rotation."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from pipelines.video.decode import DecodedFrame, DecodeError, Video, open_video
from pipelines.video.scale import HD_LINES

ENCODER = "libx264"

REPRODUCIBLE = "cpu-independent=1"
"""Without it x264 chooses algorithms by the processor, and on one with AVX-512 the same frames gave up to 8 different files in 14
tries (x264 165: its macroblock tree there depends on what was in memory before)."""

AS_THEY_ARE = frozenset({"yuv420p", "yuvj420p", "yuv420p10le"})
"""Pixel formats that are encoded without a conversion. Others become 4:2:0 of 8 bits, or of 10 where the source has more."""

UNKNOWN_FPS = Fraction(25)
"""Rate that the encoder's rate control assumes where the source names none; frames keep their moments all the same."""


def encode_span(video: Video, start_pts: int, end_pts: int, path: Path, crf: int, preset: str) -> list[int]:
    """Write the frames of a span to an MP4 whose first frame has PTS 0; returns their PTS in the source.

    `video` may have been read before. The time base stays, so moments are exact at any frame rate. One encoder thread: the same
    input gives the same file. Raises `DecodeError`, also for a span without frames or one in which the picture's size changes.
    """
    if start_pts > video.info.start_pts and video.seek(start_pts):
        return _write(video, start_pts, end_pts, path, crf, preset)
    with open_video(video.uri) as again:
        return _write(again, start_pts, end_pts, path, crf, preset)


def _write(video: Video, start_pts: int, end_pts: int, path: Path, crf: int, preset: str) -> list[int]:
    pictures = _span(video, start_pts, end_pts)
    held = next(pictures, None)
    if held is None:
        raise DecodeError(f"{video.uri}: no frame between PTS {start_pts} and {end_pts}")
    first, size = held.pts, (held.frame.width, held.frame.height)
    written = [first]
    reformatter = VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = _open_stream(container, video, held.frame, crf, preset)
        for picture in pictures:
            if (picture.frame.width, picture.frame.height) != size:
                now = f"{picture.frame.width}x{picture.frame.height}"
                raise DecodeError(
                    f"{video.uri}: the picture changes from {size[0]}x{size[1]} to {now} at PTS {picture.pts}, inside the clip"
                )
            container.mux(stream.encode(_prepared(stream, reformatter, held, first, picture.pts)))
            written.append(picture.pts)
            held = picture
        until = min(end_pts, held.pts + held.duration) if held.duration else end_pts
        container.mux(stream.encode(_prepared(stream, reformatter, held, first, until)))
        container.mux(stream.encode(None))
    return written


def _span(video: Video, start_pts: int, end_pts: int) -> Iterator[DecodedFrame]:
    for picture in video.decoded_frames():
        if picture.pts >= end_pts:
            return
        if picture.pts >= start_pts:
            yield picture


def _open_stream(container: OutputContainer, video: Video, frame: VideoFrame, crf: int, preset: str) -> VideoStream:
    info = video.info
    rate = Fraction(info.fps).limit_denominator(1001) if info.fps else UNKNOWN_FPS
    stream = container.add_stream(
        ENCODER, rate=rate, options={"crf": str(crf), "preset": preset, "x264-params": REPRODUCIBLE}
    )
    assert isinstance(stream, VideoStream)
    # 4:2:0 has no half pixels: an odd side is scaled to one pixel less.
    stream.width, stream.height = max(2, frame.width & ~1), max(2, frame.height & ~1)
    stream.pix_fmt = (
        frame.format.name if frame.format.name in AS_THEY_ARE else "yuv420p10le" if info.bit_depth > 8 else "yuv420p"
    )
    context = stream.codec_context
    context.time_base = info.time_base
    context.thread_count = 1
    displayed = info.height if round(info.rotation_deg / 90) % 2 else info.width
    if displayed != frame.width:
        context.sample_aspect_ratio = Fraction(displayed, frame.width)
    context.color_primaries, context.color_trc = int(frame.color_primaries), int(frame.color_trc)
    context.color_range, context.colorspace = _range_and_matrix(frame)
    if info.rotation_deg:
        stream.set_display_rotation(info.rotation_deg)
    return stream


def _range_and_matrix(frame: VideoFrame) -> tuple[int, int]:
    """Those of the frame; RGB becomes limited range by the matrix that players assume for its size."""
    if not frame.format.is_rgb:
        return int(frame.color_range), int(frame.colorspace)
    return int(ColorRange.MPEG), int(Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601)


def _prepared(
    stream: VideoStream, reformatter: VideoReformatter, picture: DecodedFrame, first_pts: int, next_pts: int
) -> VideoFrame:
    frame = picture.frame
    if (frame.format.name, frame.width, frame.height) != (stream.pix_fmt, stream.width, stream.height):
        span, matrix = _range_and_matrix(frame)
        frame = reformatter.reformat(
            frame,
            stream.width,
            stream.height,
            stream.pix_fmt,
            dst_colorspace=matrix or None,
            dst_color_range=span or None,
        )
    # Which frames become key frames is the encoder's choice, not the source's.
    frame.pict_type = PictureType.NONE
    frame.time_base = stream.codec_context.time_base
    frame.pts, frame.duration = picture.pts - first_pts, next_pts - picture.pts
    return frame
