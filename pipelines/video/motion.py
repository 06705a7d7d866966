"""How a picture moves: dense optical flow on small luma pictures, and the camera's part in it.

Flow is found by DIS (Kroeger et al., 'Fast Optical Flow using Dense Inverse Search', ECCV 2016), averaged over blocks, and
checked: a block counts as moved only where the flow explains how it has changed. What is common to the blocks (shift, zoom,
rotation) is the camera's, the rest is movement within the picture.

Shape legend: H height, W width of the analysis picture (128 x 72 in area), I x J blocks of 8 x 8 pixels, K = I J of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from pipelines.video.luma import BLOCK, Floats, block_means

PAIR_S = Fraction(16, 100)
"""Frames of a pair are at least this far apart, so that 12, 24, 25, 30 and 60 fps all use pairs of 0.16 to 0.17 s and a frame rate
does not change what is measured. Pairs of 0.08 s cost twice as much and tell no more of a shot."""

STILL_S = Fraction(1, 2)
LITTLE = 2.0
"""While no block has changed by more than this, in levels of 255, a pair grows up to half a second: a slow pan, a tenth of a pixel in
0.1 s, is seen all the same."""

NOISE = 1.0
"""Mean difference of a block, in levels, that counts as none. Compression noise, averaged to this size, stays below."""

CHANGED = 0.5
"""Mean difference of a block at half the size that its motion must explain. With 1.0, displacements under half a pixel are lost."""

EXPLAINED = 0.1
"""The flow must explain this share of a block's difference, or the block has changed but not moved (flicker, fades, noise)."""

FLAT = 3.0
TEXTURE = 4.0
"""Local contrast of a block at half the size (largest less smallest of 3 x 3 pixels, mean over the block, in levels): up to `FLAT`, noise
alone would decide where it went (noise with a sigma of 1.5 in a picture of 128 x 72 has 2.2); with `TEXTURE` it has half the weight of a crisp
one in the fit of the camera's motion."""

SCALES = (None, 3.0, 0.7)
"""Pixels from which a block counts as moving by itself, in successive fits of the camera's motion: from wide to narrow, so that
the fit ends on what most of the picture does wherever it started (Black and Rangarajan, 1996)."""

LEAST = 0.05
"""Share of the picture, by weight, that must be known for a camera's motion to be told from it."""

PATCH, STRIDE = 8, 4
"""What the ultrafast preset of DIS matches: patches of 8 pixels, 4 apart, on a quarter of the picture's size."""

MATCH = (0.5, 2.0)
"""Range of gains by which a picture's brightness is matched to that of the one before: wider is a cut or a flash, not a fade."""


@dataclass(frozen=True)
class Move:
    """Motion between two frames.

    `speed` is the mean length of the blocks' displacement, in long sides of the picture per second: 0 for a frozen picture, 0.1
    for a pan that takes ten seconds to cross the picture. Lengths are averaged, never signed vectors, which cancel out when a
    camera shakes or zooms. The camera's part: `pan` (positive when it turns right, so that the picture moves left) and `tilt`
    (positive when it turns up) in long sides per second, `zoom` (positive when it goes in: growth per second), `roll` (radians
    per second, positive when the camera turns clockwise, so that the picture turns counter-clockwise). `local` is what is left of
    `speed` when the camera's part is taken out of each block.
    """

    start_pts: int
    end_pts: int
    speed: float
    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    local: float = 0.0


@dataclass(frozen=True)
class Flow:
    """Displacements of the blocks in pixels, `[I, J]` (x to the right, y down); 0 where `weight` is 0.

    `weight` in [0, 1] tells how well a block's displacement is known: 0 for flat blocks, and for those that changed otherwise
    than by moving; those are not `known`.
    """

    dx_IJ: Floats
    dy_IJ: Floats
    weight_IJ: Floats
    known_IJ: NDArray[np.bool_]


class MotionMeter:
    """Fed with frames in order; yields the motion of pairs of them. State is the first frame of the open pair only."""

    def __init__(self, time_base: Fraction) -> None:
        """`time_base`: seconds a PTS unit lasts."""
        # In units of PTS, for a comparison of fractions takes longer than one of pictures.
        self._pair_pts, self._still_pts = (math.ceil(seconds / time_base) for seconds in (PAIR_S, STILL_S))
        self._time_base = float(time_base)
        self._reference: tuple[int, Pixels] | None = None

    def push(self, pts: int, luma_HW: Pixels) -> Move | None:
        """Take a frame (uint8, sides multiples of 8, always the same size): the motion of the pair it completes, if it does.

        The picture is kept, not copied; it must not be written to afterwards.
        """
        if self._reference is None:
            self._reference = (pts, luma_HW)
            return None
        start_pts, before_HW = self._reference
        elapsed_pts = pts - start_pts
        if elapsed_pts < self._pair_pts:
            return None
        changed = float(block_means(cv2.absdiff(before_HW, luma_HW)).max())
        if changed <= LITTLE and elapsed_pts < self._still_pts:
            return None
        self._reference = (pts, luma_HW)
        if changed <= NOISE:
            return Move(start_pts, pts, 0.0)
        return _move(start_pts, pts, elapsed_pts * self._time_base, block_flow(before_HW, luma_HW), max(luma_HW.shape))


def unexplained(before_HW: Pixels, after_HW: Pixels) -> float:
    """Mean absolute difference of two pictures, in levels, that is left when each pixel has been followed along the flow."""
    flow_HW2 = dis().calc(after_HW, before_HW, None)
    found_HW = cv2.remap(
        before_HW, flow_HW2 + grid(*after_HW.shape), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return float(cv2.norm(found_HW, after_HW, cv2.NORM_L1)) / after_HW.size


@cache
def dis() -> Any:
    """Ultrafast: patches of 8 pixels on a quarter of the size, 0.06 ms; the finer presets take 5 and 15 times that for the same mean."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]


@cache
def grid(height: int, width: int) -> Floats:
    """`[H, W, 2]` position (x, y) of each pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def block_flow(before_HW: Pixels, after_HW: Pixels) -> Flow:
    """By how many pixels each block of `before` has moved until `after`; a change of overall brightness and contrast is no motion."""
    before_HW, after_HW = _matched(np.ascontiguousarray(before_HW), after_HW), np.ascontiguousarray(after_HW)
    flow_HW2 = dis().calc(before_HW, after_HW, None)
    # Checked at half the size, a quarter of the cost, where what the flow leaves is less noise and more motion.
    height, width = before_HW.shape[0] // 2, before_HW.shape[1] // 2
    before_hw, after_hw = _resized(before_HW, width, height), _resized(after_HW, width, height)
    flow_hw2 = _resized(flow_HW2, width, height)
    found_hw = cv2.remap(
        after_hw, grid(height, width) + flow_hw2 / 2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    changed_hw, left_hw = cv2.absdiff(before_hw, after_hw), cv2.absdiff(before_hw, found_hw)
    texture_hw = cv2.morphologyEx(before_hw, cv2.MORPH_GRADIENT, _KERNEL)
    # In one call: OpenCV's own work is the smaller part of one of this size.
    means = block_means(cv2.vconcat([changed_hw, left_hw, texture_hw]), BLOCK // 2)
    rows = len(means) // 3
    changed_IJ, left_IJ, texture_IJ = means[:rows], means[rows : 2 * rows], means[2 * rows :]
    flow_IJ2 = _resized(flow_hw2, width * 2 // BLOCK, height * 2 // BLOCK)
    moved_IJ = changed_IJ > CHANGED
    known_IJ = ~moved_IJ | (left_IJ < (1 - EXPLAINED) * changed_IJ)
    square_IJ = texture_IJ * texture_IJ
    weight_IJ = square_IJ / (square_IJ + TEXTURE**2) * (known_IJ & (texture_IJ > FLAT))
    seen_IJ = moved_IJ & (weight_IJ > 0)
    return Flow(flow_IJ2[..., 0] * seen_IJ, flow_IJ2[..., 1] * seen_IJ, weight_IJ, known_IJ)


def camera_fit(flow: Flow) -> tuple[float, float, float, float]:
    """(shift x, shift y, growth, turn) of the similarity that most of the blocks' displacements follow, in pixels and radians.

    A point (x, y) from the centre moves by (shift x + growth x - turn y, shift y + turn x + growth y). Weighted least squares in
    closed form, reweighted by how far a block is from the fit (Geman and McClure's function), from wide to narrow.
    """
    place = _places(*flow.weight_IJ.shape)
    move_K, known_K = _complex(flow), flow.weight_IJ.ravel()
    if float(known_K.sum()) < LEAST * known_K.size:
        return 0.0, 0.0, 0.0, 0.0
    # In complex numbers a similarity is shift + turn place: half the operations, each of which costs a microsecond.
    across_K, conjugate_K = place.squared_K, place.conjugate_K * move_K
    weight_K, shift, turn = known_K, 0j, 0j
    for scale in SCALES:
        if scale is not None:
            off_K = move_K - shift - turn * place.at_K
            weight_K = known_K / (1 + (off_K.real**2 + off_K.imag**2) / scale**2) ** 2
        # Sums, not matrix products, for which BLAS would wake its threads.
        total = float(weight_K.sum())
        at, move = complex((weight_K * place.at_K).sum()) / total, complex((weight_K * move_K).sum()) / total
        spread = float((weight_K * across_K).sum()) / total - abs(at) ** 2
        turn = (complex((weight_K * conjugate_K).sum()) / total - at.conjugate() * move) / spread if spread > 1 else 0j
        shift = move - turn * at
    return shift.real, shift.imag, turn.real, turn.imag


def _move(start_pts: int, end_pts: int, elapsed_s: float, flow: Flow, long_side: int) -> Move:
    shift_x, shift_y, growth, turn = camera_fit(flow)
    place, move_K = _places(*flow.weight_IJ.shape), _complex(flow)
    off_K = (move_K - complex(shift_x, shift_y) - complex(growth, turn) * place.at_K) * (flow.weight_IJ.ravel() > 0)
    # Blocks that changed otherwise than by moving are left out, but of a picture that mostly flickers the rest is no sample.
    blocks = max(int(np.count_nonzero(flow.known_IJ)), flow.known_IJ.size // 2)
    per_s = 1 / (long_side * elapsed_s)
    return Move(
        start_pts,
        end_pts,
        speed=float(np.abs(move_K).sum()) / blocks * per_s,
        pan=-shift_x * per_s,
        tilt=shift_y * per_s,
        zoom=growth / elapsed_s,
        roll=-turn / elapsed_s,
        local=float(np.abs(off_K).sum()) / blocks * per_s,
    )


def _complex(flow: Flow) -> NDArray[np.complex64]:
    """Displacements as dx + i dy, `[K]`."""
    return (flow.dx_IJ + 1j * flow.dy_IJ).ravel().astype(np.complex64)


def _matched(before_HW: Pixels, after_HW: Pixels) -> Pixels:
    """`before` with the mean and the deviation of `after`, where that brings it nearer."""
    (mean_a,), (deviation_a,) = (value[0] for value in cv2.meanStdDev(before_HW))
    (mean_b,), (deviation_b,) = (value[0] for value in cv2.meanStdDev(after_HW))
    gain = deviation_b / deviation_a if deviation_a > 1 else 1.0
    if (abs(gain - 1) < 0.01 and abs(mean_a - mean_b) < 0.5) or not MATCH[0] <= gain <= MATCH[1]:
        return before_HW
    matched_HW = cv2.LUT(before_HW, np.clip(np.rint((_LEVELS - mean_a) * gain + mean_b), 0, 255).astype(np.uint8))
    closer = cv2.norm(matched_HW, after_HW, cv2.NORM_L1) < cv2.norm(before_HW, after_HW, cv2.NORM_L1)
    return matched_HW if closer else before_HW


_LEVELS = np.arange(256)
_KERNEL = np.ones((3, 3), np.uint8)


def _resized(picture: Any, width: int, height: int) -> Any:
    """Averaged over areas."""
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class _Places:
    """Where the blocks' displacements are those of, as x + i y in pixels from the centre of the picture, with what the fit needs of it, `[K]`."""

    at_K: NDArray[np.complex64]
    conjugate_K: NDArray[np.complex64]
    squared_K: Floats


@cache
def _places(rows: int, columns: int) -> _Places:
    at_K = (_patch_centres(columns)[None, :] + 1j * _patch_centres(rows)[:, None]).ravel().astype(np.complex64)
    return _Places(at_K, at_K.conj(), (np.abs(at_K) ** 2).astype(np.float32))


def _patch_centres(blocks: int) -> NDArray[np.float64]:
    """Along one axis, for each block, the mean centre of the patches whose displacements DIS averages there, in pixels from the centre.

    At the border they lie further in than the block, by up to 10 pixels: zooms would read a quarter too low with the blocks' centres.
    """
    pixels = blocks * BLOCK // 4
    starts = np.arange(1 + (pixels - PATCH) // STRIDE) * STRIDE
    nearest = np.minimum(np.arange(pixels), starts[-1] + PATCH - 1)[:, None]
    covers = (starts <= nearest) & (nearest < starts + PATCH)
    centres = (covers * (starts + (PATCH - 1) / 2)).sum(axis=1) / covers.sum(axis=1)
    return np.asarray(4 * (centres.reshape(blocks, -1).mean(axis=1) - (pixels - 1) / 2))
