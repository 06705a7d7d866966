"""Noise and blockiness of a frame, measured on tiles of its luma as decoded.

Scaling would remove both. What is kept of each tile are a few sums, so that tiles outside the image, in bars around it,
can be left out later.

Shape legend: Y, X the size of the frame as decoded; n tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Float64Array, UInt8Array
from pipelines.video.boxes import FractionalBox

NativeArray = UInt8Array | NDArray[np.uint16]

TILE_PX = 32
MAX_TILES = 8
"""Noise and blockiness are measured on up to 8 x 8 tiles of 32 pixels, spread evenly: 65,000 pixels, all of an image of
256 x 256 and a hundredth of 2160p."""

FLAT_TILE_SHARE = 0.25
"""Noise is the median over the quarter of the tiles with the least structure; elsewhere texture passes for it."""

MAX_GRID_STEP = 16
"""Steps between pixels count up to this many 8-bit values. Block edges are lower, and a few high edges of objects that
happen to lie on the grid (letterbox bars) must not pass for them."""

GRID_PX = 8
"""Side of the blocks of MPEG-2, MPEG-4 and H.264's larger transforms, of JPEG, and of the deblocking grid of HEVC."""

_SECOND_DIFFERENCE = np.array([1, -2, 1], np.float32)
"""Immerkaer's filter is this one in both directions."""

_STEPS = np.arange(TILE_PX)
_ON_GRID = (_STEPS % GRID_PX == GRID_PX - 1) & (_STEPS < TILE_PX - 1)
_OFF_GRID = (_STEPS % GRID_PX >= 1) & (_STEPS % GRID_PX <= 5)
"""Which of the 32 steps of a line, each to the next pixel, cross an edge of blocks, and which lie inside a block. The
last step leaves the tile."""


def _step_masks(chosen: NDArray[np.bool_]) -> tuple[UInt8Array, UInt8Array]:
    """Return masks `[32 * 32]` of the chosen steps of a tile: those across its columns, and those down its rows."""
    columns = np.tile(chosen.astype(np.uint8), (TILE_PX, 1))
    return columns.ravel(), columns.T.ravel()


_ON_GRID_MASKS, _OFF_GRID_MASKS = _step_masks(_ON_GRID), _step_masks(_OFF_GRID)


@dataclass(frozen=True, eq=False)
class TileSums:
    """Sums over each of n tiles, from which the noise and the blockiness of any of them together follow.

    `noise_n` is the sum of absolute responses to Immerkaer's filter, and `variance_n` the variance of the tile's 4 x 4
    block means. `on_grid_n` and `off_grid_n` are the sums of steps between pixels across block edges and inside blocks.
    All are in 8-bit values. `boxes_n4` are the tiles' boxes, as shares of the frame's sides.
    """

    noise_n: Float64Array
    variance_n: Float64Array
    on_grid_n: Float64Array
    off_grid_n: Float64Array
    boxes_n4: Float64Array

    def inside(self, box: FractionalBox) -> TileSums:
        """Return the tiles that lie wholly inside a box, or all if none does."""
        x0, y0, x1, y1 = (self.boxes_n4 + np.array([1e-6, 1e-6, -1e-6, -1e-6])).T
        chosen = np.flatnonzero((x0 >= box[0]) & (y0 >= box[1]) & (x1 <= box[2]) & (y1 <= box[3]))
        if not len(chosen):
            return self
        return TileSums(
            self.noise_n[chosen],
            self.variance_n[chosen],
            self.on_grid_n[chosen],
            self.off_grid_n[chosen],
            self.boxes_n4[chosen],
        )

    def noise_sigma(self) -> float:
        """Return the standard deviation of noise in 8-bit values, from the flattest tiles.

        It follows Immerkaer, 'Fast noise variance estimation' (1996): the mean absolute response to the difference of
        two Laplacians, which is 0 on edges and slopes. The flattest tiles have the least variance after averaging over
        8 x 8 pixels, which removes the noise: so tiles that happen to have less noise are not preferred. Clipped tiles,
        where noise is cut off, do not count unless all are clipped.
        """
        unclipped = np.flatnonzero(self.noise_n > 0)
        if len(unclipped) == 0:
            return 0.0
        flattest_first = unclipped[np.argsort(self.variance_n[unclipped], kind="stable")]
        n_flat = max(1, math.ceil(len(flattest_first) * FLAT_TILE_SHARE))
        mean = float(np.median(self.noise_n[flattest_first[:n_flat]])) / (TILE_PX - 2) ** 2
        return mean * math.sqrt(math.pi / 2) / 6

    def blockiness(self) -> float:
        """Return the ratio of steps between pixels across the edges of 8-pixel blocks to those inside blocks.

        1 means no blocks. It is the difference across block edges of Wang, Sheikh and Bovik, 'No-reference perceptual
        quality assessment of JPEG compressed images' (2002), over that within blocks, in both directions. Pixels next
        to an edge, which deblocking changes, are left out. Blocks of a video that was scaled after compression are off
        the grid and not seen.
        """
        lines = 2 * len(self.on_grid_n) * TILE_PX
        on_grid = float(self.on_grid_n.sum()) / (lines * int(_ON_GRID.sum()))
        off_grid = float(self.off_grid_n.sum()) / (lines * int(_OFF_GRID.sum()))
        # 0.05 on both sides, so that a flat image has 1 and not a ratio of rounding errors.
        return (on_grid + 0.05) / (off_grid + 0.05)


def measure_tiles(native_YX: NativeArray, bit_depth: int | None = None) -> TileSums | None:
    """Return the sums over up to 8 x 8 tiles of a frame, spread evenly on the 8-pixel grid.

    `bit_depth` is that of the values: by default 8 for uint8 and 10 for uint16. None for a frame smaller than a tile.
    """
    starts, boxes_n4 = _tile_grid(*native_YX.shape)
    if not starts:
        return None
    # Tiles are stacked to [32 n, 32], so that each operation is one call.
    stacked: NativeArray = np.empty((len(starts), TILE_PX, TILE_PX), native_YX.dtype)
    for tile, (y, x) in zip(stacked, starts, strict=True):
        tile[:] = native_YX[y : y + TILE_PX, x : x + TILE_PX]
    scale = 1.0 if native_YX.dtype == np.uint8 else 2.0 ** ((bit_depth or 10) - 8)
    return sum_tiles(stacked.reshape(-1, TILE_PX), boxes_n4, scale)


def sum_tiles(tiles_YX: NativeArray, boxes_n4: Float64Array, scale: float = 1.0) -> TileSums:
    """Return the sums over stacked tiles `[32 n, 32]`, which start on the grid of blocks.

    Their values are divided by `scale` to be 8-bit values.
    """
    n = len(tiles_YX) // TILE_PX
    is_8_bit = tiles_YX.dtype == np.uint8
    pixels_YX = tiles_YX if is_8_bit else tiles_YX.astype(np.float32)
    signed, sums = (cv2.CV_16S, cv2.CV_32S) if is_8_bit else (cv2.CV_32F, cv2.CV_32F)
    # Everything is computed along the whole stack; what reaches from one line or tile to the next is left out after.
    response = cv2.sepFilter2D(pixels_YX, signed, _SECOND_DIFFERENCE, _SECOND_DIFFERENCE)
    noise_nYX = (cv2.convertScaleAbs(response) if is_8_bit else np.abs(response)).reshape(n, TILE_PX, TILE_PX)
    noise_nYX[:, 0] = noise_nYX[:, -1] = noise_nYX[:, :, 0] = noise_nYX[:, :, -1] = 0
    size = TILE_PX // GRID_PX, n * TILE_PX // GRID_PX
    means_n = cv2.resize(pixels_YX, size, interpolation=cv2.INTER_AREA).reshape(n, -1)
    flat, limit = pixels_YX.ravel(), MAX_GRID_STEP * scale
    across, down = (_limited_steps(flat, distance, limit).reshape(n, -1) for distance in (1, TILE_PX))

    def summed(values: NDArray[np.generic]) -> Float64Array:
        total = cv2.reduce(values.reshape(n, -1), 1, cv2.REDUCE_SUM, dtype=sums)  # type: ignore[arg-type]
        return np.asarray(total, np.float64).ravel() / scale

    on_grid, off_grid = (summed(across * columns + down * rows) for columns, rows in (_ON_GRID_MASKS, _OFF_GRID_MASKS))
    return TileSums(summed(noise_nYX), means_n.var(axis=1) / scale**2, on_grid, off_grid, boxes_n4)


def _limited_steps(flat: NDArray[Any], distance: int, limit: float) -> NDArray[Any]:
    """Return the size of the step from each value to the one so far after it, at most `limit`."""
    found = np.zeros_like(flat)
    found[:-distance] = cv2.absdiff(flat[distance:], flat[:-distance]).ravel()
    return np.asarray(cv2.threshold(found, limit, 0, cv2.THRESH_TRUNC)[1])


@lru_cache(maxsize=16)
def _tile_grid(height: int, width: int) -> tuple[list[tuple[int, int]], Float64Array]:
    """Return the first row and column of each tile of a frame, and the tiles' boxes as shares of its sides `[n, 4]`."""
    starts = [(y, x) for y in _tile_starts(height) for x in _tile_starts(width)]
    boxes = [(x / width, y / height, (x + TILE_PX) / width, (y + TILE_PX) / height) for y, x in starts]
    return starts, np.array(boxes).reshape(-1, 4)


def _tile_starts(size: int) -> list[int]:
    n = min(MAX_TILES, size // TILE_PX)
    return [int((size - TILE_PX) * (i + 0.5) / n) // GRID_PX * GRID_PX for i in range(n)]
