"""Shapes of samples: whole latent frames, and those outside of training."""

from __future__ import annotations

import pytest

from training.sampling.settings import VideoShape
from training.sampling.shape import n_frames, outside_training


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(0, 8, 1), (1, 8, 9), (2, 8, 17), (2, 24, 49), (0.01, 8, 5), (2.3, 8, 21), (2.3, 10, 25)],
)
def test_lengths_are_whole_latent_frames(seconds: float, fps: float, frames: int) -> None:
    assert n_frames(seconds, fps, 4) == frames


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (VideoShape(9, 32, 48, 8.0), ""),
        (VideoShape(17, 32, 48, 8.0), "frames 17, trained on 1 to 9"),
        (VideoShape(9, 64, 96, 8.0), "pixels per frame 6144, trained on 1536 to 2304"),
        (VideoShape(9, 48, 32, 8.0), "width by height 0.67, trained on 1.0 to 1.5"),
    ],
)
def test_shapes_outside_training_are_named(shape: VideoShape, message: str) -> None:
    found = outside_training(shape, ("48x32x9", "48x32x1", "48x48x9"))
    assert found.endswith(message)
    assert bool(found) == bool(message)
