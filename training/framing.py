"""How images and videos were cropped from their sources.

The model is conditioned on it, so that it does not take cropped-off heads for the way images are composed (Podell et
al. 2023, section 2.2, "micro-conditioning").
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Framing(NamedTuple):
    """The position of a crop in its source, and the source's size."""

    left: float
    """Share of the source's width that was cropped away at the left of the shown image, in [0, 1)."""
    top: float
    """Share of the source's height that was cropped away at the top, in [0, 1)."""
    source_width: int
    """Width of the source in pixels."""
    source_height: int
    """Height of the source in pixels."""

    @property
    def source_side(self) -> float:
        """Side in pixels of the square with the source's area."""
        return math.sqrt(self.source_width * self.source_height)


def crop_framing(
    box: tuple[int, int, int, int], source_width: int, source_height: int, mirrored: bool = False
) -> Framing:
    """Return the framing of a crop box (x0, y0, x1, y1) in pixels, ends exclusive; `mirrored` if it was then flipped
    left to right.

    Raises `ValueError` if the box does not lie inside the source.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= source_width and 0 <= y0 < y1 <= source_height):
        raise ValueError(f"crop box {list(box)} is not inside its source of {source_width}x{source_height} pixels")
    return Framing(
        (source_width - x1 if mirrored else x0) / source_width, y0 / source_height, source_width, source_height
    )


def full_framing(width: int, height: int, source_side: float) -> Framing:
    """Return the framing of an uncropped image of this size, from a source with the area `source_side`² and at least
    the image's size.
    """
    scale = max(1.0, source_side / math.sqrt(width * height))
    return Framing(0.0, 0.0, round(width * scale), round(height * scale))
