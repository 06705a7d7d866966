"""Encode the frames of a span as H.264 in MP4, at their times, with the source's colour tags and orientation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from pipelines.video.boxes import box_shares, coded_box, inner_pixels
from pipelines.video.decode import DecodedFrame, DecodeError, Video, open_video
from pipelines.video.media_info import MediaInfo
from pipelines.video.orientation import UPRIGHT
from pipelines.video.scale import HD_LINES, Box

ENCODER = "libx264"

REPRODUCIBLE = "cpu-independent=1"
"""x264 parameter that makes the bytes independent of the processor. Without it x264 chooses algorithms by the
processor, and on one with AVX-512 the same frames gave up to 8 different files in 14 tries (x264 165: its macroblock
tree there depends on earlier contents of memory)."""

UNCONVERTED_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv420p10le"})
"""Pixel formats that are encoded without conversion; others become 4:2:0 with 8 bits, or 10 if the source has more."""

ASSUMED_FPS = Fraction(25)
"""Frame rate for the encoder's rate control if the source states none; the times of frames do not depend on it."""


@dataclass(frozen=True)
class H264Settings:
    """Rate factor and preset of x264, and the box of the upright frames that is encoded; None is the whole frame.

    The box is (x0, y0, x1, y1) in pixels as displayed.
    """

    crf: int
    preset: str
    crop: Box | None = None


def encode_span(video: Video, start_pts: int, end_pts: int, path: Path, settings: H264Settings) -> list[int]:
    """Write the frames of a span to an MP4 file whose first frame has PTS 0; return their PTS in the source.

    `video` may have been read before. A crop is made smaller to even sides, as 4:2:0 needs. The time base stays, so
    times are exact at any frame rate. With one encoder thread, the same input gives the same file. Raises
    `DecodeError`, also if the span has no frames or the size of frames changes within it.
    """
    if start_pts > video.info.start_pts and video.seek(start_pts):
        return _write(video, start_pts, end_pts, path, settings)
    with open_video(video.uri) as reopened:
        return _write(reopened, start_pts, end_pts, path, settings)


def coded_crop(info: MediaInfo, crop: Box) -> Box:
    """Return the pixels of the frame as decoded, from even to even ones, that lie inside a box of the upright frame."""
    box = coded_box(box_shares(crop, info.width, info.height), info.orientation)
    x0, y0, x1, y1 = inner_pixels(box, info.coded_width, info.coded_height)
    x0, y0 = x0 + x0 % 2, y0 + y0 % 2
    return x0, y0, max(x0 + 2, x1 - x1 % 2), max(y0 + 2, y1 - y1 % 2)


def _write(video: Video, start_pts: int, end_pts: int, path: Path, settings: H264Settings) -> list[int]:
    frames = _frames_of(video, start_pts, end_pts)
    if settings.crop is not None:
        frames = _cropped(frames, coded_crop(video.info, settings.crop))
    # A frame is encoded once the next one is known, since its duration lasts until then.
    waiting = next(frames, None)
    if waiting is None:
        raise DecodeError(f"{video.uri}: no frame between PTS {start_pts} and {end_pts}")
    first_pts, size = waiting.pts, (waiting.frame.width, waiting.frame.height)
    written = [first_pts]
    reformatter = VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = _open_stream(container, video, waiting.frame, settings)
        for frame in frames:
            if (frame.frame.width, frame.frame.height) != size:
                raise DecodeError(
                    f"{video.uri}: the size of frames changes from {size[0]}x{size[1]} to "
                    f"{frame.frame.width}x{frame.frame.height} at PTS {frame.pts}, inside the clip"
                )
            container.mux(stream.encode(_prepare(stream, reformatter, waiting, first_pts, frame.pts)))
            written.append(frame.pts)
            waiting = frame
        last_end_pts = min(end_pts, waiting.pts + waiting.duration) if waiting.duration else end_pts
        container.mux(stream.encode(_prepare(stream, reformatter, waiting, first_pts, last_end_pts)))
        container.mux(stream.encode(None))
    return written


def _frames_of(video: Video, start_pts: int, end_pts: int) -> Iterator[DecodedFrame]:
    for frame in video.decoded_frames():
        if frame.pts >= end_pts:
            return
        if frame.pts >= start_pts:
            yield frame


def _cropped(frames: Iterator[DecodedFrame], box: Box) -> Iterator[DecodedFrame]:
    """Yield the frames with only the pixels of a box, in their own pixel format."""
    x0, y0, x1, y1 = box
    graphs: dict[tuple[int, int, str], Graph] = {}
    for decoded in frames:
        frame = decoded.frame
        kind = frame.width, frame.height, frame.format.name
        if kind not in graphs:
            graphs[kind] = Graph()
            source = graphs[kind].add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            crop = graphs[kind].add("crop", f"w={x1 - x0}:h={y1 - y0}:x={x0}:y={y0}:exact=1")
            graphs[kind].link_nodes(source, crop, graphs[kind].add("buffersink")).configure()
        graphs[kind].push(frame)
        cropped = graphs[kind].pull()
        assert isinstance(cropped, VideoFrame)
        yield replace(decoded, frame=cropped)


def _open_stream(container: OutputContainer, video: Video, frame: VideoFrame, settings: H264Settings) -> VideoStream:
    info = video.info
    rate = Fraction(info.fps).limit_denominator(1001) if info.fps else ASSUMED_FPS
    stream = container.add_stream(
        ENCODER,
        rate=rate,
        options={"crf": str(settings.crf), "preset": settings.preset, "x264-params": REPRODUCIBLE},
    )
    assert isinstance(stream, VideoStream)
    # 4:2:0 has no half pixels: an odd side is scaled to one pixel less.
    stream.width, stream.height = max(2, frame.width & ~1), max(2, frame.height & ~1)
    if frame.format.name in UNCONVERTED_FORMATS:
        stream.pix_fmt = frame.format.name
    else:
        stream.pix_fmt = "yuv420p10le" if info.bit_depth > 8 else "yuv420p"
    context = stream.codec_context
    context.time_base = info.time_base
    context.thread_count = 1
    displayed_width = info.height if info.orientation.sideways else info.width
    if displayed_width != info.coded_width:
        context.sample_aspect_ratio = Fraction(displayed_width, info.coded_width)
    context.color_primaries, context.color_trc = int(frame.color_primaries), int(frame.color_trc)
    context.color_range, context.colorspace = _range_and_matrix(frame)
    if info.orientation != UPRIGHT:
        stream.set_display_rotation(info.rotation_deg, hflip=info.mirrored)
    return stream


def _range_and_matrix(frame: VideoFrame) -> tuple[int, int]:
    """Return a frame's colour range and matrix; for RGB, limited range and the matrix that players assume for its
    size.
    """
    if not frame.format.is_rgb:
        return int(frame.color_range), int(frame.colorspace)
    return int(ColorRange.MPEG), int(Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601)


def _prepare(
    stream: VideoStream, reformatter: VideoReformatter, decoded: DecodedFrame, first_pts: int, next_pts: int
) -> VideoFrame:
    """Return a frame in the stream's size and pixel format, with its PTS in the file; it lasts until `next_pts`."""
    frame = decoded.frame
    if (frame.format.name, frame.width, frame.height) != (stream.pix_fmt, stream.width, stream.height):
        color_range, matrix = _range_and_matrix(frame)
        frame = reformatter.reformat(
            frame,
            stream.width,
            stream.height,
            stream.pix_fmt,
            dst_colorspace=matrix or None,
            dst_color_range=color_range or None,
        )
    # Which frames become key frames is the encoder's choice, not the source's.
    frame.pict_type = PictureType.NONE
    frame.time_base = stream.codec_context.time_base
    frame.pts, frame.duration = decoded.pts - first_pts, next_pts - decoded.pts
    return frame
