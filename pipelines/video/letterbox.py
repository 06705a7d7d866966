"""Bars around the picture: letterbox above and below, pillarbox at the sides, found over all looks of a shot.

A bar is plain, does not change, and ends in a straight edge. A night sky is not: something in it is brighter once, or it
fades into the picture. Whoever crops by this never cuts picture away; where no look shows an edge, no bar is found.

Shape legend: H height, W width of the pictures looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.scale import Box, Pixels

Profile = NDArray[np.uint8]

FLAT = 8
"""Levels between the darkest and the brightest pixel of a bar, over all looks: 0 to 3 in real letterboxes of crf 18 to 35, up to 8 beside
the picture, where compression rings."""

STEP = 10
STEP_SHARE = 0.35
"""Where a bar ends, at least this share of a line's pixels differs by more than so many levels from the bar, in one look at least."""

EDGE_LINES = 3
"""Lines within which that must happen: one that is part bar, one where compression rings."""

MOST = 0.4
"""Share of the height or width that the bars of one side can take. Vertical video in a landscape frame has two of 0.34."""

ENDS = 16
"""A line's ends are its outermost sixteenths: beside a subtitle they are as plain as the bar it stands in."""


@dataclass(frozen=True)
class Lines:
    """Of each row (or column): the least and the greatest level, the same of its two ends only, and the share (of 255) of its
    pixels that differ from those of the third-next line, upwards in `step`."""

    low: Profile
    high: Profile
    end_low: Profile
    end_high: Profile
    step: Profile


@dataclass(frozen=True)
class Borders:
    """The profiles of one look, of rows `[H]` and of columns `[W]`; 3 kB."""

    rows: Lines
    columns: Lines


def borders(luma_HW: Pixels) -> Borders:
    """What is kept of a picture (luma of full range) to find bars with. 0.05 ms for 256 x 144."""
    return Borders(_lines(luma_HW), _lines(cv2.transpose(luma_HW)))


def crop_box(looks: Sequence[Borders], width: int, height: int) -> Box:
    """The box (x0, y0, x1, y1) of the picture without its bars, in pixels of a displayed picture of `width` x `height`.

    Rounded inwards to lines of the pictures looked at (1/256 by 1/144 at 16:9): no bar is left, and up to one such line of the
    picture lost. The whole picture where there are none, and where what is left would be less than a tenth of it. A subtitle in
    a bar leaves it a bar, as long as most of the bar is plain all the time and the subtitle does not reach its ends.
    """
    if not looks:
        return 0, 0, width, height
    top, bottom = _bars([look.rows for look in looks])
    left, right = _bars([look.columns for look in looks])
    rows, columns = len(looks[0].rows.low), len(looks[0].columns.low)
    box = (-(-left * width // columns), -(-top * height // rows), (columns - right) * width // columns, (rows - bottom) * height // rows)
    area = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    return box if area >= width * height / 10 else (0, 0, width, height)


def _lines(luma_HW: Pixels) -> Lines:
    height, width = luma_HW.shape
    n = max(1, width // ENDS)
    ends = cv2.hconcat([luma_HW[:, :n], luma_HW[:, -n:]])
    differs = cv2.compare(cv2.absdiff(luma_HW[EDGE_LINES:], luma_HW[:-EDGE_LINES]), STEP, cv2.CMP_GT)
    step = np.zeros(height, np.uint8)
    step[:-EDGE_LINES] = cv2.reduce(differs, 1, cv2.REDUCE_AVG).ravel()
    return Lines(*(cv2.reduce(a, 1, how).ravel() for a in (luma_HW, ends) for how in (cv2.REDUCE_MIN, cv2.REDUCE_MAX)), step)


def _bars(looks: Sequence[Lines]) -> tuple[int, int]:
    """Lines of the bar at the start and at the end."""
    low, end_low = (np.min([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("low", "end_low"))
    high, end_high = (np.max([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("high", "end_high"))
    step = np.max([look.step for look in looks], axis=0) / 255
    # Backwards, the step to the third-next line is that of the line three before.
    backwards = np.concatenate([step[: -EDGE_LINES or None][::-1], np.zeros(EDGE_LINES)])
    return _bar(low, high, end_low, end_high, step), _bar(low[::-1], high[::-1], end_low[::-1], end_high[::-1], backwards)


def _bar(low: NDArray[np.int64], high: NDArray[np.int64], end_low: NDArray[np.int64], end_high: NDArray[np.int64], step: NDArray[np.float64]) -> int:
    """Lines of the bar that starts at line 0: the longest run of plain lines of one level that ends in an edge."""
    most = int(len(low) * MOST)
    bar = plain = 0
    darkest, brightest = int(low[0]), int(high[0])
    for i in range(most):
        if max(brightest, int(end_high[i])) - min(darkest, int(end_low[i])) > FLAT:
            break
        darkest, brightest = min(darkest, int(end_low[i])), max(brightest, int(end_high[i]))
        if max(brightest, int(high[i])) - min(darkest, int(low[i])) <= FLAT:
            plain += 1
            # The last plain line next to the edge; a subtitle's lines before it must be the smaller part.
            if step[i] >= STEP_SHARE and 2 * plain > i:
                bar = i + 1
        elif i == 0:
            break
    return bar
