"""Several videos and images side by side in one video, in time with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.arrays import Pixels

COLUMNS = 4
"""Most cells in a row."""
GAP = 2
"""Pixels between cells."""


class Cell(NamedTuple):
    """The rectangle of one video in the grid, in pixels."""

    x: int
    y: int
    width: int
    height: int


def video_grid(videos: Sequence[Pixels], fps: Sequence[float]) -> tuple[Pixels, float, list[Cell]]:
    """Return videos `[T, H, W, 3]` of any sizes and frame rates as one with even sides, its frame rate, and the cells.

    Cells have the largest height and width of all videos and lie in rows of `COLUMNS`. A smaller video is centred in
    its cell, on black. The frame rate is the highest one. A slower video repeats frames, and one that ends early holds
    its last frame. Images, which are videos of one frame, count for the frame rate only if there is nothing else.
    """
    cell_height, cell_width = (max(video.shape[axis] for video in videos) for axis in (1, 2))
    grid_fps = max(
        (video_fps for video, video_fps in zip(videos, fps, strict=True) if len(video) > 1), default=max(fps)
    )
    n_frames = max(
        math.ceil(len(video) * grid_fps / video_fps) if len(video) > 1 else 1
        for video, video_fps in zip(videos, fps, strict=True)
    )
    columns = min(len(videos), COLUMNS)
    rows = math.ceil(len(videos) / columns)
    sides = [count * (side + GAP) - GAP for count, side in ((rows, cell_height), (columns, cell_width))]
    grid_THWC = np.zeros((n_frames, *(side + side % 2 for side in sides), 3), np.uint8)
    cells = []
    for index, (video, video_fps) in enumerate(zip(videos, fps, strict=True)):
        row, column = divmod(index, columns)
        _, height, width, _ = video.shape
        x = column * (cell_width + GAP) + (cell_width - width) // 2
        y = row * (cell_height + GAP) + (cell_height - height) // 2
        frames_T = np.floor(np.arange(n_frames) * video_fps / grid_fps).astype(np.int64)
        grid_THWC[:, y : y + height, x : x + width] = video[np.minimum(frames_T, len(video) - 1)]
        cells.append(Cell(x, y, width, height))
    return grid_THWC, grid_fps, cells
