"""Clips of drawn footage at a model's size, with the state of every shape in their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.scenes.clips import fitting_grid, read_clip
from pipelines.scenes.stream import Stream
from pipelines.video.spans import FrameGrid
from training.evaluation.truth import FileTruth
from training.sampling.media import write_mp4

GRIDS = [FrameGrid(8, frames, width, height) for frames in (9, 17) for width, height in ((96, 56), (56, 96), (72, 72))]


def first_video(width: int, height: int) -> tuple[int, FileTruth]:
    """Return the first video of this size in the held-out stream: its index, and its truth."""
    files = (Stream(0, "held_out").file(index) for index in range(200))
    file = next(file for file in files if not file.is_image and (file.plan.width, file.plan.height) == (width, height))
    return file.index, file.truth(file.name)


@pytest.mark.slow
def test_a_clip_has_the_states_of_its_frames(tmp_path: Path) -> None:
    index, truth = first_video(168, 96)
    file = Stream(0, "held_out").file(index)
    frames = list(file.motion.frames(168, 96, file.backdrop))
    write_mp4(str(tmp_path / truth.file), frames, truth.fps)
    grid = fitting_grid(truth, truth.shots[0], GRIDS)
    assert grid is not None
    assert (grid.width, grid.height, grid.frames) == (96, 56, 17)
    clip = read_clip(str(tmp_path), truth, truth.shots[0], grid)
    step = round(truth.fps / 8)
    assert clip.frames_THWC.shape == (17, 56, 96, 3)
    assert np.array_equal(clip.states_TB3, truth.shots[0].states_FB3[: 16 * step + 1 : step])
    assert clip.room.unit_px == pytest.approx(56)
    assert clip.room.half_x == pytest.approx(168 / 96 / 2)
    middle = np.array([frame.mean() for frame in frames[: 16 * step + 1 : step]])
    assert np.abs(clip.frames_THWC.mean(axis=(1, 2, 3)) - middle).max() < 3


def test_shots_too_small_or_short_fit_nowhere() -> None:
    _, truth = first_video(96, 96)
    shot = truth.shots[0]
    assert fitting_grid(truth, shot, [FrameGrid(8, 17, 128, 128)]) is None
    assert fitting_grid(truth, shot, [FrameGrid(8, 801, 72, 72)]) is None
