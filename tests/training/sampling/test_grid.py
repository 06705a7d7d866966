"""Videos side by side: every pixel lies in its cell, at the time that its video's frame rate gives it."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.sampling.grid import video_grid

SHAPES_AND_RATES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), st.sampled_from([4, 8, 24, 30])),
    min_size=1,
    max_size=9,
)
"""Frames, height, width and frame rate of each video."""


@pytest.mark.slow
@given(SHAPES_AND_RATES)
def test_videos_are_whole_in_time_and_hold_their_last_frame(shapes: list[tuple[int, int, int, int]]) -> None:
    rng = np.random.default_rng(0)
    videos = [rng.integers(1, 256, (*shape[:3], 3), np.uint8) for shape in shapes]
    whole, rate, cells = video_grid(videos, [fps for *_, fps in shapes])
    assert whole.shape[1] % 2 == whole.shape[2] % 2 == 0
    assert rate == max([fps for frames, _, _, fps in shapes if frames > 1] or [fps for *_, fps in shapes])
    assert len(whole) / rate >= max((frames / fps for frames, _, _, fps in shapes if frames > 1), default=1 / rate)
    for video, cell, (frames, height, width, fps) in zip(videos, cells, shapes, strict=True):
        assert (cell.height, cell.width) == (height, width)
        shown = whole[:, cell.y : cell.y + height, cell.x : cell.x + width]
        for index, frame in enumerate(shown):
            expected = min(int(Fraction(index) / Fraction(rate) * fps), frames - 1)
            np.testing.assert_array_equal(frame, video[expected])
    for a, b in combinations(cells, 2):
        apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
        apart_y = a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart_x or apart_y, "cells overlap"
    n_pixels = sum(height * width for _, height, width, _ in shapes)
    assert np.count_nonzero(whole[0].any(axis=-1)) == n_pixels, "pixels outside the cells are not black"


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (9, 4, 3)])
def test_rows_have_four_cells(count: int, columns: int, rows: int) -> None:
    whole, _, cells = video_grid([np.ones((1, 8, 16, 3), np.uint8)] * count, [8.0] * count)
    assert whole.shape == (1, 8 * rows + 2 * (rows - 1), 16 * columns + 2 * (columns - 1), 3)
    assert [(cell.x // 18, cell.y // 10) for cell in cells] == [(i % 4, i // 4) for i in range(count)]
