"""Starts of shapes of the drawn world: apart, inside and in view."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.scenes.draw import KINDS, Body
from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, Action, Scene, half_sides
from pipelines.scenes.starts import MIN_SHARE_IN_VIEW, choose_motion, overlap, place_apart, shapes_in_view
from pipelines.scenes.stream import RADII, SIZES


def scene_of(n: int, action: Action, camera: str, rng: np.random.Generator) -> Scene:
    kinds = [KINDS[1], KINDS[0], KINDS[3]][:n]
    bodies = tuple(Body(kind, "red", float(rng.uniform(*RADII[n - 1]))) for kind in kinds)
    return Scene(action, camera, "cream", bodies, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "action"), list(itertools.product((1, 2, 3), ACTIONS)))
def test_starts_are_apart_and_inside(n: int, action: Action) -> None:
    rng = np.random.default_rng(n)
    for width, height in SIZES:
        scene = scene_of(n, action, "still", rng)
        bodies = place_apart(scene, width, height, rng)
        half_x, half_y = half_sides(width, height)
        assert not overlap(bodies)
        for body in bodies:
            assert abs(body.x) <= half_x - body.radius + 1e-6
            assert abs(body.y) <= half_y - body.radius + 1e-6
            assert body.radius > 0.09
        assert all(body.angle == 0 for body in scene.bodies), "the scene's own bodies do not change"


def test_shapes_stay_in_view_under_every_camera() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for camera, action in itertools.product(CAMERA_MOVES, ACTIONS):
        motion = choose_motion(scene_of(2, action, camera, rng), 112, 192, 8.0, rng)
        in_view_FB = shapes_in_view(motion, 112, 192)
        assert in_view_FB[0].all()
        shares.append(in_view_FB.mean(axis=0).min())
    assert np.mean(np.array(shares) >= MIN_SHARE_IN_VIEW) > 0.9
    far = scene_of(1, "glide", "pan_right", rng)
    assert shapes_in_view(choose_motion(far, 96, 96, 8.0, rng), 96, 96).shape == (16, 1)


def test_shapes_that_collide_meet_in_the_middle() -> None:
    rng = np.random.default_rng(1)
    for n in (2, 3):
        motion = choose_motion(scene_of(n, "collide", "still", rng), 168, 96, 24.0, rng)
        spread_F = motion.states_FB3[:, :, :2].std(axis=1).sum(axis=1)
        nearest = int(spread_F.argmin())
        assert 0 < nearest < 24, "within the first second"
        assert spread_F[nearest] < 0.7 * spread_F[0]
        assert spread_F[nearest] < 0.8 * spread_F[nearest:].max(), "they bounce apart"
