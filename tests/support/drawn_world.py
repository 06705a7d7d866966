"""The drawn world and clips of it, with the state of every shape, for tests of the tracker and of metrics."""

from __future__ import annotations

import numpy as np

from cluster.arrays import Pixels
from pipelines.scenes.draw import BACKGROUNDS, COLOURS, KINDS, Body
from pipelines.scenes.scene import BOUNCE, GRAVITY, Action, CameraMove, Scene, render
from training.evaluation.metric import Clip, Expected
from training.evaluation.truth import World

FPS = 8.0
WORLD = World(GRAVITY, BOUNCE, KINDS, COLOURS, BACKGROUNDS)


def drawn_frames(scene: Scene, width: int = 96, height: int = 56) -> Pixels:
    """Return the frames `[T, H, W, 3]` of a scene at 8 per second."""
    return np.stack(render(scene, width, height, FPS, (3,)))


def scene_of(
    action: Action, camera: CameraMove, *names: str, background: str = "cream", seconds: float = 2.125
) -> Scene:
    """Return a scene with shapes of radius 0.2 named by colour and kind: 'red star'."""
    pairs = [name.split() for name in names]
    bodies = tuple(Body(kind, colour, 0.2) for colour, kind in pairs)  # type: ignore[arg-type]
    return Scene(action, camera, background, bodies, seconds)


def drawn_clip(scene: Scene, width: int = 96, height: int = 56) -> Clip:
    """Return a clip of a scene with what its caption says."""
    names = tuple((body.colour, str(body.kind)) for body in scene.bodies)
    expected = Expected(scene.background, scene.action, scene.camera, names)
    return Clip(drawn_frames(scene, width, height), FPS, WORLD, expected)
