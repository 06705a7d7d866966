"""Starting states of the shapes of the drawn world: apart from each other, and in view for most of the shot."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from cluster.arrays import BoolArray
from pipelines.scenes.draw import Body
from pipelines.scenes.scene import Action, Motion, Scene, floor_of, half_sides, simulate

MIN_SHARE_IN_VIEW = 0.85
"""Share of the frames in which the centre of every shape is in view; it is in view in the first frame too."""
PLACINGS_PER_SIZE = 100
"""Random positions that are tried before shapes that overlap become smaller by a twentieth."""
MAX_ATTEMPTS = 50
"""Random starts that are tried for a shot; the best of them is taken if none is good enough."""
FALL_SHARE = 0.5
"""Smallest share of the room above the floor through which a shape falls."""


def choose_motion(scene: Scene, width: int, height: int, fps: float, rng: np.random.Generator) -> Motion:
    """Return the motion of a scene from a random start, in which every shape can be seen."""
    best, best_share = None, -1.0
    for _ in range(MAX_ATTEMPTS):
        motion = simulate(scene, place_apart(scene, width, height, rng), width, height, fps)
        in_view_FB = shapes_in_view(motion, width, height)
        share = float(in_view_FB.mean(axis=0).min()) * float(in_view_FB[0].all())
        if share > best_share:
            best, best_share = motion, share
        if share >= MIN_SHARE_IN_VIEW:
            break
    assert best is not None
    return best


def place_apart(scene: Scene, width: int, height: int, rng: np.random.Generator) -> list[Body]:
    """Return shapes with random starts that do not overlap. Shapes that have too little room become smaller."""
    bodies = [copy.copy(body) for body in scene.bodies]
    place(bodies, scene.action, width, height, rng)
    for attempt in itertools.count(1):
        if not overlap(bodies):
            break
        if attempt % PLACINGS_PER_SIZE == 0:
            for body in bodies:
                body.radius *= 0.95
        place(bodies, scene.action, width, height, rng)
    return bodies


def place(bodies: Sequence[Body], action: Action, width: int, height: int, rng: np.random.Generator) -> None:
    """Set random starting positions, angles and speeds for an action. Shapes may overlap."""
    half_x, half_y = half_sides(width, height)
    for body in bodies:
        body.angle = float(rng.uniform(0, 2 * np.pi))
        body.spin = float(rng.uniform(1.2, 2.4) * rng.choice([-1, 1])) if body.kind != "circle" else 0.0
    _PLACE[action](bodies, half_x, half_y, rng)


def _place_falling(bodies: Sequence[Body], half_x: float, half_y: float, rng: np.random.Generator) -> None:
    floor_y = floor_of("bounce", half_y)
    assert floor_y is not None
    for body in bodies:
        body.x = float(rng.uniform(body.radius - half_x, half_x - body.radius))
        top, bottom = body.radius - half_y, floor_y - body.radius
        body.y = float(rng.uniform(top, bottom - FALL_SHARE * (bottom - top)))
        body.vx, body.vy = float(rng.uniform(0.15, 0.45) * rng.choice([-1, 1])), 0.0


def _place_meeting(bodies: Sequence[Body], half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Place shapes around the middle, towards which all of them fly."""
    first, seconds = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.55, 0.9))
    for i, body in enumerate(bodies):
        angle = first + 2 * np.pi * i / len(bodies)
        body.x = (half_x - body.radius) * float(np.cos(angle))
        body.y = (half_y - body.radius) * float(np.sin(angle))
        aim_x, aim_y = rng.uniform(-0.04, 0.04, 2).tolist()
        body.vx, body.vy = (aim_x - body.x) / seconds, (aim_y - body.y) / seconds


def _place_gliding(bodies: Sequence[Body], half_x: float, half_y: float, rng: np.random.Generator) -> None:
    for body in bodies:
        body.x = float(rng.uniform(body.radius - half_x, half_x - body.radius))
        body.y = float(rng.uniform(body.radius - half_y, half_y - body.radius))
        speed, heading = float(rng.uniform(0.45, 0.75)), float(rng.uniform(0, 2 * np.pi))
        body.vx, body.vy = speed * float(np.cos(heading)), speed * float(np.sin(heading))


def _place_circling(bodies: Sequence[Body], half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Place the first shape in the middle, where it spins, and the others on a circle around it."""
    first = float(rng.uniform(0, 2 * np.pi))
    if len(bodies) > 1:
        bodies[0].radius = min(bodies[0].radius, 0.21)
    for i, body in enumerate(bodies[1:]):
        body.radius, body.spin = min(body.radius, 0.13), 0.0
        angle = first + 2 * np.pi * i / (len(bodies) - 1)
        body.x, body.y = 0.36 * float(np.cos(angle)), 0.36 * float(np.sin(angle))


_PLACE: dict[Action, Callable[[Sequence[Body], float, float, np.random.Generator], None]] = {
    "bounce": _place_falling,
    "collide": _place_meeting,
    "glide": _place_gliding,
    "circle": _place_circling,
}


def overlap(bodies: Sequence[Body]) -> bool:
    """Return whether the circumscribed circles of two shapes overlap."""
    return any(
        math.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius for i, a in enumerate(bodies) for b in bodies[i + 1 :]
    )


def shapes_in_view(motion: Motion, width: int, height: int) -> BoolArray:
    """Return for each frame and shape whether its centre is in the frame, `[F, B]`."""
    half_x, half_y = half_sides(width, height)
    camera_F3 = np.array([(camera.x, camera.y, camera.zoom) for camera in motion.cameras])
    offset_FB2 = np.abs(motion.states_FB3[:, :, :2] - camera_F3[:, None, :2]) * camera_F3[:, None, 2:]
    in_view_FB: BoolArray = (offset_FB2 < [half_x, half_y]).all(axis=-1)
    return in_view_FB
