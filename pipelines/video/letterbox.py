"""Find the bars around the image of a shot: letterbox above and below, pillarbox at the sides.

They are found over all detailed samples of the shot.
A bar is plain, constant in time, and ends in a straight edge. A night sky is none of these: something in it is bright
once, or it fades into the image. Bars come in pairs: an edge on one side counts if the opposite side is as plain for as
many lines. On one side alone it counts only if it goes through most of the image; a sky clipped to white ends in a
horizon, and has no sky opposite. A crop to the box found here cuts off nothing but bars. A dark shot in which no edge
can be seen gets the bars of the source's other shots.

Shape legend: H height, W width of the sampled images; L lines of one direction (rows or columns).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cluster.arrays import Float32Array, Float64Array, Int64Array, UInt8Array
from pipelines.video.scale import Box

MAX_BAR_RANGE = 8
"""Largest difference, in 8-bit values, between the darkest and the brightest pixel of a bar over all samples. In the
trailer of Sintel it is 0 to 1, 6 within three lines of the image, where compression rings, and more in single
samples."""

EDGE_STEP = 10
MIN_EDGE_SHARE = 0.35
"""Where a bar ends, at least this share of a line's pixels differ by more than `EDGE_STEP` 8-bit values from the bar,
in at least one sample. Opposite a black bar there may be no edge to be seen."""

MIN_SURE_EDGE_SHARE = 0.75
"""The same share for a bar on one side alone, or one that is not black. The horizon under a sky clipped to white has
0.57."""

MAX_BLACK, MIN_WHITE = 20, 235
"""8-bit values up to which a bar is black, in full range or not, and from which it is white. A bar on one side alone is
one or the other; anything else may be a floor in the shade."""

MAX_PAIR_DIFFERENCE = 1.0
"""Lines by which the bars of two sides may differ and still be a pair."""

EDGE_LINES = 3
"""Lines within which the step of an edge must happen: one that is part bar, and one where compression rings."""

MAX_RINGING = 24
"""Largest difference of lines next to the image from the bar, in 8-bit values: up to 17 in the trailer of Sintel at 400
kb/s."""

FULL_LINE_SHARE = 0.9
"""A line that differs from the bar by this share of what the next line does shows only image, no bar."""

CROP_TOLERANCE_PX = 0.1
"""Pixels of a bar that a box may still contain."""

MAX_BAR_SHARE = 0.4
"""Largest share of the height or width that the bar of one side can take. Vertical video in a landscape frame has two
of 0.34."""

LINE_ENDS = 16
"""The ends of a line are its first and last sixteenth: beside a subtitle they are as plain as the bar around it."""


@dataclass(frozen=True)
class LineProfiles:
    """Profiles of each row (or column) of an image, `[L]`: its smallest and largest value, and those of its two ends.

    `step`, with three entries fewer, is the share of its pixels that differ from those of the third line after it.
    """

    low: UInt8Array
    high: UInt8Array
    end_low: UInt8Array
    end_high: UInt8Array
    step: Float32Array


@dataclass(frozen=True)
class BorderProfiles:
    """The profiles of one image, of its rows (L = H) and of its columns (L = W); 5 kB."""

    rows: LineProfiles
    columns: LineProfiles


@dataclass(frozen=True)
class BarEvidence:
    """Evidence for a bar at one side of a shot's image: `width` counts the lines that are plain over all samples.

    `width` is 0 if not even the first line is plain. `reach` counts whole lines, with those that may be plain but for
    ringing. `edge_share` is the share of a line's pixels that show an edge where the plain lines end, `value` the 8-bit
    value of the plain lines. `edges` are the lines at which a bar with a subtitle in it could end.
    """

    width: float
    reach: int
    edge_share: float
    value: float
    edges: tuple[int, ...]

    @property
    def is_sure(self) -> bool:
        """Whether there is a bar at this side whatever the opposite side shows."""
        return self.edge_share >= MIN_SURE_EDGE_SHARE and not MAX_BLACK < self.value < MIN_WHITE

    def allows(self, lines: float) -> bool:
        """Return whether there could be a bar of this many lines."""
        return math.floor(lines) <= self.reach or any(abs(edge - lines) <= MAX_PAIR_DIFFERENCE for edge in self.edges)


BarPair = tuple[float, float]
"""Lines of the bar at the start and at the end of one direction."""

NO_BARS: BarPair = (0.0, 0.0)


def border_profiles(luma_HW: UInt8Array) -> BorderProfiles:
    """Return the profiles in which bars are found, of a luma image in full range. It takes 0.06 ms for 256 x 144."""
    height, width = luma_HW.shape
    across, down = -(-width // LINE_ENDS), -(-height // LINE_ENDS)
    ends_Hw = np.concatenate([luma_HW[:, :across], luma_HW[:, -across:]], axis=1)
    ends_hW = np.concatenate([luma_HW[:down], luma_HW[-down:]])
    rows_H = cv2.reduce(_differs(luma_HW[EDGE_LINES:], luma_HW[:-EDGE_LINES]), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    columns_W = cv2.reduce(
        _differs(luma_HW[:, EDGE_LINES:], luma_HW[:, :-EDGE_LINES]), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S
    )
    return BorderProfiles(
        _line_profiles(luma_HW, ends_Hw, 1, rows_H.ravel() / width),
        _line_profiles(luma_HW, ends_hW, 0, columns_W.ravel() / height),
    )


def may_have_bars(borders: BorderProfiles) -> bool:
    """Return whether any of the four outermost lines of an image is plain, as the first line of a bar is."""
    return any(
        int(lines.high[end]) - int(lines.low[end]) <= MAX_BAR_RANGE
        for lines in (borders.rows, borders.columns)
        for end in (0, -1)
    )


def crop_boxes(shots: Sequence[Sequence[BorderProfiles]], width: int, height: int) -> list[Box]:
    """Return, for each shot of a source, the box (x0, y0, x1, y1) of the image without its bars.

    A shot is given by the profiles of its samples, at least one. The box is in pixels of a displayed frame of `width` x
    `height`. The end of a bar is found to about a quarter of a line of the sampled images (144 lines at 16:9: 2 pixels
    of 1080p), and rounded inwards. The box is the whole frame where there are no bars, and where less than a tenth of
    the frame would be left. A bar may have a subtitle in it, as long as most of the bar is plain all the time and the
    subtitle does not reach its ends.
    """
    weights = [len(samples) for samples in shots]
    rows = _agreed_bars([_both_sides([sample.rows for sample in samples]) for samples in shots], weights)
    columns = _agreed_bars([_both_sides([sample.columns for sample in samples]) for samples in shots], weights)
    return [
        _box(bars, width / len(samples[0].columns.low), height / len(samples[0].rows.low), width, height)
        for samples, *bars in zip(shots, columns, rows, strict=True)
    ]


def _box(bars: Sequence[BarPair], column_px: float, row_px: float, width: int, height: int) -> Box:
    (left, right), (top, bottom) = bars
    box = (
        math.ceil(left * column_px - CROP_TOLERANCE_PX),
        math.ceil(top * row_px - CROP_TOLERANCE_PX),
        math.floor(width - right * column_px + CROP_TOLERANCE_PX),
        math.floor(height - bottom * row_px + CROP_TOLERANCE_PX),
    )
    area = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    return box if area >= width * height / 10 else (0, 0, width, height)


def _differs(one_HW: UInt8Array, other_HW: UInt8Array) -> UInt8Array:
    """Return 1 where two images differ by more than `EDGE_STEP`, else 0."""
    return np.asarray(cv2.threshold(cv2.absdiff(one_HW, other_HW), EDGE_STEP, 1, cv2.THRESH_BINARY)[1], np.uint8)


def _line_profiles(luma_HW: UInt8Array, ends: UInt8Array, axis: int, step: Float64Array) -> LineProfiles:
    return LineProfiles(luma_HW.min(axis), luma_HW.max(axis), ends.min(axis), ends.max(axis), step.astype(np.float32))


def _both_sides(samples: Sequence[LineProfiles]) -> tuple[BarEvidence, BarEvidence]:
    """Return the evidence at the start and at the end of the lines, over all samples."""
    low, end_low = (
        np.min([getattr(sample, name) for sample in samples], axis=0).astype(int) for name in ("low", "end_low")
    )
    high, end_high = (
        np.max([getattr(sample, name) for sample in samples], axis=0).astype(int) for name in ("high", "end_high")
    )
    step = np.max([sample.step for sample in samples], axis=0)
    # Backwards, the step from a line to the third line after it is that of the line three before it.
    start, end = (
        _one_side(low[::direction], high[::direction], end_low[::direction], end_high[::direction], step[::direction])
        for direction in (1, -1)
    )
    return start, end


def _one_side(
    low: Int64Array, high: Int64Array, end_low: Int64Array, end_high: Int64Array, step: Float32Array
) -> BarEvidence:
    """Return the evidence from line 0 on.

    The plain lines go up to the last edge next to one of them, or as far as all lines are plain.
    """
    edge = run = plain = 0
    edges = []
    darkest, brightest = int(low[0]), int(high[0])
    if brightest - darkest > MAX_BAR_RANGE:
        return BarEvidence(0.0, 0, 0.0, 0.0, ())
    for i in range(int(len(low) * MAX_BAR_SHARE)):
        if max(brightest, end_high[i]) - min(darkest, end_low[i]) > MAX_BAR_RANGE:
            break
        if step[i] >= MIN_EDGE_SHARE and 2 * plain > i:
            edges.append(i + 1)
        if max(brightest, high[i]) - min(darkest, low[i]) <= MAX_BAR_RANGE:
            darkest, brightest = min(darkest, int(low[i])), max(brightest, int(high[i]))
            plain += 1
            run = plain if plain == i + 1 else run
            # A subtitle's lines before it must be the smaller part.
            if step[i] >= MIN_EDGE_SHARE and 2 * plain > i:
                edge = i + 1
    lines = edge or run
    distance = np.maximum(high - brightest, darkest - low).astype(float)
    edge_share = float(step[max(0, lines - EDGE_LINES) : lines].max())
    reach = lines
    while reach < lines + EDGE_LINES and distance[reach] <= MAX_RINGING:
        reach += 1
    while distance[lines] <= MAX_RINGING and distance[lines + 1 : lines + EDGE_LINES].max() > 3 * MAX_RINGING:
        lines += 1
    # The line where the bar ends is part bar: it differs less from the bar than the next line does.
    width = lines + 1 - min(1.0, float(distance[lines] / max(distance[lines + 1], 1.0)) / FULL_LINE_SHARE)
    return BarEvidence(width, max(reach, lines), edge_share, (darkest + brightest) / 2, tuple(edges))


def _bars(start: BarEvidence, end: BarEvidence) -> BarPair | None:
    """Return the bars of one shot, None where both sides are plain and black and neither ends in an edge."""
    same_value = abs(start.value - end.value) <= MAX_BAR_RANGE
    black = max(start.value, end.value) <= MAX_BLACK
    needed = MIN_EDGE_SHARE if black else MIN_SURE_EDGE_SHARE
    same_width = abs(start.width - end.width) <= MAX_PAIR_DIFFERENCE
    if same_value and same_width and min(start.edge_share, end.edge_share) >= needed:
        return start.width, end.width
    common = max(
        (
            side.width
            for side, opposite in ((start, end), (end, start))
            if same_value and side.edge_share >= needed and opposite.allows(side.width)
        ),
        default=0.0,
    )
    first, last = (max(common, side.width) if side.is_sure else common for side in (start, end))
    undecided = first == last == 0 and min(start.reach, end.reach) > 0 and black
    return None if undecided else (first, last)


def _agreed_bars(shots: Sequence[tuple[BarEvidence, BarEvidence]], weights: Sequence[int]) -> list[BarPair]:
    """Return the bars of each shot.

    These are the ones seen in it, or those of most samples of the source where the shot allows them.
    """
    seen = [_bars(start, end) for start, end in shots]
    weight_by_bars: Counter[BarPair] = Counter()
    for bars, weight in zip(seen, weights, strict=True):
        if bars is not None:
            # Rounded to quarters of a line, or a film would have as many values as it has shots.
            weight_by_bars[round(4 * bars[0]) / 4, round(4 * bars[1]) / 4] += weight

    def votes(bars: BarPair) -> int:
        return sum(
            weight
            for other, weight in weight_by_bars.items()
            if max(abs(bars[0] - other[0]), abs(bars[1] - other[1])) <= MAX_PAIR_DIFFERENCE
        )

    # Among equals, the first.
    usual = max(weight_by_bars, key=votes, default=NO_BARS)
    return [
        bars if bars is not None else usual if start.allows(usual[0]) and end.allows(usual[1]) else NO_BARS
        for bars, (start, end) in zip(seen, shots, strict=True)
    ]
