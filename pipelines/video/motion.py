"""How much a picture moves: block matching on small luma pictures, in numpy.

Motion is the mean, over blocks of the picture and pairs of frames about 0.1 s apart, of the length of each block's
displacement, in long sides of the picture per second: 0 for a frozen shot, 0.1 for a pan that takes ten seconds to cross
the picture. Lengths are averaged, never signed vectors, which cancel out when a camera shakes or zooms.

Shape legend: H height, W width of the matching picture, I x J blocks, D displacements tried along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.video.luma import Floats, shrink

LONG_SIDE = 64
BLOCK = 8
"""Pictures are matched at 64 pixels on the long side in blocks of 8 x 8: about 32 blocks, an eighth of the picture wide."""

REACH = 6
"""Displacements up to 6 of 64 pixels are found, so speeds saturate near 1.1 long sides per second: past that a picture is blurred."""

PAIR_S = Fraction(8, 100)
"""Frames of a pair are at least this far apart, so that 12, 24, 25, 30 and 60 fps all use pairs 0.08 to 0.1 s apart and a
frame rate does not change what is measured."""

NOISE = 1.0
"""Mean difference of a block, in levels of 255, that counts as none. Compression noise, averaged to this size, stays below."""

GAIN = 0.2
"""A displacement must explain this share of the difference, or the block counts as changed but not moved (flicker, fades)."""


@dataclass(frozen=True)
class Move:
    """Motion between two frames: mean block displacement in long sides per second."""

    start_pts: int
    end_pts: int
    speed: float


class MotionMeter:
    """Fed with every frame; yields the motion of pairs of frames, and whether a frame is frozen."""

    def __init__(self, height: int, width: int, time_base: Fraction) -> None:
        long_side = max(height, width)
        self._height, self._width = (max(BLOCK, round(LONG_SIDE * side / long_side / BLOCK) * BLOCK) for side in (height, width))
        # One pixel of the matching picture, in long sides.
        self._pixel_y, self._pixel_x = height / self._height / long_side, width / self._width / long_side
        self._time_base = time_base
        self._last_HW: Floats | None = None
        self._reference: tuple[int, Floats] | None = None

    def push(self, pts: int, luma_HW: Floats) -> tuple[bool, Move | None]:
        """Take a frame, in levels of 0 to 255: whether it shows the same as the one before, and the motion of a pair it completes."""
        now_HW = shrink(luma_HW, self._height, self._width)
        frozen = self._last_HW is not None and bool(_blocks(np.abs(now_HW - self._last_HW)).max() <= NOISE)
        self._last_HW = now_HW
        if self._reference is None:
            self._reference = (pts, now_HW)
            return frozen, None
        start_pts, before_HW = self._reference
        elapsed_s = (pts - start_pts) * self._time_base
        if elapsed_s < PAIR_S:
            return frozen, None
        self._reference = (pts, now_HW)
        dy_IJ, dx_IJ = displacements(before_HW, now_HW)
        length = np.hypot(dy_IJ * self._pixel_y, dx_IJ * self._pixel_x).mean()
        return frozen, Move(start_pts, pts, float(length) / float(elapsed_s))


def displacements(before_HW: Floats, after_HW: Floats) -> tuple[Floats, Floats]:
    """(dy, dx) `[I, J]` in pixels by which each block of `after` has moved since `before`, to a fraction of a pixel.

    Exhaustive search of the least mean absolute difference, refined by a parabola through its neighbours. A change of
    overall brightness is taken out first.
    """
    level = after_HW.mean() - before_HW.mean()
    padded = np.pad(before_HW + level, REACH, mode="edge")
    shifted_DDHW = sliding_window_view(padded, before_HW.shape)
    cost_DDIJ = _blocks(np.abs(shifted_DDHW - after_HW))
    side, shape = 2 * REACH + 1, cost_DDIJ.shape[2:]
    best = cost_DDIJ.reshape(side * side, *shape).argmin(axis=0)
    y, x = best // side, best % side
    i, j = np.indices(shape)
    still = cost_DDIJ[REACH, REACH]
    least = cost_DDIJ[y, x, i, j]
    moved = (still > NOISE) & ((least < (1 - GAIN) * still) | ((y == REACH) & (x == REACH)))
    # The window at index 0 shows what has moved down and to the right by REACH.
    dy = REACH - y - _vertex(cost_DDIJ[np.maximum(y - 1, 0), x, i, j], least, cost_DDIJ[np.minimum(y + 1, side - 1), x, i, j])
    dx = REACH - x - _vertex(cost_DDIJ[y, np.maximum(x - 1, 0), i, j], least, cost_DDIJ[y, np.minimum(x + 1, side - 1), i, j])
    return np.where(moved, dy, 0).astype(np.float32), np.where(moved, dx, 0).astype(np.float32)


def _vertex(left: Floats, middle: Floats, right: Floats) -> Floats:
    """Position of the least value of the parabola through three costs, in [-0.5, 0.5]; 0 where they are flat."""
    curvature = left - 2 * middle + right
    safe = np.where(curvature > 1.0, curvature, np.inf)
    offset: Floats = np.clip((left - right) / (2 * safe), -0.5, 0.5)
    return offset


def _blocks(values: Floats) -> Floats:
    """Mean over the blocks of the last two axes."""
    height, width = values.shape[-2:]
    split = values.reshape(*values.shape[:-2], height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    means: Floats = split.mean(axis=(-3, -1))
    return means
