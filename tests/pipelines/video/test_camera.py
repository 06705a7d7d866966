from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.arrays import Pixels
from pipelines.video.camera import camera_motion, cut_in
from pipelines.video.decode import read_frames
from pipelines.video.motion import Move
from tests.pipelines.video.test_motion import measured, texture, view

FPS = 12


def named(steps: list[dict[str, float]], seed: int = 0) -> str:
    picture = texture(seed)
    return camera_motion(measured([view(picture, **step) for step in steps], FPS), Fraction(1, FPS))


def shake(n: int, size: float, seed: int = 0) -> np.ndarray:
    """`[n, 2]`: a hand's path: back to where it was, again and again."""
    steps = np.random.default_rng(seed).normal(0, size, (n, 2))
    return np.diff(np.vstack([[0, 0], steps]), axis=0).cumsum(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_cameras_by_name(seed: int) -> None:
    times = np.arange(2 * FPS) / FPS - 1
    assert named([{} for _ in times], seed) == "still"
    assert named([{"x": 0.1 * t} for t in times], seed) == "pan"
    assert named([{"x": -0.03 * t} for t in times], seed) == "pan"
    assert named([{"x": 0.02 * t, "y": 0.08 * t} for t in times], seed) == "tilt"
    assert named([{"zoom": 1.25**t} for t in times], seed) == "zoom"
    assert named([{"zoom": 0.85**t, "x": 0.01 * t} for t in times], seed) == "zoom"
    assert named([{"x": x, "y": y} for x, y in shake(len(times), 0.01, seed)], seed) == "handheld"
    assert (
        named(
            [{"x": 0.1 * t + x, "y": y} for t, (x, y) in zip(times, shake(len(times), 0.004, seed), strict=True)], seed
        )
        == "pan"
    )


def test_there_and_back_is_no_pan() -> None:
    there = np.arange(FPS) / FPS
    assert named([{"x": 0.1 * t} for t in [*there, *there[::-1]]]) == "handheld"


def test_a_thing_that_crosses_the_picture_is_no_camera() -> None:
    background, thing = texture(1)[:72, :128], texture(2)[:32, :40]
    pictures = []
    for k in range(20):
        picture = background.copy()
        picture[20:52, 4 * k : 4 * k + 40] = thing
        pictures.append(picture)
    assert camera_motion(measured(pictures, FPS), Fraction(1, FPS)) == "still"


def test_no_moves_are_still_and_long_moves_weigh_more() -> None:
    assert camera_motion([], Fraction(1, 24)) == "still"
    moves = [Move(0, 90, 0.2, pan=0.2), Move(90, 100, 0.6, pan=-0.6)]
    assert camera_motion(moves, Fraction(1, 100)) == "pan"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "x", "y"), [(1.15, 0, 0), (1.3, 0.05, 0.02), (1.6, -0.1, 0), (2.2, 0.1, 0.1)])
def test_a_cut_in_is_found_with_its_scale(seed: int, scale: float, x: float, y: float) -> None:
    picture = texture(seed)
    rng = np.random.default_rng(seed)
    after = np.clip(view(picture, x=x, y=y, zoom=scale) * 0.95 + rng.normal(0, 2, (72, 128)), 0, 255).astype(np.uint8)
    assert cut_in(view(picture), after) == pytest.approx(scale, rel=0.05)
    # On signatures too, a quarter of the size.
    shrunk = [cv2.resize(image, (32, 18), interpolation=cv2.INTER_AREA) for image in (view(picture), after)]
    found = cut_in(*shrunk)
    assert found is None or found == pytest.approx(scale, rel=0.2)


def test_other_cuts_are_no_cut_in() -> None:
    pictures = [view(texture(seed)) for seed in range(4)]
    for i, before in enumerate(pictures):
        assert cut_in(before, before) is None
        assert cut_in(before, view(texture(i), x=0.02)) is None
        assert cut_in(before, view(texture(i), zoom=0.7)) is None
        for j, after in enumerate(pictures):
            assert i == j or cut_in(before, after) is None
    flat = np.full((72, 128), 20, np.uint8)
    assert cut_in(flat, pictures[0]) is None
    assert cut_in(pictures[0], flat) is None
    assert cut_in(pictures[0], pictures[0][:64]) is None


def lumas(path: Path) -> list[tuple[int, Pixels]]:
    return list(read_frames(str(path), 128, 72, "gray8"))


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
def test_real_footage_by_eye(real_videos: Path, name: str, cameras: set[str]) -> None:
    pictures = lumas(real_videos / name)
    assert camera_motion(measured([picture for _, picture in pictures], 30), Fraction(1, 30)) in cameras


@pytest.mark.slow
def test_real_pictures_are_not_taken_for_parts_of_others(real_videos: Path) -> None:
    names = (
        "hydraulic_press_832x480.mp4",
        "mpeg4_832x480.mp4",
        "carphone_pristine.mp4",
        "short_1s_340x256.mp4",
        "nasa_320x180.mp4",
    )
    pictures = [lumas(real_videos / name)[k][1] for name in names for k in (0, 25)]
    for i, before in enumerate(pictures):
        for j, after in enumerate(pictures):
            assert cut_in(before, after) is None, (names[i // 2], names[j // 2])
