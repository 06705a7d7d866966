"""How a picture was cut out of its source: the model is told, so that it does not take pictures with heads cut off for how pictures are."""

from __future__ import annotations

import math
from typing import NamedTuple


class Framing(NamedTuple):
    """What was cut away, and of what (Podell et al. 2023, section 2.2, "micro-conditioning")."""

    left: float
    """Share of the source's width that was cut away at the left of what is shown, in [0, 1)."""
    top: float
    """Share of its height that was cut away at the top."""
    source_width: int
    source_height: int
    """The source's, in pixels."""

    @property
    def source_side(self) -> float:
        """Side of the square that has the source's area, in pixels."""
        return math.sqrt(self.source_width * self.source_height)


def cut_out(box: tuple[int, int, int, int], source_width: int, source_height: int, mirrored: bool = False) -> Framing:
    """The framing of a box (x0, y0, x1, y1) of the source, ends exclusive; `mirrored` when it was turned left to right afterwards.

    Raises `ValueError` for a box that is not inside.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= source_width and 0 <= y0 < y1 <= source_height):
        raise ValueError(f"crop box {list(box)} is not inside its source of {source_width}x{source_height} pixels")
    return Framing(
        (source_width - x1 if mirrored else x0) / source_width, y0 / source_height, source_width, source_height
    )


def uncut(width: int, height: int, source_side: float) -> Framing:
    """The framing of a picture of that size with nothing cut away, of a source of that area and no smaller than the picture."""
    scale = max(1.0, source_side / math.sqrt(width * height))
    return Framing(0.0, 0.0, round(width * scale), round(height * scale))
