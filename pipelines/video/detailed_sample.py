"""Detailed samples: frame statistics that need more pixels than the analysis image has, taken about once a second.

Shape legend: H height, W width of the sampled image (256 x 144 in area), lower-case letters for its chroma, half of
them; Y, X the size of the frame as decoded.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np
import pyarrow as pa

from cluster.arrays import UInt8Array
from pipelines.video.boxes import WHOLE_FRAME, FractionalBox, inner_pixels
from pipelines.video.letterbox import BorderProfiles, border_profiles, may_have_bars
from pipelines.video.scale import YuvPlanes
from pipelines.video.tiles import NativeArray, TileSums, measure_tiles

MAX_CLIPPED_BLACK, MIN_CLIPPED_WHITE = 2, 253
"""8-bit values up to which, and from which, a pixel counts as clipped. Full range ends at 0 and 255, and scaling and
rounding move both by 2."""

_CODEC = pa.Codec("lz4")


@dataclass(frozen=True)
class SampleValues:
    """Statistics of one frame, or of the part of it without bars; luma is full range.

    `luma` and `contrast`: mean and standard deviation in [0, 1]. `clipped_black`, `clipped_white`: share of pixels.
    `sharpness`: see `sharpness`. `colourfulness`: see `colourfulness`, in 8-bit values. `noise`, in 8-bit values,
    and `blockiness`: see `TileSums`. The last two are None where luma as decoded is not available or
    smaller than a tile. `loop_filtered`: whether the frame was decoded with the loop filter; without it, blockiness
    reads up to 0.8 higher and noise up to 0.1.
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


@dataclass(frozen=True)
class DetailedSample:
    """Statistics of one frame, or what is needed to measure the part of it without bars once that is known.

    `image` is the measured image if it cannot have bars, else its planes. `tiles` are the tiles of luma as decoded,
    None where there are none. `borders` are profiles in which bars are found. `thumbnail` is a JPEG file, empty where
    none is wanted.
    """

    pts: int
    image: PlaneValues | StoredPlanes
    tiles: TileSums | None = field(compare=False)
    loop_filtered: bool
    borders: BorderProfiles = field(compare=False)
    thumbnail: bytes = b""

    def inside(self, content: FractionalBox = WHOLE_FRAME, coded_content: FractionalBox = WHOLE_FRAME) -> SampleValues:
        """Return the statistics of the part of the frame in `content`, a box in shares of the frame as displayed.

        `coded_content` is the same box in the frame as decoded, which may not be upright. A frame that cannot have bars
        is measured whole.
        """
        image, tiles = self.image, self.tiles
        if isinstance(image, StoredPlanes):
            image = measure_planes(_inner_planes(image.load(), content))
        if tiles is not None and content != WHOLE_FRAME:
            tiles = tiles.inside(coded_content)
        return SampleValues(
            self.pts,
            **asdict(image),
            noise=None if tiles is None else tiles.noise_sigma(),
            blockiness=None if tiles is None else tiles.blockiness(),
            loop_filtered=self.loop_filtered,
        )


@dataclass(frozen=True)
class PlaneValues:
    """The statistics of `SampleValues` that are measured on the sampled image."""

    luma: float
    contrast: float
    clipped_black: float
    clipped_white: float
    sharpness: float
    colourfulness: float


@dataclass(frozen=True)
class StoredPlanes:
    """The planes of a sampled image, compressed without loss: about 25 kB of 55 kB, in 0.1 ms."""

    data: bytes
    height: int
    width: int

    @staticmethod
    def store(planes: YuvPlanes) -> StoredPlanes:
        """Compress planes; the sides of luma are even."""
        height, width = planes.luma_HW.shape
        return StoredPlanes(_CODEC.compress(b"".join(plane.tobytes() for plane in planes), asbytes=True), height, width)

    def load(self) -> YuvPlanes:
        """Return the planes."""
        luma, chroma = self.height * self.width, self.height * self.width // 4
        values = np.frombuffer(_CODEC.decompress(self.data, luma + 2 * chroma, asbytes=True), np.uint8)
        half = self.height // 2, self.width // 2
        return YuvPlanes(
            values[:luma].reshape(self.height, self.width),
            values[luma : luma + chroma].reshape(half),
            values[luma + chroma :].reshape(half),
        )


def take_detailed_sample(
    pts: int, planes: YuvPlanes, native_YX: NativeArray | None, loop_filtered: bool, bit_depth: int | None = None
) -> DetailedSample:
    """Measure a frame from upright full-range planes, and from luma as decoded (not upright, any range and strides).

    `bit_depth` is that of the values of `native_YX`: by default 8 for uint8 and 10 for uint16. The sample has no
    thumbnail.
    """
    borders = border_profiles(planes.luma_HW)
    image = StoredPlanes.store(planes) if may_have_bars(borders) else measure_planes(planes)
    tiles = None if native_YX is None else measure_tiles(native_YX, bit_depth)
    return DetailedSample(pts, image, tiles, loop_filtered, borders)


def measure_planes(planes: YuvPlanes) -> PlaneValues:
    """Return the statistics of an upright image in full range."""
    luma_HW = planes.luma_HW
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(luma_HW))
    return PlaneValues(
        luma=mean / 255,
        contrast=deviation / 255,
        clipped_black=_share_between(luma_HW, 0, MAX_CLIPPED_BLACK),
        clipped_white=_share_between(luma_HW, MIN_CLIPPED_WHITE, 255),
        sharpness=sharpness(luma_HW),
        colourfulness=colourfulness(planes.cb_hw, planes.cr_hw),
    )


def _inner_planes(planes: YuvPlanes, content: FractionalBox) -> YuvPlanes:
    """Return the parts of planes that lie wholly inside a box, in shares of their width and height."""

    def inner(plane: UInt8Array) -> UInt8Array:
        x0, y0, x1, y1 = inner_pixels(content, plane.shape[1], plane.shape[0])
        return np.ascontiguousarray(plane[y0:y1, x0:x1])

    return YuvPlanes(*map(inner, planes))


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


def _share_between(luma_HW: UInt8Array, low: int, high: int) -> float:
    """Return the share of pixels with values from `low` to `high`, both included."""
    return int(cv2.countNonZero(cv2.inRange(luma_HW, low, high))) / luma_HW.size
