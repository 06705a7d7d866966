"""Bars around the picture: letterbox above and below, pillarbox at the sides, found over all looks of a shot.

A bar is plain, does not change, and ends in a straight edge. A night sky is not: something in it is brighter once, or it
fades into the picture. Whoever crops by this never cuts picture away; where no look shows an edge, no bar is found.

Shape legend: H height, W width of the pictures looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.scale import Box, Pixels

Profile = NDArray[np.uint8]
Levels = NDArray[np.int64]

FLAT = 8
"""Levels between the darkest and the brightest pixel of a bar, over all looks: 0 to 1 in the trailer of Sintel, 6 within three lines of
the picture, where compression rings, and more in single looks."""

STEP = 10
STEP_SHARE = 0.35
"""Where a bar ends, at least this share of a line's pixels differs by more than so many levels from the bar, in one look at least."""

EDGE_LINES = 3
"""Lines within which that must happen: one that is part bar, one where compression rings."""

RINGING = 24
"""Levels by which lines next to the picture may be away from the bar: up to 17 in the trailer of Sintel at 400 kb/s."""

WHOLE = 0.9
"""A line this much as far away from the bar as the next one is all picture."""

SLACK = 0.1
"""Pixels that a box is not made smaller for."""

MOST = 0.4
"""Share of the height or width that the bars of one side can take. Vertical video in a landscape frame has two of 0.34."""

ENDS = 16
"""A line's ends are its outermost sixteenths: beside a subtitle they are as plain as the bar it stands in."""


@dataclass(frozen=True)
class Lines:
    """Of each row (or column): the least and the greatest level, the same of its two ends only, and (three fewer) the
    share of its pixels that differ from those of the third-next line.
    """

    low: Profile
    high: Profile
    end_low: Profile
    end_high: Profile
    step: NDArray[np.float32]


@dataclass(frozen=True)
class Borders:
    """The profiles of one look, of rows `[H]` and of columns `[W]`; 5 kB."""

    rows: Lines
    columns: Lines


def borders(luma_HW: Pixels) -> Borders:
    """What is kept of a picture (luma of full range) to find bars with. 0.06 ms for 256 x 144."""
    height, width = luma_HW.shape
    across, down = -(-width // ENDS), -(-height // ENDS)
    ends_Hw = np.concatenate([luma_HW[:, :across], luma_HW[:, -across:]], axis=1)
    ends_hW = np.concatenate([luma_HW[:down], luma_HW[-down:]])
    differs_down = cv2.threshold(cv2.absdiff(luma_HW[EDGE_LINES:], luma_HW[:-EDGE_LINES]), STEP, 1, cv2.THRESH_BINARY)[1]
    differs_across = cv2.threshold(cv2.absdiff(luma_HW[:, EDGE_LINES:], luma_HW[:, :-EDGE_LINES]), STEP, 1, cv2.THRESH_BINARY)[1]
    rows_H = cv2.reduce(differs_down, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / width
    columns_W = cv2.reduce(differs_across, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / height
    return Borders(_lines(luma_HW, ends_Hw, 1, rows_H), _lines(luma_HW, ends_hW, 0, columns_W))


def crop_box(looks: Sequence[Borders], width: int, height: int) -> Box:
    """The box (x0, y0, x1, y1) of the picture without its bars, in pixels of a displayed picture of `width` x `height`.

    Where a bar ends is found to about a quarter of a line of the pictures looked at (144 lines at 16:9: 2 pixels of 1080p), and
    rounded inwards. The whole picture where there are none, and where what is left would be less than a tenth of it. A subtitle in
    a bar leaves it a bar, as long as most of the bar is plain all the time and the subtitle does not reach its ends.
    """
    if not looks:
        return 0, 0, width, height
    top, bottom = _bars([look.rows for look in looks])
    left, right = _bars([look.columns for look in looks])
    rows, columns = len(looks[0].rows.low), len(looks[0].columns.low)
    box = (
        math.ceil(left * width / columns - SLACK),
        math.ceil(top * height / rows - SLACK),
        math.floor(width - right * width / columns + SLACK),
        math.floor(height - bottom * height / rows + SLACK),
    )
    area = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    return box if area >= width * height / 10 else (0, 0, width, height)


def _lines(luma_HW: Pixels, ends: Pixels, axis: int, step: NDArray[np.float64]) -> Lines:
    return Lines(luma_HW.min(axis), luma_HW.max(axis), ends.min(axis), ends.max(axis), step.astype(np.float32))


def _bars(looks: Sequence[Lines]) -> tuple[float, float]:
    """Lines of the bar at the start and at the end."""
    low, end_low = (np.min([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("low", "end_low"))
    high, end_high = (np.max([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("high", "end_high"))
    step = np.max([look.step for look in looks], axis=0)
    # Backwards, the step from a line to the third-next one is that of the line three before it.
    start, end = (_bar(low[::way], high[::way], end_low[::way], end_high[::way], step[::way]) for way in (1, -1))
    return start, end


def _bar(low: Levels, high: Levels, end_low: Levels, end_high: Levels, step: NDArray[np.float32]) -> float:
    """Lines of the bar that starts at line 0: the longest run of plain lines of one level that ends in an edge, and what of the next
    line it takes up.
    """
    bar = plain = 0
    darkest, brightest = int(low[0]), int(high[0])
    if brightest - darkest > FLAT:
        return 0.0
    for i in range(int(len(low) * MOST)):
        if max(brightest, end_high[i]) - min(darkest, end_low[i]) > FLAT:
            break
        if max(brightest, high[i]) - min(darkest, low[i]) <= FLAT:
            darkest, brightest = min(darkest, int(low[i])), max(brightest, int(high[i]))
            plain += 1
            # A subtitle's lines before it must be the smaller part.
            if step[i] >= STEP_SHARE and 2 * plain > i:
                bar = i + 1
    if not bar:
        return 0.0
    away = np.maximum(high - brightest, darkest - low).astype(float)
    while plain and away[bar] <= RINGING and away[bar + 1 : bar + EDGE_LINES].max() > 3 * RINGING:
        bar += 1
    # The line where the bar ends is part bar: less away from it than the next one.
    return bar + 1 - min(1.0, float(away[bar] / max(away[bar + 1], 1.0)) / WHOLE)
