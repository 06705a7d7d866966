"""Names of camera motions, and cut-ins with their scale."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.arrays import Float64Array, UInt8Array
from pipelines.video.camera import CameraMotion, camera_motion, cut_in
from pipelines.video.decode import read_frames
from pipelines.video.motion import PairMotion
from tests.support.images import blots, camera_view, motions_of

FPS = 12


def camera_of(views: list[dict[str, float]], seed: int = 0) -> CameraMotion:
    """Return the name of the motion of a camera with these views of an image, one per frame."""
    image = blots(seed)
    return camera_motion(motions_of([camera_view(image, **view) for view in views], FPS), Fraction(1, FPS))


def shake(n: int, size: float, seed: int = 0) -> Float64Array:
    """Return the path `[n, 2]` of a hand that returns to where it was again and again."""
    steps = np.random.default_rng(seed).normal(0, size, (n, 2))
    return np.diff(np.vstack([[0, 0], steps]), axis=0).cumsum(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_camera_motions_by_name(seed: int) -> None:
    times = np.arange(2 * FPS) / FPS - 1
    assert camera_of([{} for _ in times], seed) == "still"
    assert camera_of([{"x": 0.1 * t} for t in times], seed) == "pan"
    assert camera_of([{"x": -0.03 * t} for t in times], seed) == "pan"
    assert camera_of([{"x": 0.02 * t, "y": 0.08 * t} for t in times], seed) == "tilt"
    assert camera_of([{"zoom": 1.25**t} for t in times], seed) == "zoom"
    assert camera_of([{"zoom": 0.85**t, "x": 0.01 * t} for t in times], seed) == "zoom"
    assert camera_of([{"x": x, "y": y} for x, y in shake(len(times), 0.01, seed)], seed) == "handheld"
    shaky_pan = [{"x": 0.1 * t + x, "y": y} for t, (x, y) in zip(times, shake(len(times), 0.004, seed), strict=True)]
    assert camera_of(shaky_pan, seed) == "pan"


def test_there_and_back_is_no_pan() -> None:
    there = np.arange(FPS) / FPS
    assert camera_of([{"x": 0.1 * t} for t in [*there, *there[::-1]]]) == "handheld"


def test_object_that_crosses_the_image_is_no_camera_motion() -> None:
    background, thing = blots(1)[:72, :128], blots(2)[:32, :40]
    images = []
    for k in range(20):
        image = background.copy()
        image[20:52, 4 * k : 4 * k + 40] = thing
        images.append(image)
    assert camera_motion(motions_of(images, FPS), Fraction(1, FPS)) == "still"


def test_no_motions_are_still_and_long_motions_weigh_more() -> None:
    assert camera_motion([], Fraction(1, 24)) == "still"
    motions = [PairMotion(0, 90, 0.2, pan=0.2), PairMotion(90, 100, 0.6, pan=-0.6)]
    assert camera_motion(motions, Fraction(1, 100)) == "pan"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "x", "y"), [(1.15, 0, 0), (1.3, 0.05, 0.02), (1.6, -0.1, 0), (2.2, 0.1, 0.1)])
def test_cut_in_is_found_with_its_scale(seed: int, scale: float, x: float, y: float) -> None:
    image = blots(seed)
    rng = np.random.default_rng(seed)
    enlarged = camera_view(image, x=x, y=y, zoom=scale) * 0.95 + rng.normal(0, 2, (72, 128))
    before, after = camera_view(image), np.clip(enlarged, 0, 255).astype(np.uint8)
    assert cut_in(before, after) == pytest.approx(scale, rel=0.05)
    # On signatures too, which are a quarter of the size.
    found = cut_in(*(cv2.resize(view, (32, 18), interpolation=cv2.INTER_AREA) for view in (before, after)))
    assert found is None or found == pytest.approx(scale, rel=0.2)


@pytest.mark.slow
def test_other_cuts_are_no_cut_in() -> None:
    images = [camera_view(blots(seed)) for seed in range(4)]
    for i, before in enumerate(images):
        assert cut_in(before, before) is None
        assert cut_in(before, camera_view(blots(i), x=0.02)) is None
        assert cut_in(before, camera_view(blots(i), zoom=0.7)) is None
        for j, after in enumerate(images):
            assert i == j or cut_in(before, after) is None
    flat = np.full((72, 128), 20, np.uint8)
    assert cut_in(flat, images[0]) is None
    assert cut_in(images[0], flat) is None
    assert cut_in(images[0], images[0][:64]) is None


def luma_images(path: Path) -> list[UInt8Array]:
    """Read luma of every frame at 128 x 72."""
    return [image for _, image in read_frames(str(path), 128, 72, "gray8")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cameras"),
    [
        ("hydraulic_press_832x480.mp4", {"still"}),
        ("mpeg4_832x480.mp4", {"still"}),
        ("carphone_pristine.mp4", {"handheld"}),
        ("short_1s_340x256.mp4", {"tilt", "pan", "handheld"}),
    ],
)
def test_camera_motion_of_footage_as_labelled(video_folder: Path, name: str, cameras: set[str]) -> None:
    motions = motions_of(luma_images(video_folder / name), 30)
    assert camera_motion(motions, Fraction(1, 30)) in cameras


@pytest.mark.slow
def test_frames_are_not_taken_for_parts_of_others(video_folder: Path) -> None:
    names = (
        "hydraulic_press_832x480.mp4",
        "mpeg4_832x480.mp4",
        "carphone_pristine.mp4",
        "short_1s_340x256.mp4",
        "nasa_320x180.mp4",
    )
    images = [luma_images(video_folder / name)[k] for name in names for k in (0, 25)]
    for i, before in enumerate(images):
        for j, after in enumerate(images):
            assert cut_in(before, after) is None, (names[i // 2], names[j // 2])
