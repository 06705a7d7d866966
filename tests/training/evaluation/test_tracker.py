"""The tracker on drawn clips, sharp and blurred."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest

from pipelines.scenes.draw import BACKGROUNDS
from pipelines.scenes.scene import Scene, advance, camera_at, set_start
from tests.support.drawn_world import FPS, WORLD, drawn_frames, scene_of
from training.evaluation.segmentation import find_background
from training.evaluation.tracker import track

SCENES = [
    scene_of("bounce", "still", "red star", "blue circle"),
    scene_of("collide", "pan_left", "yellow triangle", "white square", background="dark blue"),
    scene_of("glide", "zoom_in", "green square", "purple star"),
    scene_of("circle", "zoom_out", "orange triangle", "pink circle", background="dark green"),
    scene_of("glide", "pan_right", "yellow star", background="maroon"),
]
"""Every action, camera move and form. Each clip is drawn once for all tests."""


def states_of(scene: Scene, n_frames: int) -> np.ndarray:
    """Return the centres `[T, bodies, 2]` of the bodies of `drawn_frames`, which are simulated with the same seed."""
    bodies = [copy.copy(body) for body in scene.bodies]
    half_x, half_y = 96 / 56 / 2, 0.5
    set_start(bodies, scene.action, half_x, half_y, np.random.default_rng([3]))
    bottom = half_y - 0.12 if scene.action == "bounce" else half_y
    states = []
    for _ in range(n_frames):
        states.append([(body.x, body.y) for body in bodies])
        for _ in range(30):
            advance(bodies, scene.action, half_x, bottom, -half_y, 1 / FPS / 30)
    return np.array(states)


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.action}-{scene.camera}")
def test_everything_in_a_drawn_clip_is_found(scene: Scene) -> None:
    frames = drawn_frames(scene)
    found = track(frames, FPS, WORLD)
    assert found.background == scene.background
    assert found.camera.is_seen
    assert found.camera.move == scene.camera
    assert {(body.colour, body.kind) for body in found.bodies} == {(body.colour, body.kind) for body in scene.bodies}
    ratio = camera_at(scene.camera, 1).zoom / camera_at(scene.camera, 0).zoom
    assert np.exp(found.camera.log_zoom_change) == pytest.approx(ratio, rel=0.06)
    states = states_of(scene, len(frames))
    for index, body in enumerate(scene.bodies):
        one = next(one for one in found.bodies if one.colour == body.colour)
        assert one.is_placed.mean() > 0.85
        error = found.world_xy(one) - states[:, index]
        error[:, 0] -= np.nanmedian(error[:, 0]) if "pan" in scene.camera else 0
        assert np.nanmedian(np.abs(error)) < 0.006
        assert np.nanmax(np.abs(error)) < 0.04


@pytest.mark.slow
def test_blurred_frames_are_measured_like_sharp_ones() -> None:
    frames = drawn_frames(SCENES[0])
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in frames])
    sharp, found = track(frames, FPS, WORLD), track(soft, FPS, WORLD)
    assert {(body.colour, body.kind) for body in found.bodies} == {("red", "star"), ("blue", "circle")}
    for body in found.bodies:
        same = next(one for one in sharp.bodies if one.colour == body.colour)
        assert np.nanmedian(np.abs(body.y_T - same.y_T)) < 0.3


def test_a_blob_without_a_form_has_no_kind() -> None:
    frames = np.broadcast_to(np.array(WORLD.backgrounds["dark blue"], np.uint8), (4, 56, 96, 3)).copy()
    frames[:, 10:40, 40:46] = frames[:, 22:28, 30:60] = WORLD.colours["orange"]
    (body,) = track(frames, FPS, WORLD).bodies
    assert (body.colour, body.kind) == ("orange", None)
    assert body.is_whole.all()
    assert (body.x_T[0], body.y_T[0]) == pytest.approx((44, 25), abs=1.5)


def test_an_empty_room_has_no_shapes() -> None:
    frames = np.repeat(np.array(WORLD.backgrounds["mint green"], np.uint8)[None, None, None], 4, 0)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (4, 48, 64, 3)))
    found = track(frames, FPS, WORLD)
    assert found.background == "mint green"
    assert found.bodies == ()
    assert not found.camera.is_seen


def test_noise_is_no_background_of_the_world() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3)).astype(np.uint8)
    found = track(frames, FPS, WORLD)
    assert (found.background, found.bodies) == (None, ())


def test_black_columns_of_a_dark_background_divide_nothing() -> None:
    frames = np.full((3, 56, 96, 3), BACKGROUNDS["dark green"], np.uint8)
    frames[:, :, 20:40] = 0
    background = find_background(frames, WORLD)
    assert background is not None
    assert np.isfinite(background.image_THWC).all()


def test_frames_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[T, H, W, 3\]"):
        track(np.zeros((4, 48, 64), np.uint8), FPS, WORLD)
