"""Gaps in a video: times for which it has no frame, such as a clock that jumps where two recordings were joined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pipelines.video.frame_features import FrameFeatures
from pipelines.video.shot_boundaries import Boundary

MAX_FRAME_S = Fraction(10)
"""Longest time for which one frame is footage: FFmpeg, too, takes a longer step of a transport stream's clock for a
jump (`-dts_delta_threshold`)."""


def max_frame_pts(time_base: Fraction) -> int:
    """Return the longest time for which one frame is footage, in units of the time base."""
    return int(MAX_FRAME_S / time_base)


def find_gaps(features: FrameFeatures, frame_interval_pts: float) -> list[Boundary]:
    """Return the gaps between frames as boundaries: from the usual end of the frame before to the frame after.

    The frames beside a gap are always decoded (`gop_segments.decode_segment`), so none is skipped inside it.
    """
    longest_pts = max_frame_pts(features.time_base)
    interval_pts = max(1, round(frame_interval_pts))
    before = np.flatnonzero(np.diff(features.pts_N) > longest_pts * (features.skipped_N[1:] + 1))
    pts_N = features.pts_N
    return [Boundary("gap", int(pts_N[i]) + interval_pts, int(pts_N[i + 1]), 1.0) for i in before]


def with_gaps(boundaries: Sequence[Boundary], gaps: Sequence[Boundary]) -> tuple[Boundary, ...]:
    """Return the boundaries with gaps added, in time order; one that touches a gap becomes part of it."""
    if not gaps:
        return tuple(boundaries)
    joined: list[Boundary] = []
    for boundary in sorted(itertools.chain(boundaries, gaps), key=lambda item: (item.start_pts, item.end_pts)):
        last = joined[-1] if joined else None
        if last is not None and boundary.start_pts <= last.end_pts and "gap" in (boundary.kind, last.kind):
            joined[-1] = Boundary("gap", last.start_pts, max(last.end_pts, boundary.end_pts), 1.0)
        else:
            joined.append(boundary)
    return tuple(joined)
