"""Several videos and pictures as one: cells of one size, side by side, in time with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = 4
GAP = 2
"""Pixels between cells."""


class Cell(NamedTuple):
    """Where one of the videos lies in the grid, in pixels."""

    x: int
    y: int
    width: int
    height: int


def grid(videos: Sequence[NDArray[np.uint8]], fps: Sequence[float]) -> tuple[NDArray[np.uint8], float, list[Cell]]:
    """Videos `[T, H, W, 3]` of any sizes and frame rates as one `[T, H, W, 3]` with even sides, its frame rate, and where each lies.

    Cells have the largest height and width, in rows of `COLUMNS`; a smaller video lies in the middle of its cell, on black. The frame rate is
    the highest; a slower video repeats frames, and one that ends first holds its last. Pictures, videos of one frame, do not count for it
    unless there is nothing else.
    """
    height, width = (max(video.shape[axis] for video in videos) for axis in (1, 2))
    rate = max((own for video, own in zip(videos, fps, strict=True) if len(video) > 1), default=max(fps))
    n_frames = max(
        math.ceil(len(video) * rate / own) if len(video) > 1 else 1 for video, own in zip(videos, fps, strict=True)
    )
    columns = min(len(videos), COLUMNS)
    rows = math.ceil(len(videos) / columns)
    sides = [count * (side + GAP) - GAP for count, side in ((rows, height), (columns, width))]
    whole_THWC = np.zeros((n_frames, *(side + side % 2 for side in sides), 3), np.uint8)
    cells = []
    for number, (video, own) in enumerate(zip(videos, fps, strict=True)):
        row, column = divmod(number, columns)
        _, h, w, _ = video.shape
        cell = Cell(column * (width + GAP) + (width - w) // 2, row * (height + GAP) + (height - h) // 2, w, h)
        times_T = np.minimum(np.floor(np.arange(n_frames) * own / rate).astype(np.int64), len(video) - 1)
        whole_THWC[:, cell.y : cell.y + h, cell.x : cell.x + w] = video[times_T]
        cells.append(cell)
    return whole_THWC, rate, cells
