"""The camera's move in a clip of a drawn world, from the stripes and the shade of its background.

The wall has stripes of equal width, fixed to the world; their width and shift differ from shot to shot. A pan shifts
them, and a zoom stretches them about the middle. The magnification of a zoom follows from the floor's height in the
frame. Without a floor it follows from the shade: the wall is lighter above and darker below, by a slope that is the
same in all drawn footage, so that a magnified view has a smaller one.
Shape suffixes: T frames, H rows, W columns, N hypotheses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from cluster.arrays import Float32Array, Float64Array
from training.evaluation.segmentation import Background

CameraMove = Literal["still", "pan_left", "pan_right", "zoom_in", "zoom_out"]

SHADE_AT_CENTRE, SHADE_SLOPE = 0.97, -0.15
"""Light of the wall at y = 0, and its change per world unit down, in drawn footage."""
FLOOR_HEIGHT = 0.12
"""World units from the lower edge of a whole frame at zoom 1 up to the floor, in drawn footage."""
FLOOR_DROP = 0.85
"""Ratio of the light of two rows, `FLOOR_ROWS` apart, below which the floor begins between them; drawn floors have
0.62."""
FLOOR_ROWS = 3
MIN_WALL = 0.3
"""Smallest height of visible wall, in world units, by which the magnification is measured."""
PERIODS = (0.5, 1.9)
"""Range of the stripes' period, twice their width, in world units at zoom 1."""
MAX_PAN = 0.7
MAX_LOG_ZOOM = 0.7
"""Largest pan in world units, and largest change of the zoom's logarithm, that are searched within a clip."""
MIN_CORRELATION = 0.7
"""Correlation of the columns' light with the fitted stripes below which the camera cannot be judged."""
MIN_PAN = 0.05
MIN_LOG_ZOOM = 0.06
"""A clip shows a pan or a zoom if the camera moves by more than this."""
AMBIGUOUS = 0.002
"""A zoom and a pan whose correlations differ by less explain a clip equally well: too few edges of stripes are seen."""
MIN_COLUMNS = 0.3
"""Smallest share of columns in which the background must be seen."""
MAX_SEARCH_FRAMES = 5
MAX_SEARCH_STEPS = 60
"""Frames by which hypotheses are compared at first, and the most steps of the search from the best one."""


class Room(NamedTuple):
    """The room of a drawn world, whose walls are the edges of frames that are not cropped, at zoom 1."""

    unit_px: float
    """Pixels per world unit at zoom 1."""
    half_x: float
    half_y: float
    """World units from the middle to the walls at the sides, and to floor level and ceiling."""

    @classmethod
    def of_frame(cls, width: int, height: int) -> Room:
        """Return the room that a whole frame of this size shows."""
        unit_px = float(min(width, height))
        return cls(unit_px, width / unit_px / 2, height / unit_px / 2)


@dataclass(frozen=True)
class CameraPath:
    """A camera that moves at constant speed. A change is that from the first frame to the last."""

    pan: float
    """World units to the right; the position at the start cannot be seen."""
    log_zoom: float
    """Logarithm of the magnification in the middle of the clip; 0 unless the camera zooms."""
    log_zoom_change: float
    correlation: float
    """Correlation of the columns' light with the stripes that this camera would see."""
    scale_is_seen: bool = True
    """Whether the magnification is known: False if a camera zooms and too little of the wall is seen."""

    @property
    def is_seen(self) -> bool:
        """Whether the stripes are clear enough for a judgement."""
        return self.correlation >= MIN_CORRELATION

    @property
    def move(self) -> CameraMove:
        """The move, of those that captions name."""
        if abs(self.log_zoom_change) >= MIN_LOG_ZOOM:
            return "zoom_in" if self.log_zoom_change > 0 else "zoom_out"
        if abs(self.pan) >= MIN_PAN:
            return "pan_right" if self.pan > 0 else "pan_left"
        return "still"

    def positions(self, n_frames: int) -> Float64Array:
        """Return world x, relative to the middle of the clip, and zoom `[T, 2]` in each frame."""
        part_T = _parts(n_frames)
        return np.stack([self.pan * part_T, np.exp(self.log_zoom + self.log_zoom_change * part_T)], axis=1)


UNSEEN = CameraPath(0.0, 0.0, 0.0, 0.0, False)
"""The camera of a clip without visible stripes: taken to be still, and not to be judged."""


def find_camera(background: Background, room: Room) -> CameraPath:
    """Return the camera whose view of stripes of any width and shift correlates best with the background's columns."""
    fit = _Fit.of(background.columns_TW, room.unit_px)
    if fit is None:
        return UNSEEN
    phases, periods = np.linspace(0, 1, 12, endpoint=False), np.geomspace(*PERIODS, 16)
    pans = _best(fit, _grid(phases, periods, MAX_PAN * np.linspace(-1, 1, 21), np.zeros(1)), (0.03, 0.03, 0.03, 0.0))
    zooms = _best(
        fit, _grid(phases, periods, np.zeros(1), MAX_LOG_ZOOM * np.linspace(-1, 1, 15)), (0.03, 0.03, 0.0, 0.03)
    )
    (pan_4, pan_score), (zoom_4, zoom_score) = pans, zooms
    if abs(zoom_4[3]) < MIN_LOG_ZOOM or pan_score > zoom_score + AMBIGUOUS:
        return CameraPath(float(pan_4[2]), 0.0, 0.0, pan_score)
    if zoom_score < pan_score + AMBIGUOUS:
        return UNSEEN
    found = CameraPath(0.0, 0.0, float(zoom_4[3]), zoom_score)
    log_zoom = _log_zoom(background.rows_TH, room, found)
    return replace(found, log_zoom=log_zoom or 0.0, scale_is_seen=log_zoom is not None)


def floor_row(light_H: Float32Array) -> float | None:
    """Return the row at which the floor begins in a frame, from the light of its rows; None without a floor."""
    ratio_H = light_H[FLOOR_ROWS:] / np.maximum(light_H[:-FLOOR_ROWS], 1e-6)
    row = int(np.argmin(ratio_H))
    if ratio_H[row] >= FLOOR_DROP:
        return None
    # Where the light passes the mean of both sides.
    edge_H = light_H[row : row + FLOOR_ROWS + 1]
    below = np.flatnonzero(edge_H < (edge_H[0] + edge_H[-1]) / 2)[0]
    share = (edge_H[below - 1] - (edge_H[0] + edge_H[-1]) / 2) / (edge_H[below - 1] - edge_H[below])
    return float(row + below - 0.5 + share)


def _log_zoom(rows_TH: Float32Array, room: Room, camera: CameraPath) -> float | None:
    """Return the logarithm of the magnification in the middle of a clip: by the floor if it is seen, else the shade."""
    n_frames, height = rows_TH.shape
    relative_T = camera.positions(n_frames)[:, 1]
    floors = [floor_row(light_H) for light_H in rows_TH]
    seen = [
        (floor - height / 2) / relative
        for floor, relative in zip(floors, relative_T.tolist(), strict=True)
        if floor is not None
    ]
    ratio = float(np.median(seen)) / ((room.half_y - FLOOR_HEIGHT) * room.unit_px) if seen else 0.0
    if len(seen) >= n_frames / 2 and ratio > 0.2:
        return math.log(ratio)
    heights, lights = [], []
    for light_H, floor, relative in zip(rows_TH, floors, relative_T, strict=True):
        end = height if floor is None else max(0, int(floor) - FLOOR_ROWS)
        heights.append((np.arange(height)[:end] + 0.5 - height / 2) / (room.unit_px * relative))
        lights.append(light_H[:end])
    y, light = np.concatenate(heights), np.concatenate(lights)
    if len(y) < MIN_WALL * room.unit_px * n_frames:
        return None
    slope, at_centre = np.polyfit(y, light, 1)
    ratio = slope / at_centre * SHADE_AT_CENTRE / SHADE_SLOPE
    return -math.log(ratio) if ratio > 0.2 else None


@dataclass(frozen=True, eq=False)
class _Fit:
    """Light of the columns and its weights, and the correlation of cameras with it."""

    values_TW: Float64Array
    weights_TW: Float64Array
    part_T: Float64Array
    unit_px: float

    @classmethod
    def of(cls, light_TW: Float32Array, unit_px: float) -> _Fit | None:
        known_TW = np.isfinite(light_TW)
        if known_TW.mean() < MIN_COLUMNS:
            return None
        values_TW = np.where(known_TW, light_TW, 0).astype(np.float64)
        weights_TW = known_TW.astype(np.float64)
        means_T1 = values_TW.sum(1, keepdims=True) / np.maximum(weights_TW.sum(1, keepdims=True), 1)
        return cls((values_TW - means_T1) * weights_TW, weights_TW, _parts(len(light_TW)), unit_px)

    def thinned(self) -> _Fit:
        """Return the fit to a few frames, the first and the last among them."""
        n_frames = len(self.part_T)
        kept = np.unique(np.linspace(0, n_frames - 1, min(n_frames, MAX_SEARCH_FRAMES)).round().astype(int))
        return replace(self, values_TW=self.values_TW[kept], weights_TW=self.weights_TW[kept], part_T=self.part_T[kept])

    def correlations(self, cameras_N4: Float64Array) -> Float64Array:
        """Return the correlation `[N]` of the stripes that each camera (phase, period, pan, log zoom change) sees."""
        results = []
        for chunk_N4 in np.array_split(cameras_N4, max(1, len(cameras_N4) // 256)):
            model_NTW = self._stripes(chunk_N4)
            sums_NT = np.einsum("ntw,tw->nt", model_NTW, self.weights_TW)
            means_NT = sums_NT / np.maximum(self.weights_TW.sum(-1), 1)
            model_NTW = (model_NTW - means_NT[:, :, None]) * self.weights_TW
            products = np.einsum("ntw,tw->n", model_NTW, self.values_TW)
            norms = np.sqrt(np.einsum("ntw,ntw->n", model_NTW, model_NTW) * (self.values_TW**2).sum())
            results.append(products / np.maximum(norms, 1e-9))
        return np.concatenate(results)

    def _stripes(self, cameras_N4: Float64Array) -> Float32Array:
        """Return the stripes `[N, T, W]` that cameras see, from -1 to 1: a cosine clipped to edges of three pixels."""
        width = self.values_TW.shape[1]
        phase, period, pan, change = (cameras_N4[:, index, None, None].astype(np.float32) for index in range(4))
        part_T1 = self.part_T[:, None].astype(np.float32)
        scale_NT1 = self.unit_px * np.exp(change * part_T1)
        centred_W = (np.arange(width) + 0.5 - width / 2).astype(np.float32)
        wave = np.cos(2 * math.pi * ((centred_W / scale_NT1 + pan * part_T1) / period + phase))
        return np.asarray(np.clip(scale_NT1 * period / (3 * math.pi) * wave, -1, 1), np.float32)


def _best(fit: _Fit, cameras_N4: Float64Array, steps: tuple[float, float, float, float]) -> tuple[Float64Array, float]:
    """Return the best camera and its correlation: a pattern search from the best of these, with halving steps.

    A step of 0 keeps a value.
    """
    best = cameras_N4[int(np.argmax(fit.thinned().correlations(cameras_N4)))]
    best_score = float(fit.correlations(best[None])[0])
    moves_N4 = np.diag(steps)[np.array(steps) > 0]
    moves_N4 = np.concatenate([moves_N4, -moves_N4])
    for _ in range(MAX_SEARCH_STEPS):
        trials_N4 = best + moves_N4
        scores_N = fit.correlations(trials_N4)
        index = int(np.argmax(scores_N))
        if scores_N[index] > best_score:
            best, best_score = trials_N4[index], float(scores_N[index])
        elif np.abs(moves_N4).max() < 1e-3:
            break
        else:
            moves_N4 = moves_N4 / 2
    return best, best_score


def _grid(*axes: Float64Array) -> Float64Array:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _parts(n_frames: int) -> Float64Array:
    """Return the position of each frame in the clip, from -0.5 to 0.5."""
    return np.linspace(-0.5, 0.5, n_frames) if n_frames > 1 else np.zeros(1)
