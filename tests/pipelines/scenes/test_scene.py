"""Drawn scenes: shapes, motion and captions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cluster.arrays import Float64Array
from pipelines.scenes.draw import COLOURS, KINDS, Backdrop, Body, Camera, Kind, draw, polygon
from pipelines.scenes.scene import (
    ACTIONS,
    CAMERA_MOVES,
    Scene,
    advance,
    backgrounds_for,
    body_name,
    camera_at,
    choose_background,
    choose_bodies,
    collide,
    render,
)


def coverage(kind: Kind, side: int = 200, radius: float = 0.4, angle: float = 0.0) -> float:
    """Return the share of a square frame that a shape covers, by the pixels that it changes."""
    empty = draw(side, side, Backdrop("dark blue"), [], Camera()).astype(float)
    body = Body(kind, "yellow", radius, angle=angle)
    full = draw(side, side, Backdrop("dark blue"), [body], Camera()).astype(float)
    return float((np.abs(full - empty).max(axis=-1) > 40).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_shapes_have_their_area(kind: Kind, angle: float) -> None:
    if kind == "circle":
        area = np.pi
    else:
        x, y = polygon(kind).T
        area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    assert coverage(kind, angle=angle) == pytest.approx(area * 0.4**2, rel=0.03)


def test_edges_are_antialiased() -> None:
    frame = draw(100, 100, Backdrop("dark blue"), [Body("circle", "white", 0.3)], Camera()).astype(int)
    reds = np.unique(frame[50, :, 0])
    assert len(reds) >= 5


def test_camera_moves_and_scales_the_view() -> None:
    body = [Body("circle", "white", 0.15)]

    def centre(camera: Camera) -> tuple[float, float]:
        bright = draw(200, 100, Backdrop("dark blue"), body, camera).min(axis=-1) > 150
        return float(np.nonzero(bright)[1].mean()), float(np.sqrt(bright.sum()))

    middle, size = centre(Camera())
    assert middle == pytest.approx(99.5, abs=0.5)
    assert centre(Camera(x=0.2))[0] == pytest.approx(99.5 - 20, abs=1)
    assert centre(Camera(zoom=1.5))[1] == pytest.approx(1.5 * size, rel=0.05)
    assert camera_at("pan_right", 0).x < camera_at("pan_right", 1).x
    assert camera_at("zoom_in", 0).zoom < camera_at("zoom_in", 1).zoom == pytest.approx(camera_at("zoom_out", 0).zoom)


def test_collisions_keep_momentum_and_energy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = Body("circle", "red", *rng.uniform(0.1, 0.3, 1), x=0.0, vx=rng.uniform(0, 1), vy=rng.uniform(-1, 1))
        b = Body("circle", "blue", *rng.uniform(0.1, 0.3, 1), x=0.15, y=rng.uniform(-0.1, 0.1), vx=rng.uniform(-1, 0))
        masses = np.array([a.radius, b.radius]) ** 2

        def totals(a: Body = a, b: Body = b, masses: Float64Array = masses) -> Float64Array:
            speeds = np.array([[a.vx, a.vy], [b.vx, b.vy]])
            return np.array([*(masses @ speeds), masses @ (speeds**2).sum(axis=1)])

        before = totals()
        collide(a, b)
        assert totals() == pytest.approx(before)
        separating = (b.vx - a.vx) * (b.x - a.x) + (b.vy - a.vy) * (b.y - a.y)
        assert separating >= -1e-12


@pytest.mark.parametrize("action", ["bounce", "collide", "glide"])
def test_shapes_stay_inside_and_keep_moving(action: str) -> None:
    bodies = [Body("circle", "red", 0.2, x=-0.4, vx=0.5, vy=-0.3), Body("square", "blue", 0.2, x=0.4, vx=-0.6)]
    for _ in range(1000):
        advance(bodies, action, 0.9, 0.5, -0.5, 1 / 240)  # type: ignore[arg-type]
        for body in bodies:
            assert abs(body.x) <= 0.9 - body.radius + 0.02
            assert abs(body.y) <= 0.5 - body.radius + 0.02
    assert max(np.hypot(body.vx, body.vy) for body in bodies) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("action", "camera"), list(itertools.product(ACTIONS, CAMERA_MOVES)))
def test_every_scene_moves_and_is_reproducible(action: str, camera: str) -> None:
    bodies = choose_bodies(np.random.default_rng(1), 2)
    background = choose_background(np.random.default_rng(1), bodies, None)
    scene = Scene(action, camera, background, bodies, 1.0)  # type: ignore[arg-type]
    frames = render(scene, 96, 64, 8, (0,))
    assert len(frames) == 8
    assert all(np.abs(a.astype(int) - b).mean() > 0.3 for a, b in itertools.pairwise(frames))
    assert np.array_equal(frames, render(scene, 96, 64, 8, (0,)))


def test_bodies_differ_stand_out_and_have_names() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 3) * 20:
        bodies = choose_bodies(rng, n)
        assert len({body.kind for body in bodies}) == len({body.colour for body in bodies}) == n
        assert bodies[0].kind != "circle"
        before = choose_background(rng, bodies, None)
        assert choose_background(rng, bodies, before) != before
    assert body_name(Body("star", "orange", 0.2)) == "an orange star"
    assert all(backgrounds_for([colour]) for colour in COLOURS)


def test_captions_and_clauses() -> None:
    pair = (Body("star", "red", 0.2), Body("circle", "orange", 0.2))
    scene = Scene("collide", "pan_left", "cream", pair, 2.0)
    predicate = (
        "fly towards each other, collide and bounce apart "
        "in front of a cream background while the camera pans to the left"
    )
    assert scene.caption == f"A red star and an orange circle {predicate}."
    assert scene.clause == f"they {predicate}"
    alone = Scene("bounce", "still", "cream", pair[:1], 2.0)
    assert (
        alone.caption
        == "A red star falls and bounces on the floor in front of a cream background while the camera stays still."
    )
