from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from videos import sliding

from pipelines.video.luma import Floats, shrink
from pipelines.video.motion import MotionMeter, displacements


def luma(frames: np.ndarray) -> list[Floats]:
    return [shrink(frame[..., 0].astype(np.float32), 4) for frame in frames]


def measure(frames: np.ndarray, fps: int) -> tuple[float, float]:
    """(mean speed, share of frozen frames) of frames at a constant rate."""
    pictures = luma(frames)
    meter = MotionMeter(*pictures[0].shape, Fraction(1, fps))
    results = [meter.push(pts, picture) for pts, picture in enumerate(pictures)]
    return float(np.mean([move.speed for _, move in results if move])), float(np.mean([frozen for frozen, _ in results[1:]]))


@pytest.mark.parametrize("fps", [12, 24, 30, 60])
@pytest.mark.parametrize("speed", [0.04, 0.15, 0.5])
def test_a_pan_has_its_speed_at_any_frame_rate(fps: int, speed: float) -> None:
    frames = sliding(fps, speed * 256 / fps)
    assert measure(frames, fps)[0] == pytest.approx(speed, rel=0.15)


def test_a_portrait_pan_has_the_speed_of_its_long_side() -> None:
    frames = sliding(24, 0.2 * 256 / 24, width=144, height=256)
    assert measure(frames, 24)[0] == pytest.approx(0.2, rel=0.15)


def test_directions_do_not_cancel_out() -> None:
    """A camera that shakes left and right, and a zoom, have a mean flow of zero, and motion all the same."""
    there = sliding(13, 2.0)
    shaken = np.concatenate([there, there[::-1]])
    assert measure(shaken, 12)[0] == pytest.approx(2.0 * 12 / 256, rel=0.3)


def test_a_frozen_shot_has_no_motion() -> None:
    frames = np.repeat(sliding(1, 0), 20, axis=0)
    assert measure(frames, 24) == (0.0, 1.0)


def test_noise_and_brightness_are_no_motion() -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(sliding(1, 0), 20, axis=0).astype(float)
    assert measure(np.clip(still + rng.normal(0, 3, still.shape), 0, 255), 24)[0] < 0.005
    brighter = np.clip(still * 0.7 + 2 * np.arange(20)[:, None, None, None], 0, 255)
    assert measure(brighter, 24)[0] < 0.01


def test_every_second_frame_repeated_is_half_frozen() -> None:
    frames = np.repeat(sliding(11, 3.0), 2, axis=0)
    speed, frozen = measure(frames, 24)
    assert frozen == pytest.approx(11 / 21)
    assert speed == pytest.approx(3.0 * 12 / 256, rel=0.15)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (2, -3), (-4, 5), (6, 6), (-1, 0)])
def test_displacements_are_those_of_a_shifted_picture(dy: int, dx: int) -> None:
    big = luma(sliding(1, 0, width=512, height=320, seed=3))[0]
    before, after = big[16:56, 16:80], big[16 - dy : 56 - dy, 16 - dx : 80 - dx]
    found_dy, found_dx = displacements(before, after)
    # Blocks at the border see what was outside before.
    inner = (slice(1, -1), slice(1, -1))
    assert found_dy[inner] == pytest.approx(np.full((3, 6), dy), abs=0.25)
    assert found_dx[inner] == pytest.approx(np.full((3, 6), dx), abs=0.25)


def test_parts_of_a_pixel() -> None:
    frames = luma(sliding(2, 6.0))  # 1.5 pixels of the matching picture
    dy, dx = displacements(frames[0], frames[1])
    assert float(np.median(dx)) == pytest.approx(1.5, abs=0.3)
    assert float(np.abs(np.median(dy))) < 0.2


def test_only_the_block_that_moves_counts() -> None:
    still = np.full((36, 64), 60, np.float32)
    before, after = still.copy(), still.copy()
    before[12:18, 12:18] = 220
    after[12:18, 16:22] = 220
    dy, dx = displacements(before, after)
    assert np.count_nonzero(np.hypot(dy, dx)) <= 6
    assert float(np.hypot(dy, dx).max()) >= 3.5
