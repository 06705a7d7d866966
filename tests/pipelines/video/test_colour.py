"""Colour of decoded frames: pixel formats, ranges and matrices, against values converted by the standards' formulas."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cluster.arrays import Pixels
from pipelines.video.decode import probe, read_frames
from pipelines.video.spans import FrameGrid, read_span

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Kr and Kb of BT.709, BT.601 and BT.2020 with non-constant luminance, by the number of the matrix in ITU-T H.273."""

BLOCK = 16


def colours() -> Pixels:
    """Draw an image `[64, 96, 3]` of squares of `BLOCK` pixels, each of one colour."""
    values = np.random.default_rng(5).integers(0, 256, (4, 6, 3))
    return np.kron(values, np.ones((BLOCK, BLOCK, 1))).astype(np.uint8)


def planes(rgb: Pixels, matrix: int, full: bool, bits: int) -> list[np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return the code values of Y, Cb and Cr (ITU-T H.273, 8.3), at full resolution."""
    red, green, blue = np.moveaxis(rgb / 255.0, -1, 0)
    kr, kb = WEIGHTS[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    scale = 2 ** (bits - 8)
    black, luma_range, chroma_range = (0, 2**bits - 1, 2**bits - 1) if full else (16 * scale, 219 * scale, 224 * scale)
    return [
        np.rint(black + luma_range * luma).astype(np.int64),
        *(np.rint(128 * scale + chroma_range * value).clip(0, 2**bits - 1).astype(np.int64) for value in chroma),
    ]


def write(path: Path, pixel_format: str, matrix: int, full: bool) -> None:
    """Write three frames of `colours`, lossless and with tags; no scaler converts them."""
    rgb = colours()
    frame = VideoFrame(rgb.shape[1], rgb.shape[0], pixel_format)
    bits = frame.format.components[0].bits
    for plane, values in zip(frame.planes, planes(rgb, matrix, full, bits), strict=True):
        values = values[:: rgb.shape[0] // plane.height, :: rgb.shape[1] // plane.width]
        item = np.uint8 if bits == 8 else np.uint16
        lines = np.zeros((plane.height, plane.line_size // np.dtype(item).itemsize), item)
        lines[:, : plane.width] = values
        plane.update(lines.tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], pixel_format
        stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for k in range(3):
            frame.pts, frame.time_base = k, Fraction(1, 10)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p12le"],
)
def test_frames_have_the_colours_of_the_standard(tmp_path: Path, pixel_format: str, matrix: int, full: bool) -> None:
    path = str(tmp_path / "a.mkv")
    write(Path(path), pixel_format, matrix, full)
    info = probe(path)
    assert (info.pixel_format, info.color_range) == (pixel_format, "full" if full else "limited")
    span = read_span(path, 0, 300, FrameGrid(fps=10, frames=3, width=96, height=64))
    middles = slice(BLOCK // 2, None, BLOCK)
    expected = colours()[middles, middles].astype(int)
    for frame in (*(frame for _, frame in read_frames(path)), *span.frames):
        assert np.abs(frame[middles, middles] - expected).max() <= 3
