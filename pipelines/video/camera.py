"""What the camera does in a shot, told from the motion of its pairs of frames, and whether a cut only goes nearer.

Shape legend: H height, W width of a small luma picture; h, w of the part of it that is looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import cv2
import numpy as np

from cluster.arrays import Pixels
from pipelines.video.motion import Move

Camera = Literal["still", "pan", "tilt", "zoom", "handheld", "cut-in"]

REACH = 0.28
"""Mean distance of a picture's points from its centre, in long sides (0.29 at 16:9, 0.27 at 4:3): a zoom or roll of 1 moves them so far."""

STILL = 0.012
"""Long sides per second up to which a camera stands still: an eighth of a pixel of the analysis picture in 0.08 s. Real footage from a
tripod reads 0.001 to 0.009 (compression, people who move), from a hand or a car 0.02 to 0.08."""

NET = 0.5
"""Share of the camera's path that must add up to one direction for it to be a pan, tilt or zoom: half of it would be back and forth."""

SCALES = tuple(1.06**k for k in range(19))
"""Enlargements tried for a cut-in, up to 2.85; nearer, too little of the picture is left to compare."""

LEAST_SCALE = 1.1
"""Enlargements below this are not told from a picture that moved a little during the cut."""

ALIKE = 0.85
"""Least correlation of an enlarged part of the picture with the one after the cut. Unrelated pictures reach 0.45 (median of 160 pairs
of real frames) to 0.83; the same one half a second later and 1.15 to 2.2 times as large, 0.81 to 0.99."""

MARGIN = 0.05
"""It must be this much better than the two pictures as they are: in a road that runs to the horizon every part is like the whole."""

PLAIN = 6.0
"""Pictures with a smaller standard deviation, in levels, have nothing to compare."""


def camera_motion(moves: Sequence[Move], time_base: Fraction) -> Camera:
    """What the camera does, from the moves of one shot in order; "handheld" is one that moves without getting anywhere.

    Each part of the motion has a path (the sum of its lengths) and a net (the sum with its signs). The part with the greatest net
    names the shot, if it is fast enough and most of its path. Zoom and roll are counted by how far they move the points of a picture.
    """
    seconds = np.array([float((move.end_pts - move.start_pts) * time_base) for move in moves])
    total_s = float(seconds.sum())
    if not total_s:
        return "still"
    parts = (
        np.array([(move.pan, move.tilt, move.zoom * REACH, move.roll * REACH) for move in moves])
        * seconds[:, None]
        / total_s
    )
    path, net = np.abs(parts).sum(axis=0).tolist(), np.abs(parts.sum(axis=0)).tolist()
    names: tuple[Camera, ...] = ("pan", "tilt", "zoom")
    best = max(range(3), key=lambda i: net[i])
    if net[best] > STILL and net[best] >= NET * path[best]:
        return names[best]
    return "handheld" if math.hypot(*path) > STILL else "still"


def cut_in(before_HW: Pixels, after_HW: Pixels) -> float | None:
    """The scale by which `after` enlarges a part of `before` (any part), at least 1.1; None where it does not: for jump cuts and punch-ins.

    Both are luma of the same size, the last frame before a cut and the first after it. `after`, shrunk by each scale, is looked
    for in `before` by normalised correlation (Lewis, 'Fast normalized cross-correlation', 1995). 1 ms for 64 x 36. For a cut
    that goes away from the picture swap them.
    """
    before_HW, after_HW = _small(before_HW), _small(after_HW)
    if before_HW.shape != after_HW.shape or min(before_HW.shape) < 12:
        return None
    if float(cv2.meanStdDev(before_HW)[1][0, 0]) < PLAIN or float(cv2.meanStdDev(after_HW)[1][0, 0]) < PLAIN:
        return None
    height, width = before_HW.shape
    found = []
    for scale in SCALES:  # the first is 1
        part_hw = cv2.resize(after_HW, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA)
        found.append((float(cv2.matchTemplate(before_HW, part_hw, cv2.TM_CCOEFF_NORMED).max()), scale))
    alike, scale = max(found)
    return scale if scale >= LEAST_SCALE and alike >= max(ALIKE, found[0][0] + MARGIN) else None


def _small(luma_HW: Pixels) -> Pixels:
    """At most about 64 pixels wide or high; averaged."""
    factor = max(1, round(max(luma_HW.shape) / 64))
    size = luma_HW.shape[1] // factor, luma_HW.shape[0] // factor
    return np.asarray(cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA), np.uint8) if factor > 1 else luma_HW
