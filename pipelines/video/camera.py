"""Name the camera's motion in a shot, and recognise a cut that only goes closer.

Shape legend: H height, W width of a small luma image; h, w of the enlarged part of it that is searched for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import cv2
import numpy as np

from cluster.arrays import UInt8Array
from pipelines.video.motion import PairMotion

CameraMotion = Literal["still", "pan", "tilt", "zoom", "handheld", "cut-in"]

MEAN_RADIUS = 0.28
"""Mean distance of an image's points from its centre, in long sides (0.29 at 16:9, 0.27 at 4:3): a zoom or roll of 1
moves them by this much."""

MAX_STILL_SPEED = 0.012
"""Long sides per second up to which a camera is still: an eighth of a pixel of the analysis image in 0.08 s. Real
footage from a tripod reads 0.001 to 0.009 (compression, people who move), from a hand or a car 0.02 to 0.08."""

MIN_NET_SHARE = 0.5
"""Smallest share of the camera's path that must add up to one direction for a pan, tilt or zoom; with less, the camera
moves back and forth."""

CUT_IN_SCALES = tuple(1.06**k for k in range(19))
"""Enlargements tried for a cut-in, up to 2.85; beyond, too little of the image is left to compare."""

MIN_CUT_IN_SCALE = 1.1
"""Smallest enlargement that is distinguished from an image that moved a little during the cut."""

MIN_CORRELATION = 0.85
"""Smallest correlation of an enlarged part of the image with the one after the cut. Unrelated images reach 0.45
(median of 160 pairs of real frames) to 0.83; the same image half a second later and 1.15 to 2.2 times as large, 0.81
to 0.99."""

MIN_CORRELATION_GAIN = 0.05
"""Smallest gain over the correlation of the two images without enlargement: on a road that runs to the horizon, every
part looks like the whole."""

MAX_PLAIN_DEVIATION = 6.0
"""Standard deviation, in 8-bit values, below which an image has nothing to compare."""


def camera_motion(motions: Sequence[PairMotion], time_base: Fraction) -> CameraMotion:
    """Return the name of the camera's motion in one shot; "handheld" is a camera that moves in no lasting direction.

    Each component of the motion has a path (the sum of its lengths) and a net (the sum with signs). The component with
    the greatest net names the shot, if it is fast enough and its net is most of its path. Zoom and roll count by how
    far they move the points of an image. `time_base` is the seconds per unit of PTS.
    """
    seconds = np.array([float((motion.end_pts - motion.start_pts) * time_base) for motion in motions])
    total_s = float(seconds.sum())
    if not total_s:
        return "still"
    speeds = np.array(
        [(motion.pan, motion.tilt, motion.zoom * MEAN_RADIUS, motion.roll * MEAN_RADIUS) for motion in motions]
    )
    components = speeds * seconds[:, None] / total_s
    path, net = np.abs(components).sum(axis=0).tolist(), np.abs(components.sum(axis=0)).tolist()
    names: tuple[CameraMotion, ...] = ("pan", "tilt", "zoom")
    best = max(range(3), key=lambda i: net[i])
    if net[best] > MAX_STILL_SPEED and net[best] >= MIN_NET_SHARE * path[best]:
        return names[best]
    return "handheld" if math.hypot(*path) > MAX_STILL_SPEED else "still"


def cut_in(before_HW: UInt8Array, after_HW: UInt8Array) -> float | None:
    """Return the scale, at least 1.1, by which `after` enlarges any part of `before`, None where it does not.

    A scale marks a jump cut or punch-in. Both images are luma of the same size: the last frame before a cut and the
    first after it. `after` is shrunk by each scale and searched for in `before` by normalised correlation (Lewis, 'Fast
    normalized cross-correlation', 1995). It takes 1 ms for 64 x 36. For a cut that goes away from the subject, swap the
    images.
    """
    before_HW, after_HW = _shrunk(before_HW), _shrunk(after_HW)
    if before_HW.shape != after_HW.shape or min(before_HW.shape) < 12:
        return None
    if any(float(cv2.meanStdDev(image)[1][0, 0]) < MAX_PLAIN_DEVIATION for image in (before_HW, after_HW)):
        return None
    height, width = before_HW.shape
    found = []
    for scale in CUT_IN_SCALES:  # the first is 1
        part_hw = cv2.resize(after_HW, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA)
        found.append((float(cv2.matchTemplate(before_HW, part_hw, cv2.TM_CCOEFF_NORMED).max()), scale))
    correlation, scale = max(found)
    needed = max(MIN_CORRELATION, found[0][0] + MIN_CORRELATION_GAIN)
    return scale if scale >= MIN_CUT_IN_SCALE and correlation >= needed else None


def _shrunk(luma_HW: UInt8Array) -> UInt8Array:
    """Return an image averaged to at most about 64 pixels in width and height."""
    factor = max(1, round(max(luma_HW.shape) / 64))
    size = luma_HW.shape[1] // factor, luma_HW.shape[0] // factor
    return np.asarray(cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA), np.uint8) if factor > 1 else luma_HW
