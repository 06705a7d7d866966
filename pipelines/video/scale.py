"""Scale and crop frames: from a decoded frame straight to a small upright array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from cluster.arrays import UInt8Array
from pipelines.video.orientation import Orientation

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, with exclusive ends."""

HD_LINES = 720
"""Untagged video with at least this many lines is taken for BT.709, and with fewer for BT.601, as players do."""

_KNOWN_COLORSPACES = frozenset({0, 1, 4, 5, 6, 7, 9})
"""Matrix coefficients of ITU-T H.273 that swscale converts: RGB, BT.709, FCC, BT.601 twice, SMPTE 240M, BT.2020. The
others (YCgCo, ICtCp and reserved numbers) are treated as untagged: they are rare, and a wrong tint costs less than the
file."""

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
"""Scaler flags for accurate rounding, chroma interpolated at full width, and the same bits on every CPU."""


def rescale(
    reformatter: VideoReformatter,
    frame: VideoFrame,
    width: int,
    height: int,
    pixel_format: str,
    colorspace: Colorspace | None,
) -> VideoFrame:
    """Return a frame at another size, in another format and in full range, without a full-size copy in between.

    Shrinking averages areas, which leaves no aliases; enlarging is bicubic. `colorspace` is the matrix of an untagged
    frame.
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


def assumed_colorspace(frame: VideoFrame) -> Colorspace | None:
    """Return the matrix to assume for a frame without a tag, or with one unknown to swscale.

    None for a frame with a known tag.
    """
    if int(frame.colorspace) in _KNOWN_COLORSPACES:
        return None
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def packed_array(frame: VideoFrame) -> UInt8Array:
    """Return the array of a frame in a packed 8-bit format: `[H, W, 3]` for rgb24 and bgr24, `[H, W]` for gray8."""
    return frame.to_ndarray().astype(np.uint8, copy=False)


class YuvPlanes(NamedTuple):
    """Planes of an 8-bit frame in yuv420p: luma `[H, W]`, and Cb and Cr `[H / 2, W / 2]`."""

    luma_HW: UInt8Array
    cb_hw: UInt8Array
    cr_hw: UInt8Array


def upright_planes(frame: VideoFrame, orientation: Orientation) -> YuvPlanes:
    """Return the planes of a yuv420p frame, upright."""
    return YuvPlanes(*(orientation.upright(_plane(frame, i)) for i in range(3)))


def native_luma(frame: VideoFrame) -> UInt8Array | NDArray[np.uint16] | None:
    """Return luma `[H, W]` as decoded, without a copy.

    It is uint8, or uint16 where it has more than 8 bits (in the low bits). None for formats other than YUV.
    """
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


def centre_crop(source_width: int, source_height: int, width: int, height: int) -> Box:
    """Return the largest box around the centre with the aspect of `width` x `height`, in whole source pixels."""
    crop_width = min(source_width, max(1, round(source_height * width / height)))
    crop_height = min(source_height, max(1, round(source_width * height / width)))
    x0, y0 = (source_width - crop_width) // 2, (source_height - crop_height) // 2
    return x0, y0, x0 + crop_width, y0 + crop_height


def scaled_size(source_width: int, source_height: int, box: Box, width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) to which the whole image is scaled so that the box becomes `width` x `height`.

    Raises `ValueError` for a box that is empty or not inside the image.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= source_width and 0 <= y0 < y1 <= source_height):
        raise ValueError(f"crop {box} is not inside the image of {source_width}x{source_height}")
    return max(width, round(source_width * width / (x1 - x0))), max(height, round(source_height * height / (y1 - y0)))


def crop_scaled(
    image: UInt8Array, box: Box, source_width: int, source_height: int, width: int, height: int
) -> UInt8Array:
    """Cut the box (in source pixels) out of the whole image, which was scaled to `scaled_size`."""
    x = min(round(box[0] * image.shape[1] / source_width), image.shape[1] - width)
    y = min(round(box[1] * image.shape[0] / source_height), image.shape[0] - height)
    return image[y : y + height, x : x + width]


def size_with_area(height: int, width: int, area: int) -> tuple[int, int]:
    """Return the (width, height) of about an area and of the same aspect, in multiples of 8 and at least 32."""
    scale = (area / (height * width)) ** 0.5 / 8
    return max(4, round(width * scale)) * 8, max(4, round(height * scale)) * 8


def _plane(frame: VideoFrame, index: int) -> UInt8Array:
    buffer = frame.planes[index]
    lines: UInt8Array = np.frombuffer(memoryview(buffer), np.uint8).reshape(buffer.height, buffer.line_size)
    return lines[:, : buffer.width]
