"""Scale, turn and crop pictures: from a decoded frame straight to a small upright array."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, exclusive ends."""

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
"""Rounded properly, chroma interpolated at full width, and the same bits on every CPU."""


def rescale(
    reformatter: VideoReformatter,
    frame: VideoFrame,
    width: int,
    height: int,
    pixel_format: str,
    colorspace: Colorspace | None,
) -> VideoFrame:
    """A frame at another size, in another format and in full range, without a full-size copy in between.

    Averages areas to shrink, which leaves no aliases; bicubic to enlarge. `colorspace` is the matrix of an untagged frame.
    """
    shrinks = width <= frame.width and height <= frame.height
    return reformatter.reformat(
        frame,
        width,
        height,
        pixel_format,
        src_colorspace=colorspace,
        dst_colorspace=colorspace,
        dst_color_range=ColorRange.JPEG,
        interpolation=(Interpolation.AREA if shrinks else Interpolation.BICUBIC) | _EXACT,
        threads=1,
    )


def pixels(frame: VideoFrame) -> Pixels:
    """The array of a frame in a format of 8 bits: `[H, W, 3]` for rgb24 and bgr24, `[H, W]` for gray8."""
    return frame.to_ndarray().astype(np.uint8, copy=False)


def plane(frame: VideoFrame, index: int) -> Pixels:
    """One plane of a planar frame of 8 bits without subsampling, `[H, W]`."""
    buffer = frame.planes[index]
    lines: Pixels = np.frombuffer(memoryview(buffer), np.uint8).reshape(buffer.height, buffer.line_size)
    return lines[:, : buffer.width]


def native_luma(frame: VideoFrame) -> Pixels | NDArray[np.uint16] | None:
    """Luma as it was decoded, `[H, W]` without a copy: uint8, or uint16 for more bits (at the low end). None for other formats than YUV."""
    if (
        frame.format.is_rgb
        or not frame.format.is_planar
        or frame.format.is_big_endian
        or not frame.format.name.startswith(("yuv", "gray", "nv12"))
    ):
        return None
    buffer = frame.planes[0]
    data = memoryview(buffer)
    if frame.format.components[0].bits > 8:
        return np.frombuffer(data, np.uint16).reshape(buffer.height, -1)[:, : buffer.width]
    return np.frombuffer(data, np.uint8).reshape(buffer.height, -1)[:, : buffer.width]


def to_upright(picture: Pixels, rotation_deg: int) -> Pixels:
    """Turn a picture counter-clockwise by the nearest multiple of 90 degrees."""
    turns = round(rotation_deg / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def centre_crop(source_width: int, source_height: int, width: int, height: int) -> Box:
    """The largest box around the centre with the aspect of `width` x `height`, in whole source pixels."""
    crop_width = min(source_width, max(1, round(source_height * width / height)))
    crop_height = min(source_height, max(1, round(source_width * height / width)))
    x0, y0 = (source_width - crop_width) // 2, (source_height - crop_height) // 2
    return x0, y0, x0 + crop_width, y0 + crop_height


def scaled_size(source_width: int, source_height: int, box: Box, width: int, height: int) -> tuple[int, int]:
    """(width, height) to which the whole picture is scaled so that the box becomes `width` x `height`.

    Raises `ValueError` for a box that is empty or not inside the picture.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= source_width and 0 <= y0 < y1 <= source_height):
        raise ValueError(f"crop {box} is not inside the picture of {source_width}x{source_height}")
    return max(width, round(source_width * width / (x1 - x0))), max(height, round(source_height * height / (y1 - y0)))


def crop_scaled(picture: Pixels, box: Box, source_width: int, source_height: int, width: int, height: int) -> Pixels:
    """Cut the box (in source pixels) out of the whole picture scaled by `scaled_size`."""
    x = min(round(box[0] * picture.shape[1] / source_width), picture.shape[1] - width)
    y = min(round(box[1] * picture.shape[0] / source_height), picture.shape[0] - height)
    return picture[y : y + height, x : x + width]
