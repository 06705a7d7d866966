"""Writing frames as an mp4, gif, webp or png file, complete or not at all."""

from __future__ import annotations

import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from cluster import storage
from cluster.arrays import Pixels

_BT709 = 1
"""The value of BT.709 as matrix, primaries and transfer in ITU-T H.273."""


VIDEO_FORMATS = ("mp4", "gif", "webp")
MAX_GIF_FPS = 50.0
"""Largest frame rate of a gif: frames last whole hundredths of a second, and browsers slow down shorter ones than 2."""
Finish = Callable[[Path], None]
"""A function that changes a file in place once it is encoded, before it appears under its name."""


def write_video(uri: str, frames: Iterable[Pixels], fps: float, finish: Finish | None = None) -> None:
    """Write RGB frames in the format that the URI's suffix names: `.mp4` as `write_mp4`, or `.gif` or `.webp`.

    A gif has 256 colours per frame and at most `MAX_GIF_FPS`; both repeat without end, and hold all frames in memory
    while they are written. Raises `ValueError` as `write_mp4`, for another suffix, and for a gif of a higher rate.
    """
    suffix = uri.lower().rpartition(".")[2]
    if suffix not in VIDEO_FORMATS:
        raise ValueError(f"{uri}: videos are written as .{', .'.join(VIDEO_FORMATS[:-1])} or .{VIDEO_FORMATS[-1]}")
    if suffix == "mp4":
        with _encoded(uri, finish) as path:
            _encode_mp4(path, frames, fps, crf=18, preset="medium")
    else:
        write_file(uri, _encode_animation(frames, fps, suffix), finish)


def write_mp4(uri: str, frames: Iterable[Pixels], fps: float, crf: int = 18, preset: str = "medium") -> None:
    """Write RGB frames, an array `[T, H, W, 3]` or an iterable of `[H, W, 3]`, as an mp4 that every player shows.

    The codec is H.264, or MPEG-4 part 2 where PyAV was built without x264: 4:2:0, limited range and BT.709, tagged as
    such. The index comes first, so that the file streams. `crf` 18 is visually lossless, 0 lossless; `preset` is
    x264's trade of time for bytes. The same frames give the same bytes, because one thread encodes and no dates are
    written. Raises `ValueError` for no frames, odd sides, or frames of another shape or type.
    """
    with _encoded(uri) as path:
        _encode_mp4(path, frames, fps, crf, preset)


def write_png(uri: str, image: Pixels, finish: Finish | None = None) -> None:
    """Write an RGB image, uint8 `[H, W, 3]`, as a png file. Raises `ValueError` for another shape or type."""
    _check(image, image.shape)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    write_file(uri, buffer.getvalue(), finish)


def write_file(uri: str, data: bytes, finish: Finish | None = None) -> None:
    """Write the bytes of a media file, changed by `finish`."""
    if finish is None:
        storage.write_bytes(uri, data)
        return
    with _encoded(uri, finish) as path:
        path.write_bytes(data)


@contextmanager
def _encoded(uri: str, finish: Finish | None = None) -> Iterator[Path]:
    """Yield a path of the URI's suffix, whose file is then changed by `finish` and stored under the URI.

    It is on disk, not in memory: FFmpeg and C2PA read the file that they wrote.
    """
    with tempfile.TemporaryDirectory(prefix="worldloom-") as folder:
        path = Path(folder) / f"media.{uri.lower().rpartition('.')[2]}"
        yield path
        if finish is not None:
            finish(path)
        with path.open("rb") as encoded, storage.atomic_output(uri) as file:
            shutil.copyfileobj(encoded, file, 1 << 20)


def _encode_animation(frames: Iterable[Pixels], fps: float, suffix: str) -> bytes:
    """Return the bytes of a gif or webp. Each frame ends at the possible time nearest to its own: no errors add up."""
    if suffix == "gif" and fps > MAX_GIF_FPS:
        raise ValueError(f"{fps:g} fps: a gif has at most {MAX_GIF_FPS:g}; take mp4 or webp")
    _, images = _first_and_all(frames, fps)
    pictures = [Image.fromarray(image) for image in images]
    unit_ms = 10 if suffix == "gif" else 1
    ends_ms = [round(1000 * index / fps / unit_ms) * unit_ms for index in range(len(pictures) + 1)]
    durations_ms = [end - start for start, end in itertools.pairwise(ends_ms)]
    options: dict[str, Any] = {} if suffix == "gif" else {"quality": 90}
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, suffix, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0, **options
    )
    return buffer.getvalue()


def _first_and_all(frames: Iterable[Pixels], fps: float) -> tuple[Pixels, Iterator[Pixels]]:
    """Return the first frame, and an iterator of all frames that checks each. Raises `ValueError` as `write_mp4`."""
    if not fps > 0:
        raise ValueError(f"{fps:g} fps: the frame rate must be positive")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no frames to write; a video needs at least one")
    _check(first, first.shape)

    def checked() -> Iterator[Pixels]:
        for image in itertools.chain([first], iterator):
            _check(image, first.shape)
            yield image

    return first, checked()


def _encode_mp4(path: Path, frames: Iterable[Pixels], fps: float, crf: int, preset: str) -> None:
    first, images = _first_and_all(frames, fps)
    rate = Fraction(fps).limit_denominator(1001)
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height}: both sides of an mp4 must be even")
    codec = _codec()
    # Without cpu-independent, x264's macroblock tree gives other bytes in each run: 14 runs gave 14 different files.
    x264 = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
    options = x264 if codec == "libx264" else {"qscale": str(1 + crf // 6)}
    reformatter = VideoReformatter()
    with av.open(str(path), "w", options={"movflags": "faststart", "fflags": "bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / rate
        context.thread_count = 1
        context.color_range, context.colorspace = int(ColorRange.MPEG), _BT709
        context.color_primaries, context.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
        for index, image in enumerate(images):
            container.mux(stream.encode(_frame(reformatter, image, index, rate)))
        container.mux(stream.encode(None))


def _frame(reformatter: VideoReformatter, image: Pixels, index: int, rate: Fraction) -> VideoFrame:
    frame = reformatter.reformat(
        VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24"),
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def _codec() -> str:
    try:
        av.Codec("libx264", "w")
    except UnknownCodecError:
        return "mpeg4"
    return "libx264"


def _check(image: Pixels, shape: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != shape:
        raise ValueError(
            f"a frame is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3] as the first one, {list(shape)}"
        )
