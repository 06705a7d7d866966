"""Estimates, and metrics on drawn clips whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cluster import plugins
from tests.support.drawn_world import WORLD, drawn_clip, scene_of
from training.evaluation.metric import FOLDER, Case, Clip, MetricSettings, estimate

METRICS = {name: metric(name=name) for name, metric in plugins.classes(FOLDER, MetricSettings)}
FALL = scene_of("bounce", "still", "red star", "blue circle", seconds=3.125)
TRUE = ("number", "colours", "kinds", "background", "camera", "permanence", "walls")


def mean(name: str, clip: Clip) -> float:
    found = estimate([METRICS[name].cases(clip)])
    assert found is not None, f"{name} judged nothing"
    return found.mean


@pytest.mark.slow
def test_a_drawn_clip_keeps_the_laws_of_its_world() -> None:
    clip = drawn_clip(FALL)
    assert {name: mean(name, clip) for name in TRUE} == dict.fromkeys(TRUE, 1.0)
    assert mean("gravity", clip) == pytest.approx(WORLD.gravity, rel=0.05)
    assert mean("bounce", clip) == pytest.approx(WORLD.bounce, rel=0.05)
    assert mean("size_constancy", clip) < 0.01
    assert mean("colour_constancy", clip) < 4
    assert mean("spin", clip) < 0.01


@pytest.mark.slow
def test_faults_are_found() -> None:
    clip = drawn_clip(FALL)
    frames = clip.frames_THWC.copy()
    frames[12:14] = frames[0, :1, :1]
    vanished = replace(clip, frames_THWC=frames)
    assert mean("permanence", vanished) < 1
    assert clip.expected is not None
    other = clip.expected._replace(background="maroon", camera="zoom_in", bodies=(("red", "square"), ("pink", "star")))
    wrong = replace(clip, expected=other)
    assert {name: mean(name, wrong) for name in ("number", "background", "camera")} == {
        "number": 1.0,
        "background": 0.0,
        "camera": 0.0,
    }
    assert mean("colours", wrong) == 0.5
    assert mean("kinds", wrong) == 0.0
    # A film played at half the speed falls with a quarter of the acceleration.
    assert mean("gravity", replace(clip, fps=4.0)) == pytest.approx(WORLD.gravity / 4, rel=0.05)


@pytest.mark.slow
def test_shapes_that_collide_keep_momentum_and_energy() -> None:
    clip = drawn_clip(scene_of("collide", "still", "yellow triangle", "white circle", background="dark blue"))
    assert mean("solidity", clip) == 1.0
    for name, value in (("momentum", 0.0), ("energy", 1.0)):
        if cases := METRICS[name].cases(clip):
            assert np.average([case.value for case in cases]) == pytest.approx(value, abs=0.1)


def test_world_metrics_judge_nothing_outside_drawn_worlds() -> None:
    clip = Clip(np.zeros((3, 48, 64, 3), np.uint8), 8.0)
    of_worlds = [*TRUE, "gravity", "bounce", "momentum", "energy", "solidity", "spin", "size_constancy"]
    assert [name for name in of_worlds if METRICS[name].cases(clip)] == []


def test_an_estimate_weights_cases_and_resamples_clips() -> None:
    found = estimate([[Case(1.0, 3.0)], [], [Case(0.0), Case(0.0)]])
    assert found is not None
    assert found.mean == pytest.approx(0.6)
    assert (found.cases, found.clips) == (3, 2)
    assert (found.low, found.high) == (0.0, 1.0)
    assert estimate([[], []]) is None


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = estimate([[Case(float(value))] for value in rng.normal(size=30)])
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 86 <= covered <= 100


def moving_square(step_px: int, n_frames: int = 5) -> np.ndarray:
    """Return frames of a textured square that moves to the right."""
    texture = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 2)
    frames = np.full((n_frames, 48, 64, 3), 90, np.uint8)
    for index in range(n_frames):
        frames[index, 12:36, 8 + step_px * index : 32 + step_px * index] = texture
    return frames


def test_metrics_of_any_video_measure_motion_and_detail() -> None:
    still, moving = Clip(moving_square(0), 8.0), Clip(moving_square(3), 8.0)
    assert mean("flicker", still) == 1.0
    assert mean("flicker", moving) < 1.0
    assert mean("motion_amount", still) == pytest.approx(0, abs=0.01)
    assert mean("motion_amount", moving) == pytest.approx(3 * 8 / 48, rel=0.25)
    assert mean("motion_smoothness", still) == 1.0
    jumping = replace(moving, frames_THWC=moving.frames_THWC[[0, 3, 1, 4, 2]])
    assert mean("motion_smoothness", moving) > mean("motion_smoothness", jumping)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in still.frames_THWC])
    assert mean("sharpness", Clip(blurred, 8.0)) < mean("sharpness", still)
    assert mean("scene_consistency", still) == pytest.approx(1)
    inverted = still.frames_THWC.copy()
    inverted[2:] = 255 - inverted[2:]
    assert mean("scene_consistency", Clip(inverted, 8.0)) < 0.5
