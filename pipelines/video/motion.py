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

from pipelines.video.luma import Floats

BLOCK = 8
"""Pictures of about 64 x 36 pixels are matched in blocks of 8 x 8: about 32 blocks, an eighth of the picture wide."""

FROZEN = 0.5
"""A frame is frozen when no block differs by more than this, in levels of 255: repeated frames in compressed video differ by
up to 0.4 there, a person who sits still by more."""

REACH = 6
"""Displacements up to 6 of about 64 pixels are found, so speeds saturate near 1.1 long sides per second: past that a picture is blurred."""

PAIR_S = Fraction(8, 100)
"""Frames of a pair are at least this far apart, so that 12, 24, 25, 30 and 60 fps all use pairs 0.08 to 0.1 s apart and a
frame rate does not change what is measured."""

NOISE = 1.0
"""Mean difference of a block, in levels of 255, that counts as none. Compression noise, averaged to this size, stays below."""

GAIN = 0.3
GAIN_LEVELS = 1.0
"""A displacement of more than a pixel must explain 0.3 of a block's difference and a level of it. Otherwise the block has
changed but not moved (flicker, fades). With 0.3, motion agrees best with dense optical flow on real footage."""

DISTINCT = 2.0
"""The best match must be this many times better than the average one, or the block is flat, where noise alone decides."""


@dataclass(frozen=True)
class Move:
    """Motion between two frames: mean block displacement in long sides per second."""

    start_pts: int
    end_pts: int
    speed: float


class MotionMeter:
    """Fed with every frame; yields the motion of pairs of frames, and whether a frame is frozen."""

    def __init__(self, height: int, width: int, time_base: Fraction) -> None:
        """`height` and `width` are those of the pictures that will be pushed, at least 8 pixels each."""
        self._pixel = 1 / max(height, width)
        self._time_base = time_base
        self._last_HW: Floats | None = None
        self._reference: tuple[int, Floats] | None = None

    def push(self, pts: int, luma_HW: Floats) -> tuple[bool, Move | None]:
        """Take a frame, in levels of 0 to 255: whether it shows the same as the one before, and the motion of a pair it completes."""
        frozen = self._last_HW is not None and bool(_blocks(np.abs(luma_HW - self._last_HW)).max() <= FROZEN)
        self._last_HW = luma_HW
        if self._reference is None:
            self._reference = (pts, luma_HW)
            return frozen, None
        start_pts, before_HW = self._reference
        elapsed_s = (pts - start_pts) * self._time_base
        if elapsed_s < PAIR_S:
            return frozen, None
        self._reference = (pts, luma_HW)
        dy_IJ, dx_IJ = displacements(before_HW, luma_HW)
        length = np.hypot(dy_IJ, dx_IJ).mean() * self._pixel
        return frozen, Move(start_pts, pts, float(length) / float(elapsed_s))


def displacements(before_HW: Floats, after_HW: Floats) -> tuple[Floats, Floats]:
    """(dy, dx) `[I, J]` in pixels by which each block of `after` has moved since `before`.

    Exhaustive search of the least mean absolute difference, refined to a fraction of a pixel by its neighbours. A change of
    overall brightness is taken out first.
    """
    before_HW = before_HW + (after_HW.mean() - before_HW.mean())
    if _blocks(np.abs(after_HW - before_HW)).max() <= NOISE:
        still_IJ = np.zeros((after_HW.shape[0] // BLOCK, after_HW.shape[1] // BLOCK), np.float32)
        return still_IJ, still_IJ
    padded = np.pad(before_HW, REACH, mode="edge")
    shifted_DDHW = sliding_window_view(padded, before_HW.shape)
    cost_DDIJ = _blocks(np.abs(shifted_DDHW - after_HW))
    side, shape = 2 * REACH + 1, cost_DDIJ.shape[2:]
    best = cost_DDIJ.reshape(side * side, *shape).argmin(axis=0)
    y, x = best // side, best % side
    i, j = np.indices(shape)
    still = cost_DDIJ[REACH, REACH]
    least = cost_DDIJ[y, x, i, j]
    near = (np.abs(y - REACH) <= 1) & (np.abs(x - REACH) <= 1)
    explains = near | (least < np.minimum((1 - GAIN) * still, still - GAIN_LEVELS))
    moved = (still > NOISE) & explains & (DISTINCT * least < cost_DDIJ.mean(axis=(0, 1)))
    last = side - 1
    part_y = _vertex(cost_DDIJ[np.maximum(y - 1, 0), x, i, j], least, cost_DDIJ[np.minimum(y + 1, last), x, i, j])
    part_x = _vertex(cost_DDIJ[y, np.maximum(x - 1, 0), i, j], least, cost_DDIJ[y, np.minimum(x + 1, last), i, j])
    # The window at index 0 shows what has moved down and to the right by REACH; at the ends one neighbour is missing.
    dy = REACH - y - np.where((y > 0) & (y < last), part_y, 0)
    dx = REACH - x - np.where((x > 0) & (x < last), part_x, 0)
    return np.where(moved, dy, 0).astype(np.float32), np.where(moved, dx, 0).astype(np.float32)


def _vertex(left: Floats, middle: Floats, right: Floats) -> Floats:
    """Position of the least cost between three, in [-0.5, 0.5]; 0 where they are flat.

    Two lines of opposite slope are laid through them, for absolute differences rise linearly from their least; the usual
    parabola would find two thirds of small displacements (Shimizu and Okutomi 2001).
    """
    slope = np.maximum(left, right) - middle
    offset: Floats = np.clip((left - right) / (2 * np.where(slope > 0.5, slope, np.inf)), -0.5, 0.5)
    return offset


def _blocks(values: Floats) -> Floats:
    """Mean over the whole blocks of the last two axes, those around the centre."""
    height, width = values.shape[-2:]
    rows, columns = height // BLOCK, width // BLOCK
    y, x = height % BLOCK // 2, width % BLOCK // 2
    inner = values[..., y : y + rows * BLOCK, x : x + columns * BLOCK]
    # Rows first: that sum runs along memory and leaves an eighth for the slow one.
    bands = inner.reshape(*inner.shape[:-2], rows, BLOCK, columns * BLOCK).sum(axis=-2)
    means: Floats = bands.reshape(*bands.shape[:-1], columns, BLOCK).sum(axis=-1) / BLOCK**2
    return means
