"""Scenes: the shapes and how they move, the motion of the camera, and the sentence that describes both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cluster.arrays import Float64Array, Pixels
from pipelines.scenes.draw import BACKGROUNDS, COLOURS, KINDS, Backdrop, Body, Camera, draw

Action = Literal["bounce", "collide", "glide", "circle"]
CameraMove = Literal["still", "pan_left", "pan_right", "zoom_in", "zoom_out"]

ACTIONS: tuple[Action, ...] = ("bounce", "collide", "glide", "circle")
CAMERA_MOVES: tuple[CameraMove, ...] = ("still", "pan_right", "zoom_in", "pan_left", "zoom_out")

GRAVITY = 2.4
"""Acceleration in short sides per second squared: a fall from the top takes about 0.8 s."""
BOUNCE = 0.92
"""Share of the speed that is kept at a bounce, so that shapes still bounce after four seconds."""
STEP_S = 1 / 240
"""Approximate time step of the simulation."""
MIN_CONTRAST = 170.0
"""Smallest distance in RGB between a shape and the background; yellow on cream has 166 and is hard to see."""


@dataclass(frozen=True)
class Scene:
    """A shot: everything that decides its frames, except the seed of `render`."""

    action: Action
    camera: CameraMove
    background: str
    bodies: tuple[Body, ...]
    seconds: float

    @property
    def clause(self) -> str:
        """Sentence without the names of the shapes: 'they fall and bounce ... while the camera stays still'."""
        return f"{_action_clause(self.action, len(self.bodies), None)} {self._setting}"

    @property
    def caption(self) -> str:
        """Whole sentence, with the names of the shapes."""
        names = [body_name(body) for body in self.bodies]
        sentence = f"{_action_clause(self.action, len(names), names)} {self._setting}."
        return sentence[0].upper() + sentence[1:]

    @property
    def _setting(self) -> str:
        move = {
            "still": "stays still",
            "pan_left": "pans to the left",
            "pan_right": "pans to the right",
            "zoom_in": "zooms in",
            "zoom_out": "zooms out",
        }
        return f"in front of a {self.background} background while the camera {move[self.camera]}"


def choose_bodies(rng: np.random.Generator, n: int) -> tuple[Body, ...]:
    """Return n shapes of different kinds and colours that all stand out on some background.

    The first is no circle, whose spin could not be seen.
    """
    kinds = rng.permutation(len(KINDS))
    if KINDS[kinds[0]] == "circle":
        kinds = np.roll(kinds, 1)
    colours = rng.permutation(list(COLOURS))[:n].tolist()
    while len(backgrounds_for(colours)) < 3:
        colours = rng.permutation(list(COLOURS))[:n].tolist()
    radii = rng.uniform(0.19, 0.25, n)
    return tuple(
        Body(KINDS[kind], str(colour), float(radius))
        for kind, colour, radius in zip(kinds[:n], colours, radii, strict=True)
    )


def backgrounds_for(colours: Sequence[str]) -> list[str]:
    """Return the backgrounds on which shapes of all these colours stand out."""
    return [
        name
        for name, rgb in BACKGROUNDS.items()
        if all(np.linalg.norm(np.subtract(COLOURS[c], rgb)) >= MIN_CONTRAST for c in colours)
    ]


def choose_background(rng: np.random.Generator, bodies: Sequence[Body], before: str | None) -> str:
    """Return another background on which every shape stands out, light after dark and dark after light if possible."""
    names = [
        name for name in rng.permutation(backgrounds_for([body.colour for body in bodies])).tolist() if name != before
    ]
    if before is not None:
        names.sort(key=lambda name: _is_dark(name) == _is_dark(before))
    return str(names[0])


@dataclass(frozen=True, eq=False)
class Motion:
    """The motion of a scene in each frame of a video, from which it is drawn."""

    bodies: tuple[Body, ...]
    """The shapes as they start; some actions make them smaller."""
    floor_y: float | None
    """Height of the floor, None without one."""
    states_FB3: Float64Array
    """x, y and angle of each shape."""
    cameras: tuple[Camera, ...]

    def frames(self, width: int, height: int, backdrop: Backdrop) -> Iterator[Pixels]:
        """Draw the frames one after another."""
        for camera, states_B3 in zip(self.cameras, self.states_FB3.tolist(), strict=True):
            bodies = [
                replace(body, x=x, y=y, angle=angle) for body, (x, y, angle) in zip(self.bodies, states_B3, strict=True)
            ]
            yield draw(width, height, backdrop, bodies, camera)


def render(scene: Scene, width: int, height: int, fps: float, seed: Sequence[int]) -> list[Pixels]:
    """Return all frames of a scene. `seed` decides the starting positions and speeds of the shapes."""
    bodies = [copy.copy(body) for body in scene.bodies]
    half_x, half_y = half_sides(width, height)
    set_start(bodies, scene.action, half_x, half_y, np.random.default_rng(list(seed)))
    motion = simulate(scene, bodies, width, height, fps)
    return list(motion.frames(width, height, Backdrop(scene.background, motion.floor_y)))


def half_sides(width: float, height: float) -> tuple[float, float]:
    """Return half the width and half the height of a frame in world units."""
    return width / min(width, height) / 2, height / min(width, height) / 2


def floor_of(action: Action, half_y: float) -> float | None:
    """Return the height of the floor of an action, None without one."""
    return half_y - 0.12 if action == "bounce" else None


def simulate(scene: Scene, start: Sequence[Body], width: int, height: int, fps: float) -> Motion:
    """Return the motion of a scene whose shapes start in these states, in a frame of these sides."""
    half_x, half_y = half_sides(width, height)
    floor_y = floor_of(scene.action, half_y)
    bodies = [copy.copy(body) for body in start]
    states, cameras = [], []
    n_frames = round(scene.seconds * fps)
    steps = max(1, round(1 / fps / STEP_S))
    for k in range(n_frames):
        states.append([(body.x, body.y, body.angle) for body in bodies])
        cameras.append(camera_at(scene.camera, k / max(1, n_frames - 1)))
        for _ in range(steps):
            advance(bodies, scene.action, half_x, floor_y if floor_y is not None else half_y, -half_y, 1 / fps / steps)
    states_FB3 = np.array(states, np.float64).reshape(n_frames, len(bodies), 3)
    return Motion(tuple(start), floor_y, states_FB3, tuple(cameras))


def camera_at(move: CameraMove, part: float) -> Camera:
    """Return the camera after this part of the shot, 0 to 1; it moves at constant speed."""
    across = 0.5 * part - 0.25
    if move == "pan_right":
        return Camera(x=across)
    if move == "pan_left":
        return Camera(x=-across)
    if move == "still":
        return Camera()
    return Camera(zoom=0.85 * (1.6 ** (part if move == "zoom_in" else 1 - part)))


def set_start(bodies: list[Body], action: Action, half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Set starting positions and speeds, for an action in a frame of this half width and half height."""
    n = len(bodies)
    upright = half_y > half_x
    for i, body in enumerate(bodies):
        spread = (i + 0.5) / n * 2 - 1
        side = -1 if i % 2 == 0 else 1
        body.spin = float(rng.uniform(1.2, 2.4) * side) if body.kind != "circle" else 0.0
        if action == "bounce":
            body.x, body.y = spread * (half_x - body.radius) * 0.9, -half_y + body.radius + float(rng.uniform(0, 0.15))
            body.vx, body.vy = float(rng.uniform(0.15, 0.4) * side), 0.0
        elif action == "collide":
            along, across = spread * 0.95, float(rng.uniform(-0.04, 0.04))
            speed = -np.sign(spread) * float(rng.uniform(0.5, 0.7)) if n > 1 else 0.6
            body.x, body.y = (
                (across, along * (half_y - body.radius)) if upright else (along * (half_x - body.radius), across)
            )
            body.vx, body.vy = (0.0, float(speed)) if upright else (float(speed), 0.0)
        elif action == "glide":
            body.x, body.y = (
                spread * (half_x - body.radius) * 0.8,
                float(rng.uniform(-0.5, 0.5)) * (half_y - body.radius),
            )
            heading = float(rng.uniform(0.3, 1.2)) * side + (np.pi if rng.random() < 0.5 else 0.0)
            body.vx, body.vy = 0.65 * float(np.cos(heading)), 0.65 * float(np.sin(heading))
        else:
            # The first one spins in the middle, and `advance` moves the others on a circle around it.
            body.x, body.y, body.spin = (0.0, 0.0, 1.8) if i == 0 else (0.0, -0.36, 0.0)
            if i > 0:
                body.radius = min(body.radius, 0.13)
                start = float(rng.uniform(0, 2 * np.pi)) + 2 * np.pi * i / max(1, n - 1)
                body.x, body.y = 0.36 * float(np.cos(start)), 0.36 * float(np.sin(start))


def advance(bodies: list[Body], action: Action, half_x: float, bottom: float, top: float, dt: float) -> None:
    """Advance the bodies by `dt` seconds: gravity, walls, and elastic collisions of discs with mass as their area.

    The integration is semi-implicit Euler.
    """
    for i, body in enumerate(bodies):
        body.angle += body.spin * dt
        if action == "circle":
            if i > 0:
                angle = 2.0 * dt
                cos, sin = np.cos(angle), np.sin(angle)
                body.x, body.y = float(body.x * cos - body.y * sin), float(body.x * sin + body.y * cos)
            continue
        if action == "bounce":
            body.vy += GRAVITY * dt
        body.x += body.vx * dt
        body.y += body.vy * dt
        keep = BOUNCE if action == "bounce" else 1.0
        body.x, body.vx = _wall(body.x, body.vx, -half_x + body.radius, half_x - body.radius, 1.0)
        body.y, body.vy = _wall(body.y, body.vy, top + body.radius, bottom - body.radius, keep)
    if action != "circle":
        for i, a in enumerate(bodies):
            for b in bodies[i + 1 :]:
                collide(a, b)


def collide(a: Body, b: Body) -> None:
    """Change the speeds of two bodies that touch as in an elastic collision of discs: momentum and energy are kept."""
    dx, dy = b.x - a.x, b.y - a.y
    distance = float(np.hypot(dx, dy))
    # A polygon reaches its circumscribed circle only at its corners; most of it is within 0.85 of the radius.
    touch = sum(body.radius * (1.0 if body.kind == "circle" else 0.85) for body in (a, b))
    if distance >= touch or distance == 0:
        return
    nx, ny = dx / distance, dy / distance
    approach = (a.vx - b.vx) * nx + (a.vy - b.vy) * ny
    if approach <= 0:
        return
    mass_a, mass_b = a.radius**2, b.radius**2
    impulse = 2 * approach / (mass_a + mass_b)
    a.vx, a.vy = a.vx - impulse * mass_b * nx, a.vy - impulse * mass_b * ny
    b.vx, b.vy = b.vx + impulse * mass_a * nx, b.vy + impulse * mass_a * ny


def _wall(position: float, speed: float, low: float, high: float, keep: float) -> tuple[float, float]:
    """Return position and speed after a reflection at a wall that was passed; `keep` is the share of the speed kept."""
    if position < low and speed < 0:
        return 2 * low - position, -speed * keep
    if position > high and speed > 0:
        return 2 * high - position, -speed * keep
    return position, speed


def _action_clause(action: Action, n: int, names: list[str] | None) -> str:
    """Return a clause on the motion of the shapes; without names they are 'it' or 'they'."""
    one = n == 1
    subject = ("it" if one else "they") if names is None else join_names(names)
    s = "s" if one else ""
    if action == "bounce":
        return f"{subject} fall{s} and bounce{s} on the floor"
    if action == "collide" and not one:
        return f"{subject} fly towards each other, collide and bounce apart"
    if action == "circle":
        if one:
            return f"{subject} spins in the middle"
        if names is None:
            return "the first spins in the middle and the other circles around it"
        return f"{names[0]} spins in the middle while {join_names(names[1:])} circles around it"
    return f"{subject} glide{s} through the picture and bounce{s} off its edges"


def body_name(body: Body) -> str:
    """Return colour and kind with an article: 'an orange star'."""
    return f"{'an' if body.colour[0] in 'aeiou' else 'a'} {body.colour} {body.kind}"


def still_caption(bodies: Sequence[Body], background: str) -> str:
    """Return the caption of a still image of shapes."""
    return f"A picture of {join_names([body_name(body) for body in bodies])} on a {background} background."


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence: 'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is_dark(background: str) -> bool:
    return sum(BACKGROUNDS[background]) < 3 * 100
