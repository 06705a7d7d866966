"""The content of a clip: the box of its frames that is used, without letterbox or pillarbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.video.scale import Box, centre_crop


def crop_of(row: Mapping[str, Any]) -> Box | None:
    """Return the `crop` of a clip's row, (x0, y0, x1, y1) in pixels as displayed; None, the whole frame, if null."""
    crop = row.get("crop")
    return None if crop is None else (crop[0], crop[1], crop[2], crop[3])


def content_box(row: Mapping[str, Any]) -> Box:
    """Return the `crop` of a clip's row, the whole frame if it is null.

    Raises `ValueError` for a box that is empty or not inside the frame.
    """
    width, height = row["width"], row["height"]
    x0, y0, x1, y1 = box = crop_of(row) or (0, 0, width, height)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"crop {list(box)} is not inside the frame of {width}x{height}; run the steps scan and cut")
    return box


def crop_within(content: Box, width: int, height: int) -> Box:
    """Return the largest box around the centre of the content that has the aspect of `width` x `height`."""
    x0, y0, x1, y1 = content
    left, top, right, bottom = centre_crop(x1 - x0, y1 - y0, width, height)
    return x0 + left, y0 + top, x0 + right, y0 + bottom
