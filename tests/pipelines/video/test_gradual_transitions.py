"""Fades and dissolves: found with their spans, and the fitted ramp is the best of all."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.arrays import Float64Array
from pipelines.video.gradual_transitions import _fit_ramp
from pipelines.video.shot_boundaries import find_boundaries
from tests.support.frame_features import dissolve, draw_shot, fade, features_of


def transitions(frames: Float64Array) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of the boundaries found."""
    found = find_boundaries(features_of(frames), "signature", None, 0.2).boundaries
    return [(boundary.kind, boundary.start_pts, boundary.end_pts) for boundary in found]


@pytest.mark.parametrize("n", [6, 12, 20, 30])
@pytest.mark.parametrize("speed", [0.0, 0.1])
def test_dissolves_are_found_with_their_spans(n: int, speed: float) -> None:
    ((kind, start, end),) = transitions(dissolve(draw_shot(1, 60, speed), draw_shot(2, 60, speed), n))
    assert kind == "dissolve"
    assert (start, end) == pytest.approx((60 - n, 60), abs=1 + n // 10 if speed == 0 else 1 + n // 4)


@pytest.mark.parametrize("colour", [(16, 128, 128), (235, 128, 128), (81, 90, 240)])
@pytest.mark.parametrize(("n", "hold"), [(6, 0), (12, 5), (24, 30)])
def test_fade_is_one_boundary_around_the_plain_colour(colour: tuple[int, int, int], n: int, hold: int) -> None:
    ((kind, start, end),) = transitions(fade(draw_shot(1, 60), draw_shot(2, 60), colour, n, hold))
    assert kind == "fade"
    assert (start, end) == pytest.approx((60 - n, 60 + hold + n), abs=2)


def test_fades_at_the_ends_of_a_file() -> None:
    shot = draw_shot(1, 80)
    black = np.zeros_like(shot[:10]) + np.array([0, 128, 128])[:, None, None]
    frames = np.concatenate([black, fade(black[:1], shot, (0, 128, 128), 1, 8)[1:], black])
    found = transitions(frames)
    assert [kind for kind, _, _ in found] == ["fade", "fade"]
    assert (found[0][1], found[-1][2]) == (0, len(frames))


def test_letterbox_does_not_hide_a_fade() -> None:
    frames = fade(draw_shot(1, 60), draw_shot(2, 60), (235, 128, 128), 12, 4)
    frames[:, 0, :2] = frames[:, 0, -2:] = 16
    frames[:, 1:, :2] = frames[:, 1:, -2:] = 128
    ((kind, start, end),) = transitions(frames)
    assert (kind, start, end) == ("fade", pytest.approx(48, abs=2), pytest.approx(76, abs=2))


@pytest.mark.slow
@pytest.mark.parametrize(("start", "end"), [(5, 12), (20, 50), (30, 33)])
def test_fitted_ramp_is_the_best_of_all_ramps(start: int, end: int) -> None:
    t = np.arange(60.0)
    share = np.clip((t - start) / (end - start), 0, 1) + np.random.default_rng(start).normal(0, 0.02, 60)
    a, b, error = _fit_ramp(t, share, 0, 59, (start + end) // 2)

    def mean_square(i: int, j: int) -> float:
        ramp = np.clip((t - t[i]) / (t[j] - t[i]), 0, 1)
        design = np.stack([ramp, np.ones(60)], axis=1)
        return float(((design @ np.linalg.lstsq(design, share, rcond=None)[0] - share) ** 2).mean())

    best = min(((i, j) for i in range(59) for j in range(i + 1, 60)), key=lambda pair: mean_square(*pair))
    assert (a, b) == pytest.approx(best, abs=1)
    assert error == pytest.approx(mean_square(a, b), rel=1e-6)
