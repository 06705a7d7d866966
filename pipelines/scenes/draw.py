"""Drawing of one frame of a scene in numpy: a shaded background with a floor, and a few large antialiased shapes.

World units: at zoom 1 the short side of the frame is 1 long; the origin is at the frame's centre, and y points down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from cluster.arrays import Float32Array, Float64Array, Pixels

Kind = Literal["circle", "square", "triangle", "star"]

KINDS: tuple[Kind, ...] = ("circle", "square", "triangle", "star")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "orange": (250, 135, 20),
    "yellow": (250, 215, 40),
    "green": (30, 165, 65),
    "blue": (35, 85, 225),
    "purple": (140, 50, 180),
    "pink": (245, 95, 165),
    "white": (250, 250, 250),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "light blue": (160, 210, 245),
    "cream": (248, 236, 205),
    "mint green": (175, 235, 200),
    "lavender": (210, 195, 240),
    "dark blue": (20, 30, 75),
    "dark green": (15, 60, 45),
    "dark grey": (52, 54, 60),
    "maroon": (85, 20, 40),
}

SHADOW = 0.3
"""Share of the floor's light that the shadow of a shape takes away that touches the floor."""


@dataclass
class Body:
    """A shape and its state: centre, velocity per second, radius of its circumscribed circle, angle in radians."""

    kind: Kind
    colour: str
    radius: float
    x: float = 0.0
    y: float = 0.0
    vx: float = 0.0
    vy: float = 0.0
    angle: float = 0.0
    spin: float = 0.0


@dataclass(frozen=True)
class Camera:
    """The view: the world point at the frame's centre, and the magnification."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0


@dataclass(frozen=True)
class Backdrop:
    """What stays the same behind the shapes of a shot, and the light on them."""

    background: str
    """Name of the colour of the wall."""
    floor_y: float | None = None
    """Height of the floor; None draws no floor."""
    stripe_width: float = 0.5
    """Width of the wall's pale stripes. Without stripes, a pan over a plain wall could not be seen."""
    stripe_shift: float = 0.0
    """Distance by which the stripes are moved to the left."""
    light_lean: float = 0.0
    """Tangent of the angle of the light: 0 comes from above, -1 from the upper left."""
    shadows: bool = False
    """Whether shapes cast a soft shadow on the floor, darker the lower they are."""


def draw(width: int, height: int, backdrop: Backdrop, bodies: Sequence[Body], camera: Camera) -> Pixels:
    """Return one frame, uint8 `[height, width, 3]`. Later bodies cover earlier ones."""
    scale = min(width, height) * camera.zoom
    x_W, y_H = _world_coordinates(width, height, camera)
    canvas = _background(width, height, backdrop, camera).copy()
    if backdrop.shadows and backdrop.floor_y is not None:
        for body in bodies:
            _draw_shadow(canvas, x_W, y_H, body, backdrop.floor_y)
    for body in bodies:
        _draw_body(canvas, x_W, y_H, body, scale, backdrop.light_lean)
    return np.asarray(np.clip(canvas + 0.5, 0, 255), np.uint8)


def _world_coordinates(width: int, height: int, camera: Camera) -> tuple[Float32Array, Float32Array]:
    """Return the world coordinates of a frame's columns and rows, `[W]` and `[H]`."""
    scale = min(width, height) * camera.zoom
    x_W = ((np.arange(width) + 0.5 - width / 2) / scale + camera.x).astype(np.float32)
    y_H = ((np.arange(height) + 0.5 - height / 2) / scale + camera.y).astype(np.float32)
    return x_W, y_H


@lru_cache(maxsize=1)
def _background(width: int, height: int, backdrop: Backdrop, camera: Camera) -> Float32Array:
    """Return the empty scene `[height, width, 3]`, which is the same in all frames of a camera that stays still."""
    scale = min(width, height) * camera.zoom
    x_W, y_H = _world_coordinates(width, height, camera)
    base = np.array(BACKGROUNDS[backdrop.background], np.float32)
    # Lighter above, darker below, and stripes fixed to the world.
    shade_H = np.interp(y_H, [-1, 1], [1.12, 0.82]).astype(np.float32)
    if backdrop.floor_y is not None:
        below_H = np.clip((y_H - backdrop.floor_y) * scale + 0.5, 0, 1)
        shade_H = shade_H * (1 - 0.38 * below_H)
    phase_W = np.abs(((x_W + backdrop.stripe_shift) / backdrop.stripe_width) % 2 - 1)
    stripes_W = 1 + 0.09 * np.clip((phase_W - 0.5) * backdrop.stripe_width * scale, -0.5, 0.5)
    return np.asarray(shade_H[:, None, None] * stripes_W[None, :, None] * base, np.float32)


def _draw_shadow(canvas: Float32Array, x_W: Float32Array, y_H: Float32Array, body: Body, floor_y: float) -> None:
    """Darken the floor of the canvas `[H, W, 3]` below a body, in place: a soft ellipse that fades with its height."""
    height = max(0.0, floor_y - body.y - body.radius)
    half_width, half_depth = body.radius * (1 + 0.5 * height), 0.03
    left, right = np.searchsorted(x_W, [body.x - half_width, body.x + half_width])
    top, bottom = np.searchsorted(y_H, [floor_y, floor_y + 2 * half_depth])
    dx_W = (x_W[left:right] - body.x) / half_width
    dy_H = (y_H[top:bottom] - floor_y - half_depth) / half_depth
    softness = np.clip(1 - dx_W[None, :] ** 2 - dy_H[:, None] ** 2, 0, 1)
    canvas[top:bottom, left:right] *= 1 - (SHADOW / (1 + 3 * height)) * softness[..., None]


def _draw_body(
    canvas: Float32Array, x_W: Float32Array, y_H: Float32Array, body: Body, scale: float, light_lean: float
) -> None:
    """Draw a body over the canvas `[H, W, 3]`, in place. `scale` is pixels per world unit."""
    margin = body.radius + 2 / scale
    left, right = np.searchsorted(x_W, [body.x - margin, body.x + margin])
    top, bottom = np.searchsorted(y_H, [body.y - margin, body.y + margin])
    if left == right or top == bottom:
        return
    dx, dy = x_W[None, left:right] - body.x, y_H[top:bottom, None] - body.y
    cos, sin = np.cos(body.angle), np.sin(body.angle)
    u, v = (dx * cos + dy * sin) / body.radius, (dy * cos - dx * sin) / body.radius
    distance = _distance(body.kind, np.asarray(u, np.float32), np.asarray(v, np.float32)) * (body.radius * scale)
    opacity = np.clip(0.5 - distance, 0, 1)[..., None]
    # Lit from above: a tenth brighter towards the light, darker away from it and along the rim.
    down = (dy + light_lean * dx) / math.hypot(1, light_lean)
    light = 1.0 - 0.12 * np.clip(down / body.radius, -1, 1)
    rim = 1.0 - 0.3 * np.clip(distance + 2.5, 0, 1)
    colour = np.minimum((light * rim)[..., None] * np.array(COLOURS[body.colour], np.float32), 255)
    window = canvas[top:bottom, left:right]
    window += opacity * (colour - window)


def _distance(kind: Kind, u: Float32Array, v: Float32Array) -> Float32Array:
    """Return the signed distance to the edge in radii, negative inside."""
    if kind == "circle":
        return np.asarray(np.hypot(u, v) - 1, np.float32)
    corners = polygon(kind)
    nearest = np.full(np.broadcast_shapes(u.shape, v.shape), np.inf, np.float32)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (u - ax - along * ex) ** 2 + (v - ay - along * ey) ** 2)
        # Even-odd rule: a ray to the right crosses this edge.
        inside ^= ((ay > v) != (by > v)) & (u < ex * (v - ay) / (ey if ey else 1.0) + ax)
    return np.asarray(np.where(inside, -1, 1) * np.sqrt(nearest), np.float32)


@cache
def polygon(kind: Kind) -> Float64Array:
    """Return the corners `[n, 2]` on the unit circle, the first at the top; a star has inner corners at radius 0.45."""
    n = {"square": 4, "triangle": 3, "star": 10}[kind]
    rotation = np.pi / 4 if kind == "square" else 0.0
    angles = np.arange(n) * 2 * np.pi / n - np.pi / 2 + rotation
    radii = np.where(np.arange(n) % 2, 0.45, 1.0) if kind == "star" else np.ones(n)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
