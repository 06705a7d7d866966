"""Detailed samples: frame statistics that need more pixels than the analysis image has, taken about once a second.

Shape legend: H height, W width of the sampled image (256 x 144 in area), lower-case letters for its chroma, half of
them; Y, X the size of the frame as decoded; n tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import UInt8Array
from pipelines.video.letterbox import BorderProfiles, border_profiles
from pipelines.video.scale import YuvPlanes

NativeArray = UInt8Array | NDArray[np.uint16]

MAX_CLIPPED_BLACK, MIN_CLIPPED_WHITE = 2, 253
"""8-bit values up to which, and from which, a pixel counts as clipped. Full range ends at 0 and 255, and scaling and
rounding move both by 2."""

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


@dataclass(frozen=True)
class DetailedSample:
    """Statistics of one frame; luma is full range.

    `luma` and `contrast`: mean and standard deviation in [0, 1]. `clipped_black`, `clipped_white`: share of pixels.
    `sharpness`: see `sharpness`. `colourfulness`: see `colourfulness`, in 8-bit values. `noise`: see `noise_sigma`, in
    8-bit values. `blockiness`: see `blockiness`. The last two are None where luma as decoded is not available or
    smaller than a tile. `loop_filtered`: whether the frame was decoded with the loop filter; without it, blockiness
    reads up to 0.8 higher and noise up to 0.1. `borders`: profiles in which bars are found. `thumbnail`: a JPEG file,
    empty where none is wanted.
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
    loop_filtered: bool
    borders: BorderProfiles = field(compare=False)
    thumbnail: bytes = b""


def take_detailed_sample(
    pts: int, planes: YuvPlanes, native_YX: NativeArray | None, loop_filtered: bool, bit_depth: int | None = None
) -> DetailedSample:
    """Measure a frame from upright full-range planes, and from luma as decoded (not upright, any range and strides).

    `bit_depth` is that of the values of `native_YX`: by default 8 for uint8 and 10 for uint16. The sample has no
    thumbnail.
    """
    luma_HW = planes.luma_HW
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(luma_HW))
    tiles_YX = None if native_YX is None else _tiles(native_YX)
    is_8_bit = native_YX is None or native_YX.dtype == np.uint8
    scale = 1.0 if is_8_bit else 2.0 ** ((bit_depth or 10) - 8)
    return DetailedSample(
        pts,
        luma=mean / 255,
        contrast=deviation / 255,
        clipped_black=_share_between(luma_HW, 0, MAX_CLIPPED_BLACK),
        clipped_white=_share_between(luma_HW, MIN_CLIPPED_WHITE, 255),
        sharpness=sharpness(luma_HW),
        colourfulness=colourfulness(planes.cb_hw, planes.cr_hw),
        noise=None if tiles_YX is None else noise_sigma(tiles_YX) / scale,
        blockiness=None if tiles_YX is None else blockiness(tiles_YX, MAX_GRID_STEP * scale),
        loop_filtered=loop_filtered,
        borders=border_profiles(luma_HW),
    )


def sharpness(luma_HW: UInt8Array) -> float:
    """Return the variance of the Laplacian over 4 neighbours, of luma scaled to [0, 1].

    It is comparable only between images of one size. A gradient gives 0, a blurred image around 1e-4, a crisp one 1e-3
    to 1e-1. Source: Pech-Pacheco et al., 'Diatom autofocusing in brightfield microscopy' (2000).
    """
    if min(luma_HW.shape) < 3:
        return 0.0
    laplacian = cv2.Laplacian(luma_HW, cv2.CV_16S)[1:-1, 1:-1]
    deviation = float(cv2.meanStdDev(laplacian)[1][0, 0]) / 255
    return deviation**2


def colourfulness(cb_hw: UInt8Array, cr_hw: UInt8Array) -> float:
    """Return the measure M3 of Hasler and Suesstrunk: 0 for grey, 15 slight, 45 quite, 109 extreme.

    It is sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2) with rg = R - G, yb = (R + G) / 2 - B, in 8-bit
    values. Both are linear in Cb and Cr and free of luma, so no RGB image is needed. The coefficients are those of
    BT.601; with BT.709 the result would differ by 7%. Colours that RGB would clip are not clipped here. Source:
    'Measuring colourfulness in natural images' (2003).
    """
    red_green = cv2.addWeighted(cr_hw, 2.1161, cb_hw, 0.3441, -128 * (2.1161 + 0.3441), dtype=cv2.CV_32F)
    yellow_blue = cv2.addWeighted(cr_hw, 0.3439, cb_hw, -1.9441, -128 * (0.3439 - 1.9441), dtype=cv2.CV_32F)
    mean_rg, deviation_rg = (float(value[0, 0]) for value in cv2.meanStdDev(red_green))
    mean_yb, deviation_yb = (float(value[0, 0]) for value in cv2.meanStdDev(yellow_blue))
    return math.hypot(deviation_rg, deviation_yb) + 0.3 * math.hypot(mean_rg, mean_yb)


def noise_sigma(tiles_YX: NativeArray) -> float:
    """Return the standard deviation of noise of stacked tiles `[32 n, 32]`, in their values, from the flattest of them.

    It follows Immerkaer, 'Fast noise variance estimation' (1996): the mean absolute response to the difference of two
    Laplacians, which is 0 on edges and slopes. The flattest tiles have the least variance after averaging over 8 x 8
    pixels, which removes the noise: so tiles that happen to have less noise are not preferred. Clipped tiles, where
    noise is cut off, do not count unless all are clipped.
    """
    n = len(tiles_YX) // TILE_PX
    is_8_bit = tiles_YX.dtype == np.uint8
    pixels_YX = tiles_YX if is_8_bit else tiles_YX.astype(np.float32)
    response = cv2.filter2D(pixels_YX, cv2.CV_16S if is_8_bit else cv2.CV_32F, _IMMERKAER)
    response = cv2.convertScaleAbs(response) if is_8_bit else np.abs(response)
    # The response where two tiles meet is not noise.
    response[:, 0] = response[:, -1] = response[::TILE_PX] = response[TILE_PX - 1 :: TILE_PX] = 0
    sums_n = cv2.reduce(
        response.reshape(n, TILE_PX * TILE_PX), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S if is_8_bit else cv2.CV_32F
    ).ravel()
    size = TILE_PX // GRID_PX, n * TILE_PX // GRID_PX
    means_n = cv2.resize(pixels_YX, size, interpolation=cv2.INTER_AREA).reshape(n, -1)
    unclipped = np.flatnonzero(sums_n > 0)
    if len(unclipped) == 0:
        return 0.0
    flattest_first = unclipped[np.argsort(means_n.var(axis=1)[unclipped], kind="stable")]
    n_flat = max(1, math.ceil(len(flattest_first) * FLAT_TILE_SHARE))
    mean = float(np.median(sums_n[flattest_first[:n_flat]])) / (TILE_PX - 2) ** 2
    return mean * math.sqrt(math.pi / 2) / 6


def blockiness(tiles_YX: NativeArray, max_step: float = MAX_GRID_STEP) -> float:
    """Return the ratio of steps between pixels across the edges of 8-pixel blocks to those inside blocks.

    The stacked tiles `[32 n, 32]` start on the grid of blocks. 1 means no blocks. It is the difference across block
    edges of Wang, Sheikh and Bovik, 'No-reference perceptual quality assessment of JPEG compressed images' (2002), over
    that within blocks, in both directions. Pixels next to an edge, which deblocking changes, are left out. Blocks of a
    video that was scaled after compression are off the grid and not seen.
    """
    n = len(tiles_YX) // TILE_PX
    is_8_bit = tiles_YX.dtype == np.uint8
    pixels_YX, sums = (tiles_YX, cv2.CV_32S) if is_8_bit else (tiles_YX.astype(np.float32), cv2.CV_32F)
    across = cv2.threshold(cv2.absdiff(pixels_YX[:, 1:], pixels_YX[:, :-1]), max_step, 0, cv2.THRESH_TRUNC)[1]
    down = cv2.threshold(cv2.absdiff(pixels_YX[1:], pixels_YX[:-1]), max_step, 0, cv2.THRESH_TRUNC)[1]
    columns = cv2.reduce(across, 0, cv2.REDUCE_SUM, dtype=sums).ravel()
    rows = np.append(cv2.reduce(down, 1, cv2.REDUCE_SUM, dtype=sums).ravel(), 0).reshape(n, TILE_PX).sum(axis=0)[:-1]
    steps = (columns + rows) / (2 * n * TILE_PX)
    # 0.05 on both sides, so that a flat image has 1 and not a ratio of rounding errors.
    return float((steps[_ON_GRID].mean() + 0.05) / (steps[_OFF_GRID].mean() + 0.05))


_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_ON_GRID = np.array([GRID_PX * k - 1 for k in range(1, TILE_PX // GRID_PX)])
_OFF_GRID = np.array([i for i in range(TILE_PX - 1) if 1 <= i % GRID_PX <= 5])


def _share_between(luma_HW: UInt8Array, low: int, high: int) -> float:
    """Return the share of pixels with values from `low` to `high`, both included."""
    return int(cv2.countNonZero(cv2.inRange(luma_HW, low, high))) / luma_HW.size


def _tiles(native_YX: NativeArray) -> NativeArray | None:
    """Return tiles of 32 x 32 pixels, spread evenly on the 8-pixel grid and stacked to `[32 n, 32]`.

    None for a frame smaller than a tile.
    """
    ys, xs = _tile_starts(native_YX.shape[0]), _tile_starts(native_YX.shape[1])
    if not ys or not xs:
        return None
    stacked: NativeArray = np.empty((len(ys), len(xs), TILE_PX, TILE_PX), native_YX.dtype)
    for i, y in enumerate(ys):
        band = native_YX[y : y + TILE_PX]
        for j, x in enumerate(xs):
            stacked[i, j] = band[:, x : x + TILE_PX]
    return stacked.reshape(-1, TILE_PX)


def _tile_starts(size: int) -> list[int]:
    n = min(MAX_TILES, size // TILE_PX)
    return [int((size - TILE_PX) * (i + 0.5) / n) // GRID_PX * GRID_PX for i in range(n)]
