"""Kind, centre, radius and angle of one visible shape, from how much of each pixel it covers.

Harmonic moments sum(a z^n) of the coverage a over pixels z = x + iy do not change when the frame is blurred evenly (a
harmonic function equals its mean over any circle), so soft frames are measured as sharp ones are. Divided by the area's
power they do not depend on size; n = 3 tells triangles, 4 squares, 5 stars. A turn by an angle multiplies them by
exp(i n angle), so those of a turning shape add up in step with its spin while errors cancel out (a periodogram).

Shape suffixes: T frames, O orders of moments, H rows, W columns, N corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Float32Array, Float64Array

ORDERS = (3, 4, 5)
SYMMETRY = {"circle": 0, "triangle": 3, "square": 4, "star": 5}
"""Number of turns of each kind that look the same in a full turn; 0 for a circle, whose angle cannot be seen."""
STAR_INNER_RADIUS = 0.45
GAIN = {"triangle": 2.0, "square": 1.0, "star": 3.5}
CIRCLE_SCORE = 0.27
"""Factors of the moments' strengths in the scores of kinds, and the score of a circle, which has none. Coding and
blurring round off the tips of stars first, and the grid of latents squares circles a little."""
MAX_MOMENT = 1.2
SPINS = np.linspace(-4, 4, 161)
"""Radians per second that are tried; drawn shapes turn by 1.2 to 2.4."""
EDGE_PX = 2.0
"""Width of a shape's edge in rendered coverage."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Area, centre and normalised moments of the coverage of a whole shape, in pixels."""

    area: float
    x: float
    y: float
    moments_O: NDArray[np.complex128]


@dataclass(frozen=True)
class ShapeFit:
    """A shape in a frame, in pixels, y down. `radius` is that of its circumscribed circle."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    """Radians, reduced to the kind's symmetry; 0 for a circle."""
    error: float = 0.0
    """Mean squared error of the coverage after a fit."""


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raise `ValueError` for a kind of shape whose form is not known here."""
    if unknown := [kind for kind in kinds if kind not in SYMMETRY]:
        raise ValueError(f"the world has shapes of kind {', '.join(unknown)}; forms are known of {', '.join(SYMMETRY)}")


def measure(weights_HW: Float32Array) -> Measure:
    """Return area, centre and moments of the coverage of one shape."""
    rows, columns = np.nonzero(weights_HW)
    weights = weights_HW[rows, columns].astype(np.float64)
    area = float(weights.sum())
    x, y = float((weights * (columns + 0.5)).sum() / area), float((weights * (rows + 0.5)).sum() / area)
    z = (columns + 0.5 - x) + 1j * (rows + 0.5 - y)
    return Measure(area, x, y, np.array([(weights * z**n).sum() / area ** (1 + n / 2) for n in ORDERS]))


def shape_of(measured: Measure, kind: str) -> ShapeFit:
    """Return the shape of a kind with the measured area, centre and direction."""
    n = SYMMETRY[kind]
    angle = 0.0
    if n:
        index = ORDERS.index(n)
        angle = float(np.angle(measured.moments_O[index] / unit_moments(kind)[index])) / n % (2 * math.pi / n)
    return ShapeFit(kind, measured.x, measured.y, math.sqrt(max(measured.area, 0.0) / unit_area(kind)), angle)


@dataclass(frozen=True)
class KindGuess:
    """The kind of a shape over a clip, and how fast it turns."""

    kind: str
    spin: float
    """Radians per second; 0 for a circle."""
    lead: float
    """Score of the kind over that of the next best; 1 is a draw."""


def guess_kind(measures: Sequence[Measure], times_s: Sequence[float], kinds: Sequence[str]) -> KindGuess:
    """Return the kind among these that the moments of a shape at some times agree with most, and its spin."""
    scores: dict[str, float] = {}
    spins: dict[str, float] = {}
    for kind in kinds:
        if SYMMETRY[kind] == 0:
            scores[kind], spins[kind] = CIRCLE_SCORE, 0.0
            continue
        index = ORDERS.index(SYMMETRY[kind])
        moments_T = np.array([one.moments_O[index] for one in measures]) / abs(unit_moments(kind)[index])
        # A frame in which another thing was taken for a part of the shape counts no more than a whole one.
        moments_T = moments_T / np.maximum(1, np.abs(moments_T) / MAX_MOMENT)
        turns = np.exp(-1j * SYMMETRY[kind] * SPINS[:, None] * np.array(times_s))
        strength = np.abs((turns * moments_T).mean(1))
        scores[kind], spins[kind] = float(strength.max()) * GAIN[kind], float(SPINS[int(strength.argmax())])
    first, *rest = sorted(scores, key=lambda kind: -scores[kind])
    return KindGuess(first, spins[first], scores[first] / max(scores[rest[0]], 1e-9) if rest else 1.0)


def fit(weights_HW: Float32Array, valid_HW: BoolArray, start: ShapeFit, free_radius: bool = False) -> ShapeFit:
    """Return the shape after fitting its rendered coverage to the observed one, where `valid_HW` is true.

    This finds a shape that the frame's edge or another shape covers in part, by damped Gauss-Newton. The radius stays
    that of `start` unless it is free.
    """
    window = _Window.around(weights_HW, valid_HW, start)
    names = ["x", "y"] + (["angle"] if SYMMETRY[start.kind] else []) + (["radius"] if free_radius else [])
    deltas = {"x": 0.2, "y": 0.2, "angle": 0.2 / start.radius, "radius": 0.2}
    best, rest = start, window.residual(start)
    error, damping = float(rest @ rest), 1e-2
    for _ in range(12):
        slopes = np.stack(
            [(window.residual(_moved(best, name, deltas[name])) - rest) / deltas[name] for name in names], axis=1
        )
        normal, gradient = slopes.T @ slopes, slopes.T @ rest
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-6), -gradient)
        trial = best
        for name, value in zip(names, step.tolist(), strict=True):
            trial = _moved(trial, name, value)
        if trial.radius < 1 or math.hypot(trial.x - start.x, trial.y - start.y) > 2 * start.radius:
            break
        trial_rest = window.residual(trial)
        trial_error = float(trial_rest @ trial_rest)
        if trial_error < error:
            best, rest, damping = trial, trial_rest, damping / 3
            done, error = error - trial_error < 1e-4 * error, trial_error
            if done:
                break
        else:
            damping *= 8
    period = 2 * math.pi / SYMMETRY[best.kind] if SYMMETRY[best.kind] else 1.0
    return replace(best, angle=best.angle % period if SYMMETRY[best.kind] else 0.0, error=error / max(len(rest), 1))


def render(shape: ShapeFit, x_W: Float64Array, y_H: Float64Array) -> Float64Array:
    """Return the coverage `[H, W]` of pixels with these centres."""
    dx_HW, dy_HW = np.broadcast_arrays(x_W[None, :] - shape.x, y_H[:, None] - shape.y)
    distance_HW = _signed_distance(shape, dx_HW, dy_HW)
    return np.clip(0.5 - distance_HW / EDGE_PX, 0, 1)


@cache
def unit_area(kind: str) -> float:
    """Return the area of a shape of radius 1."""
    if kind == "circle":
        return math.pi
    corners = corners_of(kind)
    return float(abs((corners * np.roll(corners, -1, 0)[:, ::-1] * [1, -1]).sum()) / 2)


@cache
def corners_of(kind: str) -> Float64Array:
    """Return the corners `[N, 2]` of a shape of radius 1 at angle 0, y down; a square lies on its side."""
    n = {"square": 4, "triangle": 3, "star": 10}[kind]
    angles = np.arange(n) * 2 * np.pi / n - np.pi / 2 + (np.pi / 4 if kind == "square" else 0.0)
    radii = np.where(np.arange(n) % 2, STAR_INNER_RADIUS, 1.0) if kind == "star" else np.ones(n)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


@dataclass(frozen=True, eq=False)
class _Window:
    """Coverage and validity of the pixels around a shape."""

    x_W: Float64Array
    y_H: Float64Array
    weights_HW: Float64Array
    valid_HW: BoolArray

    @classmethod
    def around(cls, weights_HW: Float32Array, valid_HW: BoolArray, shape: ShapeFit) -> _Window:
        height, width = weights_HW.shape
        reach = 1.6 * shape.radius + 3
        x0, x1 = (int(np.clip(shape.x + side * reach, 0, width)) for side in (-1, 1))
        y0, y1 = (int(np.clip(shape.y + side * reach, 0, height)) for side in (-1, 1))
        rows, columns = slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))
        x_W, y_H = pixel_centres(width)[columns], pixel_centres(height)[rows]
        weights = np.clip(weights_HW[rows, columns], 0, 1).astype(np.float64)
        return cls(x_W, y_H, weights, valid_HW[rows, columns])

    def residual(self, shape: ShapeFit) -> Float64Array:
        return np.asarray((render(shape, self.x_W, self.y_H) - self.weights_HW)[self.valid_HW], np.float64)


def pixel_centres(n_pixels: int) -> Float64Array:
    """Return the coordinates of the centres of a row of pixels, from 0.5."""
    return np.arange(n_pixels, dtype=np.float64) + 0.5


def _moved(shape: ShapeFit, name: str, by: float) -> ShapeFit:
    return replace(shape, **{name: getattr(shape, name) + by})


@cache
def unit_moments(kind: str) -> tuple[complex, ...]:
    """Return the moments of a shape at angle 0, one for each of `ORDERS`."""
    side = pixel_centres(400)
    coverage = render(ShapeFit(kind, 200.0, 200.0, 190.0, 0.0), side, side)
    return tuple(measure(coverage.astype(np.float32)).moments_O.tolist())


def _signed_distance(shape: ShapeFit, dx_HW: Float64Array, dy_HW: Float64Array) -> Float64Array:
    """Return the distance in pixels to a shape's edge, negative inside."""
    if shape.kind == "circle":
        return np.hypot(dx_HW, dy_HW) - shape.radius
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    u_HW, v_HW = (dx_HW * cos + dy_HW * sin) / shape.radius, (dy_HW * cos - dx_HW * sin) / shape.radius
    corners = corners_of(shape.kind)
    squared_HW, inside_HW = np.full(u_HW.shape, np.inf), np.zeros(u_HW.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along_HW = np.clip(((u_HW - ax) * ex + (v_HW - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        squared_HW = np.minimum(squared_HW, (u_HW - ax - along_HW * ex) ** 2 + (v_HW - ay - along_HW * ey) ** 2)
        # Even-odd rule: a ray to the right crosses this edge.
        crosses_HW = ((ay > v_HW) != (by > v_HW)) & (u_HW < ex * (v_HW - ay) / (ey if ey else 1.0) + ax)
        inside_HW ^= crosses_HW
    return np.asarray(np.where(inside_HW, -1, 1) * np.sqrt(squared_HW) * shape.radius, np.float64)
