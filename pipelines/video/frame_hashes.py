"""Perceptual hashes of a source's frames at fixed times: one per quarter of a second, wherever shots and pieces begin.

A copy that begins elsewhere or is cut differently has the same sequence of hashes, shifted. A small luma image is kept
for each hash time while frames are decoded. It is hashed once its shot is known, and with the shot the bars around the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from cluster.arrays import UInt8Array
from pipelines.video.boxes import FractionalBox
from pipelines.video.phash import phashes

HASH_INTERVAL_S = Fraction(1, 4)

MAX_REPEATS = 240
"""Largest number of hashes of one frame: a frame that is shown for longer than a minute is hashed for its first minute.
30 years between two frames of a damaged file are four billion hash times."""


@dataclass(frozen=True)
class LumaThumbnail:
    """Luma of a frame shown at a hash time: the analysis image averaged over squares of 2 pixels.

    It is 64 x 36 in area and takes 2.3 kB.
    """

    pts: int
    luma_HW: UInt8Array


@dataclass(frozen=True)
class FrameHash:
    """Perceptual hash (unsigned 64 bits) of the frame shown at a hash time, which is in units of the time base."""

    pts: int
    phash: int


@dataclass(frozen=True)
class HashTimes:
    """The times of a source at which its frames are hashed.

    Number k is k quarters of a second after the first frame.
    """

    start_pts: int
    time_base: Fraction

    def count_before(self, pts: int) -> int:
        """Return how many hash times lie before a PTS, which is also the number of the first one at it or after it."""
        # In integers, since it is called for every frame.
        time_base, interval = self.time_base, HASH_INTERVAL_S
        numerator = time_base.numerator * interval.denominator
        denominator = time_base.denominator * interval.numerator
        return max(0, -((self.start_pts - pts) * numerator // denominator))

    def pts(self, number: int) -> int:
        """Return a hash time in units of the time base, rounded down."""
        return self.start_pts + int(number * HASH_INTERVAL_S / self.time_base)


def luma_thumbnail(pts: int, analysis_HW: UInt8Array) -> LumaThumbnail:
    """Return the thumbnail of a frame, from its analysis image."""
    height, width = analysis_HW.shape
    half_hw = cv2.resize(analysis_HW, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return LumaThumbnail(pts, np.asarray(half_hw, np.uint8))


def shot_hashes(
    thumbnails: Sequence[LumaThumbnail], times: HashTimes, start_pts: int, end_pts: int, crop: FractionalBox
) -> tuple[FrameHash, ...]:
    """Return a hash per hash time from `start_pts` to `end_pts` (exclusive), or one at the middle if there is none.

    `thumbnails` are those of the shot, at least one, PTS rising. A hash time gets the latest one that is not after it,
    or else the next one. `crop` is the box that is hashed, as shares of the width and the height.
    """
    height, width = thumbnails[0].luma_HW.shape
    x0, y0, x1, y1 = crop
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    hashes = phashes(np.stack([item.luma_HW for item in thumbnails]), box).tolist()
    edges = [times.count_before(pts) for pts in (start_pts, *(item.pts for item in thumbnails[1:]), end_pts)]
    found = [
        FrameHash(times.pts(number), phash)
        for phash, first, end in zip(hashes, edges, edges[1:], strict=False)
        for number in range(first, min(end, first + MAX_REPEATS))
    ]
    if found:
        return tuple(found)
    middle_pts = (start_pts + end_pts) // 2
    nearest = min(range(len(thumbnails)), key=lambda i: abs(thumbnails[i].pts - middle_pts))
    return (FrameHash(middle_pts, hashes[nearest]),)
