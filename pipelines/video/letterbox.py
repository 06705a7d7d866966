"""Bars around the picture: letterbox above and below, pillarbox at the sides, found over all looks of a shot.

A bar is plain, does not change, and ends in a straight edge. A night sky is not: something in it is brighter once, or it
fades into the picture. Bars come in pairs: an edge on one side is believed where the other side is as plain for as many lines, and
on one side alone only if it goes through most of the picture; a sky clipped to white ends in a horizon, and has no sky across from it.
Whoever crops by this never cuts off what shows; a dark shot in which no edge can be seen has the bars of the source's other shots.

Shape legend: H height, W width of the pictures looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from pipelines.video.scale import Box

Profile = NDArray[np.uint8]
Levels = NDArray[np.int64]

FLAT = 8
"""Levels between the darkest and the brightest pixel of a bar, over all looks: 0 to 1 in the trailer of Sintel, 6 within three lines of
the picture, where compression rings, and more in single looks."""

STEP = 10
STEP_SHARE = 0.35
"""Where a bar ends, at least this share of a line's pixels differs by more than so many levels from the bar, in one look at least; across
from a black bar there may be no edge to be seen."""

SURE_SHARE = 0.75
"""The same of a bar on one side alone, or of one that is not black. The horizon under a sky that was clipped to white has 0.57."""

BLACK, WHITE = 20, 235
"""Levels up to which a bar is black, in full range or not, and from which it is white. A bar on one side alone is one or the other: anything
else may be a floor in the shade."""

PAIR_LINES = 1.0
"""Lines by which bars of two sides may differ and still be a pair."""

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


@dataclass(frozen=True)
class Side:
    """One side of a shot's picture: the lines that are plain over all looks (0 where not even the first is), and the share of a line's
    pixels that show an edge where they end.

    `reach` counts whole lines, with those that may be plain but for ringing; `level` is that of the plain ones. `edges` are lines at
    which a bar with a subtitle in it could end.
    """

    width: float
    reach: int
    share: float
    level: float
    edges: tuple[int, ...]

    @property
    def alone(self) -> bool:
        """Whether there is a bar here whatever is across from it."""
        return self.share >= SURE_SHARE and not BLACK < self.level < WHITE

    def holds(self, lines: float) -> bool:
        """Whether a bar of so many lines could be here."""
        return math.floor(lines) <= self.reach or any(abs(edge - lines) <= PAIR_LINES for edge in self.edges)


Bars = tuple[float, float]
"""Lines of the bar at the start and at the end."""

NONE: Bars = (0.0, 0.0)


def borders(luma_HW: Pixels) -> Borders:
    """What is kept of a picture (luma of full range) to find bars with. 0.06 ms for 256 x 144."""
    height, width = luma_HW.shape
    across, down = -(-width // ENDS), -(-height // ENDS)
    ends_Hw = np.concatenate([luma_HW[:, :across], luma_HW[:, -across:]], axis=1)
    ends_hW = np.concatenate([luma_HW[:down], luma_HW[-down:]])
    differs_down = cv2.threshold(cv2.absdiff(luma_HW[EDGE_LINES:], luma_HW[:-EDGE_LINES]), STEP, 1, cv2.THRESH_BINARY)[
        1
    ]
    differs_across = cv2.threshold(
        cv2.absdiff(luma_HW[:, EDGE_LINES:], luma_HW[:, :-EDGE_LINES]), STEP, 1, cv2.THRESH_BINARY
    )[1]
    rows_H = cv2.reduce(differs_down, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / width
    columns_W = cv2.reduce(differs_across, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / height
    return Borders(_lines(luma_HW, ends_Hw, 1, rows_H), _lines(luma_HW, ends_hW, 0, columns_W))


def crop_boxes(shots: Sequence[Sequence[Borders]], width: int, height: int) -> list[Box]:
    """For the looks of each shot of a source the box (x0, y0, x1, y1) of the picture without its bars, in pixels of a displayed
    picture of `width` x `height`.

    Where a bar ends is found to about a quarter of a line of the pictures looked at (144 lines at 16:9: 2 pixels of 1080p), and
    rounded inwards. The whole picture where there are none, and where what is left would be less than a tenth of it. A subtitle in
    a bar leaves it a bar, as long as most of the bar is plain all the time and the subtitle does not reach its ends. Each shot has at
    least one look.
    """
    weights = [len(looks) for looks in shots]
    rows = _agreed([_sides([look.rows for look in looks]) for looks in shots], weights)
    columns = _agreed([_sides([look.columns for look in looks]) for looks in shots], weights)
    return [
        _box(bars, width / len(looks[0].columns.low), height / len(looks[0].rows.low), width, height)
        for looks, *bars in zip(shots, columns, rows, strict=True)
    ]


def _box(bars: Sequence[Bars], across: float, down: float, width: int, height: int) -> Box:
    (left, right), (top, bottom) = bars
    box = (
        math.ceil(left * across - SLACK),
        math.ceil(top * down - SLACK),
        math.floor(width - right * across + SLACK),
        math.floor(height - bottom * down + SLACK),
    )
    area = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    return box if area >= width * height / 10 else (0, 0, width, height)


def _lines(luma_HW: Pixels, ends: Pixels, axis: int, step: NDArray[np.float64]) -> Lines:
    return Lines(luma_HW.min(axis), luma_HW.max(axis), ends.min(axis), ends.max(axis), step.astype(np.float32))


def _sides(looks: Sequence[Lines]) -> tuple[Side, Side]:
    """The start and the end of the picture over all looks."""
    low, end_low = (np.min([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("low", "end_low"))
    high, end_high = (
        np.max([getattr(look, name) for look in looks], axis=0).astype(int) for name in ("high", "end_high")
    )
    step = np.max([look.step for look in looks], axis=0)
    # Backwards, the step from a line to the third-next one is that of the line three before it.
    start, end = (_side(low[::way], high[::way], end_low[::way], end_high[::way], step[::way]) for way in (1, -1))
    return start, end


def _side(low: Levels, high: Levels, end_low: Levels, end_high: Levels, step: NDArray[np.float32]) -> Side:
    """What is plain from line 0 on: up to the last edge that a plain line is next to, or as far as lines are plain in a row."""
    edge = run = plain = 0
    edges = []
    darkest, brightest = int(low[0]), int(high[0])
    if brightest - darkest > FLAT:
        return Side(0.0, 0, 0.0, 0.0, ())
    for i in range(int(len(low) * MOST)):
        if max(brightest, end_high[i]) - min(darkest, end_low[i]) > FLAT:
            break
        if step[i] >= STEP_SHARE and 2 * plain > i:
            edges.append(i + 1)
        if max(brightest, high[i]) - min(darkest, low[i]) <= FLAT:
            darkest, brightest = min(darkest, int(low[i])), max(brightest, int(high[i]))
            plain += 1
            run = plain if plain == i + 1 else run
            # A subtitle's lines before it must be the smaller part.
            if step[i] >= STEP_SHARE and 2 * plain > i:
                edge = i + 1
    lines = edge or run
    away = np.maximum(high - brightest, darkest - low).astype(float)
    share = float(step[max(0, lines - EDGE_LINES) : lines].max())
    reach = lines
    while reach < lines + EDGE_LINES and away[reach] <= RINGING:
        reach += 1
    while away[lines] <= RINGING and away[lines + 1 : lines + EDGE_LINES].max() > 3 * RINGING:
        lines += 1
    # The line where the bar ends is part bar: less away from it than the next one.
    width = lines + 1 - min(1.0, float(away[lines] / max(away[lines + 1], 1.0)) / WHOLE)
    return Side(width, max(reach, lines), share, (darkest + brightest) / 2, tuple(edges))


def _bars(start: Side, end: Side) -> Bars | None:
    """Lines of the bars of one shot; None where it cannot be told, as both sides are plain and black and neither ends in an edge."""
    alike = abs(start.level - end.level) <= FLAT
    black = max(start.level, end.level) <= BLACK
    enough = STEP_SHARE if black else SURE_SHARE
    if alike and abs(start.width - end.width) <= PAIR_LINES and min(start.share, end.share) >= enough:
        return start.width, end.width
    common = max(
        (
            one.width
            for one, other in ((start, end), (end, start))
            if alike and one.share >= enough and other.holds(one.width)
        ),
        default=0.0,
    )
    first, last = (max(common, side.width) if side.alone else common for side in (start, end))
    hidden = first == last == 0 and min(start.reach, end.reach) > 0 and black
    return None if hidden else (first, last)


def _agreed(shots: Sequence[tuple[Side, Side]], weights: Sequence[int]) -> list[Bars]:
    """The bars of each shot: its own, or those that most looks of the source have, where the shot could have them."""
    own = [_bars(start, end) for start, end in shots]
    weight_of: Counter[Bars] = Counter()
    for bars, weight in zip(own, weights, strict=True):
        if bars is not None:
            # To quarters of a line, or a film would have as many as it has shots.
            weight_of[round(4 * bars[0]) / 4, round(4 * bars[1]) / 4] += weight

    def votes(bars: Bars) -> int:
        return sum(
            weight
            for other, weight in weight_of.items()
            if max(abs(bars[0] - other[0]), abs(bars[1] - other[1])) <= PAIR_LINES
        )

    # Of equals the first.
    usual = max(weight_of, key=votes, default=NONE)
    return [
        bars if bars is not None else usual if start.holds(usual[0]) and end.holds(usual[1]) else NONE
        for bars, (start, end) in zip(own, shots, strict=True)
    ]
