"""Videos side by side: every pixel is where the cell says, at the time its own frame rate says."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.sampling.grid import grid

VIDEOS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), st.sampled_from([4, 8, 24, 30])),
    min_size=1,
    max_size=9,
)


@given(VIDEOS)
def test_every_video_is_shown_whole_in_time_and_holds_its_last_frame(shapes: list[tuple[int, int, int, int]]) -> None:
    chance = np.random.default_rng(0)
    videos = [chance.integers(1, 256, (*shape[:3], 3), np.uint8) for shape in shapes]
    whole, rate, cells = grid(videos, [fps for *_, fps in shapes])
    assert whole.shape[1] % 2 == whole.shape[2] % 2 == 0
    moving = [fps for n_frames, _, _, fps in shapes if n_frames > 1]
    assert rate == max(moving or [fps for *_, fps in shapes])
    assert len(whole) / rate >= max(
        (n_frames / fps for n_frames, _, _, fps in shapes if n_frames > 1), default=1 / rate
    )
    for video, cell, (n_frames, height, width, fps) in zip(videos, cells, shapes, strict=True):
        assert (cell.height, cell.width) == (height, width)
        shown = whole[:, cell.y : cell.y + height, cell.x : cell.x + width]
        for at, frame in enumerate(shown):
            np.testing.assert_array_equal(frame, video[min(int(Fraction(at) / Fraction(rate) * fps), n_frames - 1)])
    for a, b in combinations(cells, 2):
        assert a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y, (
            "no two overlap"
        )
    assert np.count_nonzero(whole[0].any(axis=-1)) == sum(height * width for _, height, width, _ in shapes), (
        "all else is black"
    )


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (9, 4, 3)])
def test_rows_of_four(count: int, columns: int, rows: int) -> None:
    whole, _, cells = grid([np.ones((1, 8, 16, 3), np.uint8)] * count, [8.0] * count)
    assert whole.shape == (1, 8 * rows + 2 * (rows - 1), 16 * columns + 2 * (columns - 1), 3)
    assert [(cell.x // 18, cell.y // 10) for cell in cells] == [(i % 4, i // 4) for i in range(count)]
