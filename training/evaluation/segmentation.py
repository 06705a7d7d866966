"""Separation of shapes from the background in frames of a drawn world, by the colours of its palette.

The light on a background or a shape multiplies its colour, so its pixels lie near a ray through its palette colour.
At a shape's edge, pixels are mixtures of both. Shape suffixes: T frames, H rows, W columns, N pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from cluster.arrays import BoolArray, Float32Array, Pixels
from training.evaluation.truth import Rgb, World

BACKGROUND_LIGHT = (0.4, 1.25)
"""Range of the light on a background; drawn footage has 0.48 (below the floor) to 1.18."""
MIN_LIGHT = 0.05
"""Light that darker pixels of a background are taken to have, so that nothing is divided by 0."""
SHAPE_LIGHT = (0.6, 1.15)
"""Range of the light on a shape: darker at the rim, brighter at the top."""
MAX_VOTE_DISTANCE = 40.0
"""Largest distance in RGB of a pixel from the ray of a colour that it counts for."""
MIN_BACKGROUND_SHARE = 0.2
"""Smallest share of all pixels that a background must have to be recognised."""
FOREGROUND_DISTANCE = 36.0
"""Distance in RGB from the background above which a pixel belongs to a shape."""
CORE_COVERAGE = 0.6
MAX_CORE_RESIDUAL = 60.0
"""A pixel is the core of a shape if a shape's colour covers this much of it and explains it to this distance in RGB."""
MIN_AREA = 0.006
"""Smallest area of a visible part of a shape, in squares of the frame's short side."""
MIN_THICKNESS = 0.07
MIN_THICK_SHARE = 0.2
"""A colour is there if a part is as thick, in short sides of the frame, in this share of the frames. Mixtures and halos
at the edges of shapes are thinner; the smallest drawn shapes are 0.1 thick."""
FRINGE_PX = 3
"""Width of the band around a core in which the coverage of mixed pixels is summed."""
PRIOR_DISTANCE = 53.0
"""Weight, in levels of RGB, of the prior that a shape is lit as its palette colour: noise of 8 levels over a deviation
of the light of 0.15."""


@dataclass(frozen=True, eq=False)
class Background:
    """The background of a clip: its name, the share of all pixels that show it, and its light in each frame."""

    name: str
    share: float
    rows_TH: Float32Array
    """Light of each row: shade and floor."""
    columns_TW: Float32Array
    """Light of each column relative to its row: the stripes. Columns without background are NaN."""
    image_THWC: Float32Array
    """The background as it would look without shapes, RGB from 0 to 255."""


@dataclass(frozen=True, eq=False)
class Part:
    """A connected visible part of one colour in one frame."""

    area: float
    """Covered area in square pixels."""
    core_HW: BoolArray
    weights_HW: Float32Array
    """Coverage by the shape of each pixel of the part and of the fringe around it, 0 elsewhere."""
    rgb: tuple[float, float, float]
    """Mean colour of the core."""


@dataclass(frozen=True, eq=False)
class ColourParts:
    """All parts of one colour, and how much of each pixel it covers."""

    colour: str
    parts_T: tuple[tuple[Part, ...], ...]


def find_background(frames_THWC: Pixels, world: World) -> Background | None:
    """Return the background that most pixels show, or None if no background of the world has enough of them."""
    pixels_THWC = frames_THWC.astype(np.float32)
    candidates = [(rgb, BACKGROUND_LIGHT) for rgb in world.backgrounds.values()]
    candidates += [(rgb, SHAPE_LIGHT) for rgb in world.colours.values()]
    distances = np.stack([_ray_distance(pixels_THWC, rgb, light) for rgb, light in candidates])
    nearest_THW = np.where(distances.min(0) <= MAX_VOTE_DISTANCE, distances.argmin(0), -1)
    shares = [float((nearest_THW == index).mean()) for index in range(len(world.backgrounds))]
    best = int(np.argmax(shares))
    if shares[best] < MIN_BACKGROUND_SHARE:
        return None
    name, rgb = list(world.backgrounds.items())[best]
    # The brightest channels of pale backgrounds are cut off at 255.
    colour = np.where(np.array(rgb) * BACKGROUND_LIGHT[1] > 255 + 45, 0, np.array(rgb)).astype(np.float32)
    colour = np.array(rgb, np.float32) if not colour.any() else colour
    light_THW = np.maximum(pixels_THWC @ colour / float(colour @ colour), MIN_LIGHT)
    light_THW[nearest_THW != best] = np.nan
    rows_TH = _filled(_median(light_THW, axis=2))
    columns_TW = _median(light_THW / rows_TH[:, :, None], axis=1)
    # The stripes are known, and no longer shift the medians of rows in which few columns are seen.
    rows_TH = _filled(_median(light_THW / _filled(columns_TW)[:, None, :], axis=2))
    light_THW = rows_TH[:, :, None] * _filled(columns_TW)[:, None, :]
    image_THWC = np.minimum(light_THW[..., None] * np.array(rgb, np.float32), 255)
    return Background(name, shares[best], rows_TH, columns_TW, image_THWC)


def find_parts(frames_THWC: Pixels, background: Background, world: World) -> list[ColourParts]:
    """Return the visible parts of shapes, by colour."""
    pixels_THWC = frames_THWC.astype(np.float32)
    foreground_THW = np.linalg.norm(pixels_THWC - background.image_THWC, axis=-1) > FOREGROUND_DISTANCE
    pixels_NC, behind_NC = pixels_THWC[foreground_THW], background.image_THWC[foreground_THW]
    mixtures = {name: _mixture(pixels_NC, behind_NC, rgb) for name, rgb in world.colours.items()}
    best_N = np.argmin([residual for _, residual in mixtures.values()], axis=0) if len(pixels_NC) else np.zeros(0)
    min_area_px = MIN_AREA * min(frames_THWC.shape[1:3]) ** 2
    present: dict[str, Rgb] = {}
    for index, (name, rgb) in enumerate(world.colours.items()):
        coverage_N, residual_N = mixtures[name]
        core_N = (best_N == index) & (coverage_N > CORE_COVERAGE) & (residual_N < MAX_CORE_RESIDUAL)
        core_THW = np.zeros(foreground_THW.shape, bool)
        core_THW[foreground_THW] = core_N
        if core_THW.sum(axis=(1, 2)).max() >= min_area_px and _is_thick(core_THW):
            present[name] = rgb
    return _parts_of(pixels_THWC, background, foreground_THW, present)


def _is_thick(core_THW: BoolArray) -> bool:
    """Return whether a colour is thicker than a seam between other colours in at least a few frames."""
    radius = max(1, round(MIN_THICKNESS / 2 * min(core_THW.shape[1:])))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    thick_T = [bool(cv2.erode(core_HW.astype(np.uint8), kernel, borderValue=0).any()) for core_HW in core_THW]
    return float(np.mean(thick_T)) >= MIN_THICK_SHARE


def _parts_of(
    pixels_THWC: Float32Array, background: Background, foreground_THW: BoolArray, present: Mapping[str, Rgb]
) -> list[ColourParts]:
    """Return the parts of the colours that are present; each pixel of a shape belongs to the one that explains it."""
    mixtures = [_mixture(pixels_THWC, background.image_THWC, rgb) for rgb in present.values()]
    if not mixtures:
        return []
    best_THW = np.argmin([residual for _, residual in mixtures], axis=0)
    min_area_px = MIN_AREA * min(foreground_THW.shape[1:]) ** 2
    found = []
    for index, name in enumerate(present):
        coverage_THW, residual_THW = mixtures[index]
        own_THW = (best_THW == index) & foreground_THW
        core_THW = own_THW & (coverage_THW > CORE_COVERAGE) & (residual_THW < MAX_CORE_RESIDUAL)
        weights_THW = np.where(own_THW | ~foreground_THW, np.clip(coverage_THW, -0.3, 1.1), 0).astype(np.float32)
        parts = [
            tuple(_frame_parts(core_HW, weights_HW, pixels_HWC, min_area_px))
            for core_HW, weights_HW, pixels_HWC in zip(core_THW, weights_THW, pixels_THWC, strict=True)
        ]
        if any(parts):
            found.append(ColourParts(name, tuple(parts)))
    return found


def _frame_parts(
    core_HW: BoolArray, weights_HW: Float32Array, pixels_HWC: Float32Array, min_area_px: float
) -> list[Part]:
    """Return the connected parts of one colour in one frame, the largest first."""
    n_labels, labels_HW = cv2.connectedComponents(core_HW.astype(np.uint8), connectivity=8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * FRINGE_PX + 1, 2 * FRINGE_PX + 1))
    parts = []
    for label in range(1, n_labels):
        part_HW = labels_HW == label
        if part_HW.sum() < 0.5 * min_area_px:
            continue
        around_HW = cv2.dilate(part_HW.astype(np.uint8), kernel) > 0
        own_HW = np.where(around_HW & ((labels_HW == label) | (labels_HW == 0)), weights_HW, 0)
        area = float(own_HW.sum())
        if area >= min_area_px:
            red, green, blue = np.median(pixels_HWC[part_HW], axis=0).tolist()
            parts.append(Part(area, part_HW, own_HW, (red, green, blue)))
    return sorted(parts, key=lambda part: -part.area)


def _ray_distance(pixels_THWC: Float32Array, rgb: Rgb, light: tuple[float, float]) -> Float32Array:
    """Return the distance `[T, H, W]` of pixels from a colour under any light of this range."""
    colour = np.array(rgb, np.float32)
    factor_THW = np.clip(pixels_THWC @ colour / (colour @ colour), *light)
    lit_THWC = np.minimum(factor_THW[..., None] * colour, 255)
    return np.asarray(np.linalg.norm(pixels_THWC - lit_THWC, axis=-1), np.float32)


def _mixture(pixels: Float32Array, behind: Float32Array, rgb: Rgb) -> tuple[Float32Array, Float32Array]:
    """Return which share of each pixel a shape covers, and the distance in RGB that this leaves unexplained.

    A pixel is (1 - a) background + w colour, where w is the coverage a times the light. Both are found by least squares
    with the prior that w is near a, which decides where colour and background are darker and lighter ones of one hue.
    """
    colour = np.array(rgb, np.float32)
    difference = pixels - behind
    # Normal equations of: difference = -a behind + w colour, and 0 = PRIOR_DISTANCE (w - a).
    prior = PRIOR_DISTANCE**2
    bb = (behind * behind).sum(-1) + prior
    cc = float(colour @ colour) + prior
    bc = -(behind @ colour) - prior
    bd, cd = -(behind * difference).sum(-1), difference @ colour
    determinant = bb * cc - bc * bc
    a = (cc * bd - bc * cd) / determinant
    w = (bb * cd - bc * bd) / determinant
    # Coverage and light within their ranges, for the residual.
    a_in = np.clip(a, 0, 1)
    w_in = np.clip(w, SHAPE_LIGHT[0] * a_in, SHAPE_LIGHT[1] * a_in)
    rest = difference + a_in[..., None] * behind - w_in[..., None] * colour
    return np.asarray(a, np.float32), np.asarray(np.linalg.norm(rest, axis=-1), np.float32)


def _median(values: Float32Array, axis: int) -> Float32Array:
    """Return the medians along an axis without NaN; NaN where there are fewer than three values."""
    ordered = np.sort(values, axis=axis)
    counts = np.isfinite(values).sum(axis=axis)
    low = np.take_along_axis(ordered, np.expand_dims(np.maximum(counts - 1, 0) // 2, axis), axis).squeeze(axis)
    high = np.take_along_axis(ordered, np.expand_dims(counts // 2, axis), axis).squeeze(axis)
    high = np.where(counts % 2 == 1, low, high)
    return np.where(counts >= 3, (low + high) / 2, np.nan).astype(np.float32)


def _filled(values_TN: Float32Array) -> Float32Array:
    """Return rows with NaN filled in by linear interpolation; a row of NaN alone becomes 1."""
    filled = np.ones_like(values_TN)
    positions = np.arange(values_TN.shape[1])
    for row, values, known in zip(filled, values_TN, np.isfinite(values_TN), strict=True):
        if known.any():
            row[:] = np.interp(positions, positions[known], values[known])
    return filled
