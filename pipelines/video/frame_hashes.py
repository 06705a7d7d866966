"""The moments of a source at which its picture is hashed: one each quarter of a second, whatever its shots and pieces are.

A copy that begins elsewhere or is cut otherwise has the same sequence of hashes, moved along. A picture is kept for each moment while
the frames go by, and hashed when its shot is known, and with it the bars around the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from cluster.arrays import Pixels
from pipelines.video.phash import Box, phashes

HASH_EVERY_S = Fraction(1, 4)

MOST_REPEATS = 240
"""A frame that is shown for longer than a minute is hashed for its first minute: 30 years between two frames of a damaged file are
four billion moments."""


@dataclass(frozen=True)
class Still:
    """The luma of a frame shown at a moment: the analysis picture averaged over squares of 2 pixels, 64 x 36 in area; 2.3 kB."""

    pts: int
    luma_HW: Pixels


@dataclass(frozen=True)
class FrameHash:
    """Perceptual hash (unsigned 64 bits) of the frame shown at a moment, in units of the time base."""

    pts: int
    phash: int


@dataclass(frozen=True)
class Moments:
    """Moment k is k quarters of a second after the first frame of the source."""

    start_pts: int
    time_base: Fraction

    def before(self, pts: int) -> int:
        """How many moments lie before a PTS; so also the number of the first one at it or after."""
        # Integers, for it is asked of every frame.
        time_base, every = self.time_base, HASH_EVERY_S
        return max(
            0,
            -(
                (self.start_pts - pts)
                * time_base.numerator
                * every.denominator
                // (time_base.denominator * every.numerator)
            ),
        )

    def pts(self, number: int) -> int:
        """The moment in units of the time base, rounded down."""
        return self.start_pts + int(number * HASH_EVERY_S / self.time_base)


def still(pts: int, analysis_HW: Pixels) -> Still:
    """What is kept of a frame, given its analysis picture."""
    height, width = analysis_HW.shape
    return Still(
        pts, np.asarray(cv2.resize(analysis_HW, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8)
    )


def shot_hashes(
    stills: Sequence[Still], moments: Moments, start_pts: int, end_pts: int, crop: Box
) -> tuple[FrameHash, ...]:
    """A hash for each moment from `start_pts` to `end_pts` (exclusive), or one at the middle where there is none.

    `stills` are those of the shot, at least one, PTS rising. A moment has the latest that is not after it, or else the next. `crop` is
    the box that is hashed, in shares of the width and the height.
    """
    height, width = stills[0].luma_HW.shape
    x0, y0, x1, y1 = crop
    hashes = phashes(
        np.stack([item.luma_HW for item in stills]), (x0 * width, y0 * height, x1 * width, y1 * height)
    ).tolist()
    edges = [moments.before(pts) for pts in (start_pts, *(item.pts for item in stills[1:]), end_pts)]
    found = [
        FrameHash(moments.pts(number), phash)
        for phash, first, end in zip(hashes, edges, edges[1:], strict=False)
        for number in range(first, min(end, first + MOST_REPEATS))
    ]
    if found:
        return tuple(found)
    middle_pts = (start_pts + end_pts) // 2
    nearest = min(range(len(stills)), key=lambda i: abs(stills[i].pts - middle_pts))
    return (FrameHash(middle_pts, hashes[nearest]),)
