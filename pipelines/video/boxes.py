"""Boxes inside frames: in whole pixels, and in shares of the frame's sides, which hold at any size of the frame."""

from __future__ import annotations

import math

from pipelines.video.orientation import Orientation
from pipelines.video.scale import Box

FractionalBox = tuple[float, float, float, float]
"""(x0, y0, x1, y1) as shares of an image's width and height."""

WHOLE_FRAME: FractionalBox = (0.0, 0.0, 1.0, 1.0)


def box_shares(box: Box, width: int, height: int) -> FractionalBox:
    """Return a box in pixels of a frame of `width` x `height` as shares of the frame's sides."""
    x0, y0, x1, y1 = box
    return x0 / width, y0 / height, x1 / width, y1 / height


def inner_pixels(box: FractionalBox, width: int, height: int) -> Box:
    """Return the pixels of an image of `width` x `height` that lie wholly inside a box, at least one."""
    x0, x1 = _inner_range(box[0], box[2], width)
    y0, y1 = _inner_range(box[1], box[3], height)
    return x0, y0, x1, y1


def coded_box(box: FractionalBox, orientation: Orientation) -> FractionalBox:
    """Return a box of the upright frame as a box of the frame as decoded."""
    x0, y0, x1, y1 = box
    if orientation.mirrored:
        x0, x1 = 1 - x1, 1 - x0
    for _ in range(orientation.quarter_turns):
        x0, y0, x1, y1 = 1 - y1, x0, 1 - y0, x1
    return x0, y0, x1, y1


def _inner_range(start: float, end: float, size: int) -> tuple[int, int]:
    # A share that was divided and multiplied again may miss a whole number by a rounding error.
    first = math.ceil(start * size - 1e-6)
    last = math.floor(end * size + 1e-6)
    if first < last:
        return first, last
    middle = min(size - 1, int((start + end) / 2 * size))
    return middle, middle + 1
