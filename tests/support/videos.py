"""Videos for tests, written with PyAV: exact timestamps, any codec, and frames that carry their number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cluster.arrays import Pixels

LOSSLESS = {"crf": "0", "preset": "ultrafast"}
B_FRAMES = {"crf": "10", "preset": "medium", "bf": "3", "g": "12"}
"""Options of x264 for a lossless video, and for one with B-frames."""

NUMBER_BITS = 8
"""Bits of the number that a frame of `numbered` carries."""


def numbered(n: int, width: int = 128, height: int = 64) -> Pixels:
    """Draw n frames `[n, height, width, 3]` that carry their number.

    Frame k shows k in binary as eight black or white columns, over a grey that changes with k.
    """
    frames = np.empty((n, height, width, 3), np.uint8)
    for k in range(n):
        frames[k] = 90 + (k * 7) % 60
        for bit in range(NUMBER_BITS):
            columns = slice(bit * width // NUMBER_BITS, (bit + 1) * width // NUMBER_BITS)
            frames[k, height // 4 : height * 3 // 4, columns] = 235 if k >> bit & 1 else 20
    return frames


def number_of(frame: Pixels) -> int:
    """Return the number that a frame of `numbered` carries, at any size."""
    height, width = frame.shape[:2]
    lines = frame[height * 3 // 8 : height * 5 // 8].mean(axis=(0, 2))
    columns = lines.reshape(NUMBER_BITS, width // NUMBER_BITS).mean(axis=1)
    return sum(1 << bit for bit in range(NUMBER_BITS) if columns[bit] > 127)


def sliding(n: int, step: float, width: int = 256, height: int = 144, seed: int = 0) -> Pixels:
    """Draw n frames `[n, height, width, 3]` of a smooth random texture that moves right by `step` pixels per frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [(*rng.uniform(0.05, 0.3, 2) * rng.choice([-1, 1], 2), rng.uniform(0, 6.28)) for _ in range(8)]
    scale = 256 / max(width, height)
    fx, fy, phase = np.array(waves).T[:, :, None]
    # sin(a - b) by the sines and cosines of a, which is the pixel's, and b, which is the frame's.
    pixel = scale * (fx * x.ravel() + fy * y.ravel()) + phase
    frame = scale * fx.T * (step * np.arange(n))[:, None]
    values = 128 + 13 * (np.cos(frame) @ np.sin(pixel) - np.sin(frame) @ np.cos(pixel))
    grey = np.clip(values, 0, 255).astype(np.uint8).reshape(n, height, width)
    return np.repeat(grey[..., None], 3, axis=-1)


@contextlib.contextmanager
def same_scheduling() -> Iterator[None]:
    """Restore the scheduling policy of this thread afterwards.

    SVT-AV1 gives the thread that opens it real-time priority, if it is root's, and never takes it back. Processes that
    the thread starts later would then starve the machine.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def encode(
    path: Path,
    frames: Sequence[Pixels] | Pixels,
    *,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    color_range: int | None = None,
    colorspace: int | None = None,
    tag: bool = True,
    rotation_deg: int = 0,
    matrix: tuple[int, int, int, int] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write RGB frames to a video file, at the PTS `pts` or one per unit of the time base, and return its path.

    `color_range` and `colorspace` convert the frames, and are written to the file if `tag` is true. `matrix` is the
    (a, b, c, d) of a display matrix: pixel (x, y) is shown at (a x + c y, b x + d y).
    """
    with same_scheduling(), av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=round(1 / time_base), options=options or {})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation_deg:
            stream.set_display_rotation(rotation_deg)
        if matrix is not None:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if tag and color_range is not None:
            stream.codec_context.color_range = color_range
        if tag and colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for k, image in enumerate(frames):
            rgb = VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            frame = rgb.reformat(format=pixel_format, dst_color_range=color_range, dst_colorspace=colorspace)
            frame.pts, frame.time_base = (pts[k] if pts is not None else k), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_hole(path: Path, source: Path) -> Path:
    """Write a copy of an MP4 file in which a twentieth of the bytes, after a third of the file, are zero."""
    data = bytearray(source.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + len(data) // 20] = bytes(len(data) // 20)
    path.write_bytes(data)
    return path
