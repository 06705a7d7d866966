"""Motion between frames: dense optical flow on small luma images, and the part of it that is the camera's.

Flow is found by DIS (Kroeger et al., 'Fast Optical Flow using Dense Inverse Search', ECCV 2016), averaged over blocks,
and checked: a block counts as moved only if the flow explains how it has changed. The motion that the blocks have in
common (shift, zoom, rotation) is the camera's; the rest is movement within the image.

Shape legend: H height, W width of the analysis image (128 x 72 in area), I x J blocks of 8 x 8 pixels, K = I J of them.
Lower-case h, w: half of H, W.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Float32Array, Float64Array, UInt8Array

BLOCK_PX = 8
"""Side of a block of the analysis image (128 x 72 in area), in pixels: 16 x 9 blocks, each a sixteenth of the width."""

MIN_PAIR_S = Fraction(16, 100)
"""Frames of a pair are at least this far apart. So 12, 24, 25, 30 and 60 fps all use pairs of 0.16 to 0.17 s, and the
frame rate does not change what is measured. Pairs of 0.08 s cost twice as much and tell no more of a shot."""

MAX_PAIR_S = Fraction(1, 2)
SMALL_CHANGE = 2.0
"""While no block has changed by more than `SMALL_CHANGE`, in 8-bit values, a pair grows up to `MAX_PAIR_S`. So a slow
pan, of a tenth of a pixel in 0.1 s, is still seen."""

MAX_NOISE_CHANGE = 1.0
"""Largest mean difference of a block, in 8-bit values, that counts as none. Compression noise, averaged over a block,
stays below."""

MIN_MOVED_CHANGE = 0.5
"""Mean difference of a block at half the size, in 8-bit values, from which motion must explain it. With 1.0,
displacements under half a pixel are lost."""

MIN_EXPLAINED_SHARE = 0.1
"""Smallest share of a block's difference that the flow must explain; with less, the block has changed but not moved
(flicker, fades, noise)."""

MAX_FLAT_CONTRAST = 3.0
HALF_WEIGHT_CONTRAST = 4.0
"""Bounds on the local contrast of a block at half the size: largest less smallest value of 3 x 3 pixels, mean over the
block, in 8-bit values. Up to `MAX_FLAT_CONTRAST`, noise alone would decide where the block went: noise with a sigma of
1.5 in an image of 128 x 72 has 2.2. With `HALF_WEIGHT_CONTRAST`, a block has half the weight of a crisp one in the fit
of the camera's motion."""

FIT_SCALES_PX = (None, 3.0, 0.7)
"""Distances from the camera's motion at which a block loses weight, in pixels, in successive fits. They go from wide to
narrow, so that the fit ends on the motion of most of the image wherever it started (Black and Rangarajan, 1996)."""

MIN_KNOWN_SHARE = 0.05
"""Smallest share of the image, by weight, whose motion must be known before a camera motion is fitted to it."""

DIS_PATCH_PX, DIS_STRIDE_PX = 8, 4
"""Patches that the ultrafast preset of DIS matches: 8 pixels wide, 4 apart, on an image of a quarter of the size."""

GAIN_RANGE = (0.5, 2.0)
"""Gains by which an image's brightness is matched to that of the frame before. A gain outside them is a cut or a flash,
not a fade."""


@dataclass(frozen=True)
class PairMotion:
    """Motion between the two frames of a pair.

    `speed` is the mean length of the blocks' displacement, in long sides of the image per second: 0 for a frozen image,
    0.1 for a pan that takes ten seconds to cross it. Lengths are averaged, never signed vectors, which cancel out when
    a camera shakes or zooms. The camera's part is `pan` (positive to the right, so that the image moves left) and
    `tilt` (positive upwards) in long sides per second, `zoom` (positive inwards, growth per second) and `roll` (radians
    per second, positive for a camera that rotates clockwise, so that the image rotates counter-clockwise). `local` is
    the `speed` that is left when the camera's part is subtracted from each block. `known_share` is the share of all
    blocks that `speed` is the mean of.
    """

    start_pts: int
    end_pts: int
    speed: float
    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    local: float = 0.0
    known_share: float = 1.0


@dataclass(frozen=True)
class BlockFlow:
    """Displacements of the blocks in pixels, `[I, J]` (x to the right, y down); 0 where `weight_IJ` is 0.

    `weight_IJ` in [0, 1] is how well a block's displacement is known: 0 for flat blocks, and for blocks that changed
    without moving. The latter are also not in `known_IJ`.
    """

    dx_IJ: Float32Array
    dy_IJ: Float32Array
    weight_IJ: Float32Array
    known_IJ: BoolArray


class MotionMeter:
    """A meter that takes frames in order and returns the motion of pairs of them.

    It holds the first frame of the open pair only.
    """

    def __init__(self, time_base: Fraction) -> None:
        """Start without a frame; `time_base` is the seconds per unit of PTS."""
        # In units of PTS: comparing fractions would take longer than comparing the images.
        self._min_pair_pts = math.ceil(MIN_PAIR_S / time_base)
        self._max_pair_pts = math.ceil(MAX_PAIR_S / time_base)
        self._time_base = float(time_base)
        self._first: tuple[int, UInt8Array] | None = None

    def push(self, pts: int, luma_HW: UInt8Array) -> PairMotion | None:
        """Take the next frame and return the motion of the pair it completes, if any.

        It is uint8, with sides that are multiples of 8 and the same for all frames. The image is kept, not copied; it
        must not be written to afterwards.
        """
        if self._first is None:
            self._first = (pts, luma_HW)
            return None
        start_pts, before_HW = self._first
        elapsed_pts = pts - start_pts
        if elapsed_pts < self._min_pair_pts:
            return None
        changed = float(block_means(cv2.absdiff(before_HW, luma_HW)).max())
        if changed <= SMALL_CHANGE and elapsed_pts < self._max_pair_pts:
            return None
        self._first = (pts, luma_HW)
        if changed <= MAX_NOISE_CHANGE:
            return PairMotion(start_pts, pts, 0.0)
        elapsed_s = elapsed_pts * self._time_base
        return _pair_motion(start_pts, pts, elapsed_s, block_flow(before_HW, luma_HW), max(luma_HW.shape))


def split_at_held_frames(motions: Iterable[PairMotion], time_base: Fraction) -> Iterator[PairMotion]:
    """Yield motions, each that lasts over a second as a pair without motion and one of half a second.

    Such a pair ends with a frame that follows one held on the screen: it moved in no more than the usual time before
    its end. The displacement stays the same.
    """
    moving_pts = math.ceil(MAX_PAIR_S / time_base)
    for motion in motions:
        elapsed_pts = motion.end_pts - motion.start_pts
        if elapsed_pts <= 2 * moving_pts:
            yield motion
            continue
        moves_pts, ratio = motion.end_pts - moving_pts, elapsed_pts / moving_pts
        yield PairMotion(motion.start_pts, moves_pts, 0.0)
        rates = {name: getattr(motion, name) * ratio for name in ("speed", "pan", "tilt", "zoom", "roll", "local")}
        yield dataclasses.replace(motion, start_pts=moves_pts, **rates)


def block_means(values_HW: UInt8Array | Float32Array, side: int = BLOCK_PX) -> Float32Array:
    """Return the mean of each block of `side` x `side` pixels; `side` divides H and W. It takes 5 us for 128 x 72.

    OpenCV's functions take a few microseconds where numpy takes tens.
    """
    height, width = values_HW.shape
    # As float32, since uint8 would round the means to whole values.
    return np.asarray(
        cv2.resize(np.asarray(values_HW, np.float32), (width // side, height // side), interpolation=cv2.INTER_AREA),
        np.float32,
    )


def motion_residual(before_HW: UInt8Array, after_HW: UInt8Array) -> float:
    """Return the mean absolute difference of two images after each pixel has been followed along the flow.

    It is in 8-bit values.
    """
    flow_HW2 = _dis().calc(after_HW, before_HW, None)
    found_HW = cv2.remap(
        before_HW, flow_HW2 + _pixel_grid(*after_HW.shape), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return float(cv2.norm(found_HW, after_HW, cv2.NORM_L1)) / after_HW.size


def block_flow(before_HW: UInt8Array, after_HW: UInt8Array) -> BlockFlow:
    """Return the displacement of each block from `before` to `after`.

    A change of overall brightness and contrast is no motion.
    """
    before_HW, after_HW = _matched(np.ascontiguousarray(before_HW), after_HW), np.ascontiguousarray(after_HW)
    flow_HW2 = _dis().calc(before_HW, after_HW, None)
    # Checked at half the size: it costs a quarter, and the difference that is left is less noise and more motion.
    height, width = before_HW.shape[0] // 2, before_HW.shape[1] // 2
    before_hw, after_hw = _resized(before_HW, width, height), _resized(after_HW, width, height)
    flow_hw2 = _resized(flow_HW2, width, height)
    found_hw = cv2.remap(
        after_hw, _pixel_grid(height, width) + flow_hw2 / 2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    changed_hw, left_hw = cv2.absdiff(before_hw, after_hw), cv2.absdiff(before_hw, found_hw)
    texture_hw = cv2.morphologyEx(before_hw, cv2.MORPH_GRADIENT, _KERNEL)
    # In one call: at this size the call costs more than OpenCV's work.
    means = block_means(cv2.vconcat([changed_hw, left_hw, texture_hw]), BLOCK_PX // 2)
    rows = len(means) // 3
    changed_IJ, left_IJ, texture_IJ = means[:rows], means[rows : 2 * rows], means[2 * rows :]
    flow_IJ2 = _resized(flow_hw2, width * 2 // BLOCK_PX, height * 2 // BLOCK_PX)
    moved_IJ = changed_IJ > MIN_MOVED_CHANGE
    known_IJ = ~moved_IJ | (left_IJ < (1 - MIN_EXPLAINED_SHARE) * changed_IJ)
    square_IJ = texture_IJ * texture_IJ
    weight_IJ = square_IJ / (square_IJ + HALF_WEIGHT_CONTRAST**2) * (known_IJ & (texture_IJ > MAX_FLAT_CONTRAST))
    seen_IJ = moved_IJ & (weight_IJ > 0)
    return BlockFlow(flow_IJ2[..., 0] * seen_IJ, flow_IJ2[..., 1] * seen_IJ, weight_IJ, known_IJ)


def fit_camera_motion(flow: BlockFlow) -> tuple[float, float, float, float]:
    """Return (shift x, shift y, growth, rotation), in pixels and radians, of the similarity that most blocks follow.

    A point (x, y) from the centre moves by (shift x + growth x - rotation y, shift y + rotation x + growth y). This is
    weighted least squares in closed form, reweighted by each block's distance from the fit (Geman and McClure's
    function), from wide to narrow. All are 0 where too little of the motion is known.
    """
    centres = _block_centres(*flow.weight_IJ.shape)
    moved_K, known_K = _complex(flow), flow.weight_IJ.ravel()
    if float(known_K.sum()) < MIN_KNOWN_SHARE * known_K.size:
        return 0.0, 0.0, 0.0, 0.0
    # In complex numbers a similarity is shift + factor * centre: half the operations, each of which costs 1 us.
    squared_K, conjugate_K = centres.squared_K, centres.conjugate_K * moved_K
    weight_K, shift, factor = known_K, 0j, 0j
    for scale in FIT_SCALES_PX:
        if scale is not None:
            off_K = moved_K - shift - factor * centres.centre_K
            weight_K = known_K / (1 + (off_K.real**2 + off_K.imag**2) / scale**2) ** 2
        # Sums, not matrix products, for which BLAS would wake its threads.
        total = float(weight_K.sum())
        centre = complex((weight_K * centres.centre_K).sum()) / total
        moved = complex((weight_K * moved_K).sum()) / total
        spread = float((weight_K * squared_K).sum()) / total - abs(centre) ** 2
        covariance = complex((weight_K * conjugate_K).sum()) / total - centre.conjugate() * moved
        factor = covariance / spread if spread > 1 else 0j
        shift = moved - factor * centre
    return shift.real, shift.imag, factor.real, factor.imag


def _pair_motion(start_pts: int, end_pts: int, elapsed_s: float, flow: BlockFlow, long_side: int) -> PairMotion:
    shift_x, shift_y, growth, rotation = fit_camera_motion(flow)
    centres, moved_K = _block_centres(*flow.weight_IJ.shape), _complex(flow)
    off_K = moved_K - complex(shift_x, shift_y) - complex(growth, rotation) * centres.centre_K
    off_K = off_K * (flow.weight_IJ.ravel() > 0)
    # Blocks that changed without moving are left out, but of an image that mostly flickers the others are no sample.
    blocks = max(int(np.count_nonzero(flow.known_IJ)), flow.known_IJ.size // 2)
    speed_per_px = 1 / (long_side * elapsed_s)
    return PairMotion(
        start_pts,
        end_pts,
        speed=float(np.abs(moved_K).sum()) / blocks * speed_per_px,
        pan=-shift_x * speed_per_px,
        tilt=shift_y * speed_per_px,
        zoom=growth / elapsed_s,
        roll=-rotation / elapsed_s,
        local=float(np.abs(off_K).sum()) / blocks * speed_per_px,
        known_share=blocks / flow.known_IJ.size,
    )


@cache
def _dis() -> Any:
    """Return the optical flow with the ultrafast preset: patches of 8 pixels on a quarter of the size, 0.06 ms.

    The finer presets take 5 and 15 times as long for the same mean.
    """
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]


@cache
def _pixel_grid(height: int, width: int) -> Float32Array:
    """Return the position (x, y) of each pixel, `[H, W, 2]`."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def _complex(flow: BlockFlow) -> NDArray[np.complex64]:
    """Return displacements as dx + i dy, `[K]`."""
    return (flow.dx_IJ + 1j * flow.dy_IJ).ravel().astype(np.complex64)


def _matched(before_HW: UInt8Array, after_HW: UInt8Array) -> UInt8Array:
    """Return `before` with the mean and the deviation of `after`, where that brings it closer, else `before`."""
    (mean_a,), (deviation_a,) = (value[0] for value in cv2.meanStdDev(before_HW))
    (mean_b,), (deviation_b,) = (value[0] for value in cv2.meanStdDev(after_HW))
    gain = deviation_b / deviation_a if deviation_a > 1 else 1.0
    if (abs(gain - 1) < 0.01 and abs(mean_a - mean_b) < 0.5) or not GAIN_RANGE[0] <= gain <= GAIN_RANGE[1]:
        return before_HW
    table = np.clip(np.rint((_VALUES - mean_a) * gain + mean_b), 0, 255).astype(np.uint8)
    matched_HW = cv2.LUT(before_HW, table)
    closer = cv2.norm(matched_HW, after_HW, cv2.NORM_L1) < cv2.norm(before_HW, after_HW, cv2.NORM_L1)
    return matched_HW if closer else before_HW


_VALUES = np.arange(256)
_KERNEL = np.ones((3, 3), np.uint8)


def _resized(image: Any, width: int, height: int) -> Any:
    """Return an image averaged over areas."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class _BlockCentres:
    """Points of the image that the blocks' displacements belong to, as x + i y in pixels from its centre, `[K]`.

    Their conjugates and squared lengths are there for the fit.
    """

    centre_K: NDArray[np.complex64]
    conjugate_K: NDArray[np.complex64]
    squared_K: Float32Array


@cache
def _block_centres(rows: int, columns: int) -> _BlockCentres:
    centre_K = (_patch_centres(columns)[None, :] + 1j * _patch_centres(rows)[:, None]).ravel().astype(np.complex64)
    return _BlockCentres(centre_K, centre_K.conj(), (np.abs(centre_K) ** 2).astype(np.float32))


def _patch_centres(blocks: int) -> Float64Array:
    """Return, for each block along one axis, the mean centre of the patches whose displacements DIS averages there.

    It is in pixels from the centre of the image. At the border the patches lie further in than the block, by up to 10
    pixels: with the blocks' own centres, zooms would read a quarter too low.
    """
    pixels = blocks * BLOCK_PX // 4
    starts = np.arange(1 + (pixels - DIS_PATCH_PX) // DIS_STRIDE_PX) * DIS_STRIDE_PX
    nearest = np.minimum(np.arange(pixels), starts[-1] + DIS_PATCH_PX - 1)[:, None]
    covers = (starts <= nearest) & (nearest < starts + DIS_PATCH_PX)
    centres = (covers * (starts + (DIS_PATCH_PX - 1) / 2)).sum(axis=1) / covers.sum(axis=1)
    return np.asarray(4 * (centres.reshape(blocks, -1).mean(axis=1) - (pixels - 1) / 2))
