"""The signals of a span of a shot: numbers that a threshold can be set on, from the measurements of its frames.

Their meanings, ranges and sensible thresholds are in docs/measures/signals.md.

Shape legend: N decoded frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Float32Array
from pipelines.video.camera import CameraMotion, camera_motion
from pipelines.video.frame_features import true_runs
from pipelines.video.motion import PairMotion
from pipelines.video.shot_series import FrameSeries, ShotSeries

T = TypeVar("T")

MAX_FROZEN_CHANGE = 0.5
"""The image is frozen while no block of the analysis image differs by more than this from the frame before, in 8-bit
values. A still encoded by x264 at crf 18 to 26 gives up to 0.4, at crf 34 rarely 1.6; a person who sits still, 2 and
more."""

MAX_REPEAT_SHARE = 0.15
"""A frame also repeats the one before if it differs by at most this share of what its neighbours do. A repeat in
compressed motion is touched up, by 0.3 to 3 8-bit values where the frames around it change by 6 to 20."""

MIN_MOVING_CHANGE = 2.0
"""Repeats are counted only where a frame within two differs by more than this, in 8-bit values: in an image that hardly
changes, any frame may seem to repeat."""

MIN_FREEZE_S = 0.2
"""Repeats that last this long are a freeze, and so is a frame shown for so much longer than usual. Shorter ones are
frames shown more than once: animation on twos and threes at 24 fps, pull-up."""


@dataclass(frozen=True)
class Signals:
    """The signals of one span; units and sources are in docs/measures/signals.md.

    A signal is None where there is nothing to measure.
    """

    luma: float
    contrast: float
    clipped_black: float
    clipped_white: float
    sharpness: float
    colourfulness: float
    noise: float | None
    blockiness: float | None
    motion: float | None
    local_motion: float | None
    camera: CameraMotion | None
    frozen_share: float | None
    duplicate_share: float | None
    flicker: float | None


def span_signals(series: ShotSeries, start_pts: int, end_pts: int) -> Signals:
    """Return the signals of a span of a shot, `end_pts` exclusive.

    Signals that need a second frame are None for a still image. Means over motions are weighted by time; those over
    samples are not, since samples are evenly spread. Where the shot continues the one before enlarged, the camera of a
    span at its start is "cut-in" where it would be "still".
    """
    samples = items_of_span(series.samples, start_pts, end_pts)
    # The loop filter removes blocks, and with them some of what is taken for noise.
    filtered = [sample for sample in samples if sample.loop_filtered] or samples
    camera: CameraMotion | None = None
    motion = local_motion = frozen_share = duplicate_share = flickering = None
    if series.motions is not None:
        motions = _clipped_motions(series.motions, start_pts, end_pts)
        camera = camera_motion(motions, series.time_base)
        if series.cut_in is not None and start_pts == series.start_pts and camera == "still":
            camera = "cut-in"
        motion = _mean_over_time(motions, [one.speed for one in motions])
        local_motion = _mean_over_time(motions, [one.local for one in motions])
        frozen_share, duplicate_share = repeat_shares(series, start_pts, end_pts)
        flickering = flicker(series.frames, start_pts, end_pts)
    return Signals(
        luma=_mean([sample.luma for sample in samples]),
        contrast=_mean([sample.contrast for sample in samples]),
        clipped_black=_mean([sample.clipped_black for sample in samples]),
        clipped_white=_mean([sample.clipped_white for sample in samples]),
        sharpness=_mean([sample.sharpness for sample in samples]),
        colourfulness=_mean([sample.colourfulness for sample in samples]),
        noise=_mean_of_known([sample.noise for sample in filtered]),
        blockiness=_mean_of_known([sample.blockiness for sample in filtered]),
        motion=motion,
        local_motion=local_motion,
        camera=camera,
        frozen_share=frozen_share,
        duplicate_share=duplicate_share,
        flicker=flickering,
    )


def items_of_span(
    items: Sequence[T], start_pts: int, end_pts: int, pts: Callable[[T], int] = attrgetter("pts")
) -> Sequence[T]:
    """Return those of a shot's items, at least one and in time order, that lie in a span.

    Where there is none, it is the one nearest to the span's middle. `pts` gives the time of an item.
    """
    first, end = (bisect_left(items, edge, key=pts) for edge in (start_pts, end_pts))
    return items[first:end] or [min(items, key=lambda item: abs(2 * pts(item) - start_pts - end_pts))]


def repeat_shares(series: ShotSeries, start_pts: int, end_pts: int) -> tuple[float, float | None]:
    """Return (share of a span's time in freezes, share of frames outside freezes that repeat the one before).

    Freezes are found among all decoded frames, also where frames between them were skipped. A frame that is shown for
    longer than usual is a freeze for the rest of its time, as if it were repeated. Repeats are counted among frames
    whose previous frame was decoded, while the image changes; None where there are none of these.
    """
    frames, min_freeze_pts = series.frames, MIN_FREEZE_S / float(series.time_base)
    # Interval i is the time from frame i to the next one; the last one ends with the shot.
    edges_pts = np.append(frames.pts_N, max(series.end_pts, int(frames.pts_N[-1])))
    shown_pts = np.maximum(np.minimum(edges_pts[1:], end_pts) - np.maximum(edges_pts[:-1], start_pts), 0)
    # Whether a span's last frame is repeated in its usual time is not known: it has no next frame to compare.
    is_last = edges_pts[1:] >= end_pts
    is_last[-1] = True
    same = np.append(frames.peak_N[1:] <= MAX_FROZEN_CHANGE, False) & ~is_last & (shown_pts > 0)
    frozen = np.zeros(len(same), np.bool_)
    for first, end in true_runs(same):
        frozen[first:end] = shown_pts[first:end].sum() >= min_freeze_pts
    lengths_pts = np.diff(edges_pts)
    excess_pts = lengths_pts - series.frame_interval_pts * (np.append(frames.skipped_N[1:], 0) + 1)
    held = np.where(excess_pts >= min_freeze_pts, excess_pts / np.maximum(lengths_pts, 1), 0.0)
    frozen_pts = shown_pts * np.where(frozen, 1.0, held)
    total_pts = float(shown_pts[~is_last].sum() + frozen_pts[is_last].sum())
    inside = slice(*np.searchsorted(frames.pts_N, [start_pts, end_pts]).tolist())
    duplicate_share = _duplicate_share(frames.peak_N[inside][1:], frames.skipped_N[inside][1:], frozen[inside][:-1])
    return (float(frozen_pts.sum()) / total_pts if total_pts else 0.0), duplicate_share


def _duplicate_share(peak_N: Float32Array, skipped_N: NDArray[np.int32], frozen_N: BoolArray) -> float | None:
    """Return the share of frames that repeat the one before, of those outside freezes whose previous was decoded."""
    if not len(peak_N):
        return None
    around_N = sliding_window_view(np.pad(peak_N, 2), 5).max(axis=1)
    same_N = (peak_N <= MAX_FROZEN_CHANGE) | (peak_N <= MAX_REPEAT_SHARE * around_N)
    counted_N = (skipped_N == 0) & ~frozen_N & (around_N > MIN_MOVING_CHANGE)
    n = int(np.count_nonzero(counted_N))
    return int(np.count_nonzero(counted_N & same_N)) / n if n else None


def flicker(frames: FrameSeries, start_pts: int, end_pts: int) -> float | None:
    """Return the mean of |m(k) - (m(k-1) + m(k+1)) / 2| over a span's frames whose two neighbours were decoded.

    m is the mean luma of a frame, in [0, 1]. This is half the second difference in time: 0 for steady fades and drifts
    of exposure, the peak-to-peak amplitude for light that alternates with every frame. The definition is ours. None
    where no three neighbours were decoded.
    """
    inside = slice(*np.searchsorted(frames.pts_N, [start_pts, end_pts]).tolist())
    luma_N = frames.luma_N[inside].astype(np.float64)
    has_previous_N = frames.skipped_N[inside] == 0
    has_both_N = has_previous_N[1:-1] & has_previous_N[2:]
    if not has_both_N.any():
        return None
    return float(np.abs(luma_N[1:-1] - (luma_N[:-2] + luma_N[2:]) / 2)[has_both_N].mean())


def _clipped_motions(motions: Sequence[PairMotion], start_pts: int, end_pts: int) -> list[PairMotion]:
    """Return the motions that end with a frame of a span, each for the time that it shares with the span."""
    return [
        replace(motion, start_pts=max(motion.start_pts, start_pts))
        for motion in motions
        if start_pts < motion.end_pts < end_pts
    ]


def _mean_over_time(motions: Sequence[PairMotion], values: Sequence[float]) -> float:
    """Return the mean of values of motions, weighted by duration.

    It is 0 without motions, in shots of under a tenth of a second.
    """
    total_pts = sum(motion.end_pts - motion.start_pts for motion in motions)
    if not total_pts:
        return 0.0
    weighted = (value * (motion.end_pts - motion.start_pts) for motion, value in zip(motions, values, strict=True))
    return math.fsum(weighted) / total_pts


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
