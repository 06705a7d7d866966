"""A closer look at a frame: what needs more detail than the analysis picture has, taken about once a second.

Shape legend: H height, W width of the picture looked at (256 x 144 in area), lower-case letters for its chroma, half of them;
Y, X the size of the frame as decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from pipelines.video.letterbox import Borders, borders
from pipelines.video.luma import sharpness

Native = NDArray[np.uint8] | NDArray[np.uint16]

BLACK, WHITE = 2, 253
"""Levels up to which, and from which, a pixel counts as clipped: full range ends at 0 and 255, and scaling and rounding move both by 2."""

TILE = 32
TILES = 8
"""Noise and blockiness are measured on up to 8 x 8 tiles of 32 pixels, spread evenly: 65,000 pixels, all of a picture of 256 x 256 and a
hundredth of 2160p."""

FLAT_TILES = 0.25
"""Noise is the median over the quarter of the tiles with the least structure; elsewhere texture passes for it."""

EDGE = 16
"""Steps between pixels are counted up to so many levels: block edges are lower, and a few high edges of things that happen to lie
on the grid (letterbox bars) do not pass for them."""

GRID = 8
"""Side of the blocks of MPEG-2, MPEG-4 and H.264's larger transforms, of JPEG, and of the deblocking grid of HEVC."""


@dataclass(frozen=True)
class Look:
    """Statistics of one frame. Luma is full range.

    `luma` and `contrast`: mean and standard deviation in [0, 1]. `clipped_black`, `clipped_white`: share of pixels. `sharpness`:
    variance of the Laplacian. `colourfulness`: see `colourfulness`, in levels. `noise`: see `noise_sigma`, in levels of 8 bits;
    `blockiness`: see there; both None where the frame as decoded is not at hand or is smaller than a tile. `filtered`: the frame
    was decoded with the loop filter; without it, blockiness reads up to 0.8 higher and noise up to 0.1. `borders`: what bars are found by.
    """

    pts: int
    luma: float
    contrast: float
    clipped_black: float
    clipped_white: float
    sharpness: float
    colourfulness: float
    noise: float | None
    blockiness: float | None
    filtered: bool
    borders: Borders = field(compare=False)


def take_look(
    pts: int,
    luma_HW: Pixels,
    cb_hw: Pixels,
    cr_hw: Pixels,
    native_YX: Native | None,
    filtered: bool,
    bits: int | None = None,
) -> Look:
    """Measure a frame: upright full-range pictures, and luma as decoded (in its own range and orientation; any strides).

    `bits` of the values of `native_YX`: 8 for uint8 and 10 for uint16 by default.
    """
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(luma_HW))
    tiles_YX = None if native_YX is None else _tiles(native_YX)
    levels = 1.0 if native_YX is None or native_YX.dtype == np.uint8 else 2.0 ** ((bits or 10) - 8)
    return Look(
        pts,
        luma=mean / 255,
        contrast=deviation / 255,
        clipped_black=_share(luma_HW, 0, BLACK),
        clipped_white=_share(luma_HW, WHITE, 255),
        sharpness=sharpness(luma_HW),
        colourfulness=colourfulness(cb_hw, cr_hw),
        noise=None if tiles_YX is None else noise_sigma(tiles_YX) / levels,
        blockiness=None if tiles_YX is None else blockiness(tiles_YX, EDGE * levels),
        filtered=filtered,
        borders=borders(luma_HW),
    )


def colourfulness(cb_hw: Pixels, cr_hw: Pixels) -> float:
    """M3 of Hasler and Suesstrunk, 'Measuring colourfulness in natural images' (2003): 0 for grey, 15 slight, 45 quite, 109 extreme.

    sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2) with rg = R - G, yb = (R + G) / 2 - B, in levels. Both are linear in
    Cb and Cr and free of luma, so no picture in RGB is made; those of BT.601, 7% from those of BT.709. Colours that RGB would clip are not.
    """
    red_green = cv2.addWeighted(cr_hw, 2.1161, cb_hw, 0.3441, -128 * (2.1161 + 0.3441), dtype=cv2.CV_32F)
    yellow_blue = cv2.addWeighted(cr_hw, 0.3439, cb_hw, -1.9441, -128 * (0.3439 - 1.9441), dtype=cv2.CV_32F)
    mean_rg, deviation_rg = (float(value[0, 0]) for value in cv2.meanStdDev(red_green))
    mean_yb, deviation_yb = (float(value[0, 0]) for value in cv2.meanStdDev(yellow_blue))
    return math.hypot(deviation_rg, deviation_yb) + 0.3 * math.hypot(mean_rg, mean_yb)


def noise_sigma(tiles_YX: Native) -> float:
    """Standard deviation of noise, in levels: Immerkaer, 'Fast noise variance estimation' (1996), on flat tiles; `[32 n, 32]`, stacked.

    The mean absolute response to the difference of two Laplacians, which is 0 on edges and slopes. Flat is what has the least
    variance after it was averaged over 8 x 8 pixels, where noise is gone: tiles that have least noise by chance are not preferred.
    Clipped tiles, where noise is cut off, do not count unless all are.
    """
    n = len(tiles_YX) // TILE
    small = tiles_YX.dtype == np.uint8
    pixels_YX = tiles_YX if small else tiles_YX.astype(np.float32)
    response = cv2.filter2D(pixels_YX, cv2.CV_16S if small else cv2.CV_32F, _IMMERKAER)
    response = cv2.convertScaleAbs(response) if small else np.abs(response)
    # What lies next to another tile is not noise.
    response[:, 0] = response[:, -1] = response[::TILE] = response[TILE - 1 :: TILE] = 0
    sums_n = cv2.reduce(
        response.reshape(n, TILE * TILE), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S if small else cv2.CV_32F
    ).ravel()
    means_n = cv2.resize(pixels_YX, (TILE // GRID, n * TILE // GRID), interpolation=cv2.INTER_AREA).reshape(n, -1)
    unclipped = np.flatnonzero(sums_n > 0)
    if len(unclipped) == 0:
        return 0.0
    order = unclipped[np.argsort(means_n.var(axis=1)[unclipped], kind="stable")]
    mean = float(np.median(sums_n[order[: max(1, math.ceil(len(order) * FLAT_TILES))]])) / (TILE - 2) ** 2
    return mean * math.sqrt(math.pi / 2) / 6


def blockiness(tiles_YX: Native, most: float = EDGE) -> float:
    """How much larger steps between pixels are on the 8-pixel grid than inside blocks: 1 for none; `[32 n, 32]`, tiles on that grid.

    The difference across block edges of Wang, Sheikh and Bovik, 'No-reference perceptual quality assessment of JPEG compressed
    images' (2002), over that within blocks, both ways; pixels next to an edge, which deblocking changes, are left out.
    Blocks of a picture that was scaled after it was compressed are off the grid and not seen.
    """
    n = len(tiles_YX) // TILE
    small = tiles_YX.dtype == np.uint8
    pixels_YX, sums = (tiles_YX, cv2.CV_32S) if small else (tiles_YX.astype(np.float32), cv2.CV_32F)
    across = cv2.threshold(cv2.absdiff(pixels_YX[:, 1:], pixels_YX[:, :-1]), most, 0, cv2.THRESH_TRUNC)[1]
    down = cv2.threshold(cv2.absdiff(pixels_YX[1:], pixels_YX[:-1]), most, 0, cv2.THRESH_TRUNC)[1]
    columns = cv2.reduce(across, 0, cv2.REDUCE_SUM, dtype=sums).ravel()
    rows = np.append(cv2.reduce(down, 1, cv2.REDUCE_SUM, dtype=sums).ravel(), 0).reshape(n, TILE).sum(axis=0)[:-1]
    steps = (columns + rows) / (2 * n * TILE)
    # A twentieth of a level each, so that a flat picture has 1 and not chance over chance.
    return float((steps[_ON].mean() + 0.05) / (steps[_OFF].mean() + 0.05))


_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_ON = np.array([GRID * k - 1 for k in range(1, TILE // GRID)])
_OFF = np.array([i for i in range(TILE - 1) if 1 <= i % GRID <= 5])


def _share(luma_HW: Pixels, low: int, high: int) -> float:
    return int(cv2.countNonZero(cv2.inRange(luma_HW, low, high))) / luma_HW.size


def _tiles(native_YX: Native) -> Native | None:
    """Tiles of 32 x 32 pixels on the 8-pixel grid, spread evenly over the frame, stacked to `[32 n, 32]`; None for a smaller frame."""
    ys, xs = _starts(native_YX.shape[0]), _starts(native_YX.shape[1])
    if not ys or not xs:
        return None
    stacked: Native = np.empty((len(ys), len(xs), TILE, TILE), native_YX.dtype)
    for i, y in enumerate(ys):
        band = native_YX[y : y + TILE]
        for j, x in enumerate(xs):
            stacked[i, j] = band[:, x : x + TILE]
    return stacked.reshape(-1, TILE)


def _starts(size: int) -> list[int]:
    n = min(TILES, size // TILE)
    return [int((size - TILE) * (i + 0.5) / n) // GRID * GRID for i in range(n)]
