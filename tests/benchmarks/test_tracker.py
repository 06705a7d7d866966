"""The tracker's errors on a few files of the held-out stream, pinned."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from benchmarks.tracker import GRIDS, measure_errors
from pipelines.scenes.clips import DrawnClip, fitting_grid
from pipelines.scenes.stream import WORLD, Stream
from training.evaluation.camera import Room

INDICES = (0, 1, 2, 3, 4, 5)


def drawn_clips() -> Iterator[DrawnClip]:
    """Yield the starts of drawn files, scaled without coding them."""
    for index in INDICES:
        file = Stream(0, "held_out").file(index)
        truth = file.truth(file.name)
        grid = fitting_grid(truth, truth.shots[0], [grid for grid in GRIDS if grid.frames == 9])
        assert grid is not None
        step = round(truth.fps / grid.fps)
        chosen = slice(0, (grid.frames - 1) * step + 1, step)
        frames = list(file.motion.frames(truth.width, truth.height, file.backdrop))[chosen]
        scale = max(grid.width / truth.width, grid.height / truth.height)
        size = (max(grid.width, round(truth.width * scale)), max(grid.height, round(truth.height * scale)))
        left, top = (size[0] - grid.width) // 2, (size[1] - grid.height) // 2
        scaled = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
        video = np.stack([frame[top : top + grid.height, left : left + grid.width] for frame in scaled])
        shot = truth.shots[0]
        room = Room.of_frame(truth.width, truth.height)._replace(unit_px=min(truth.width, truth.height) * scale)
        yield DrawnClip(truth, shot, video, grid.fps, room, shot.states_FB3[chosen], shot.cameras_F3[chosen])


@pytest.mark.slow
def test_the_tracker_errs_little_on_the_held_out_stream() -> None:
    errors = measure_errors(drawn_clips(), WORLD)
    found = errors.summary(WORLD)
    assert errors.faults == []
    assert found["number"] == {"right": 1.0, "judged": len(INDICES)}
    assert found["kinds"]["judged"] >= len(INDICES)
    assert found["camera"]["judged"] >= 5
    assert found["position"]["p50"] < 0.005
    assert found["position"]["p95"] < 0.05
    assert found["placed"] > 0.98
