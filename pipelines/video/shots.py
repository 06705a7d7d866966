"""Shots of a video: the spans between its boundaries, with the signals, hashes and thumbnails of each."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from pipelines.video.detailed_sample import DetailedSample
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.frame_hashes import FrameHash, HashTimes, LumaThumbnail, shot_hashes
from pipelines.video.media_info import MediaInfo
from pipelines.video.phash import FractionalBox
from pipelines.video.scale import Box
from pipelines.video.segment_meter import Measurements
from pipelines.video.shot_boundaries import Boundary, TransitionKind
from pipelines.video.signals import Signals, shot_signals

T = TypeVar("T")


@dataclass(frozen=True)
class Shot:
    """A run of frames without a transition, `end_pts` exclusive, and its signals.

    `transition_in` and `transition_out` are the kinds of transition at its start and end, None at the start and end of
    the video. `hashes` are those of the image inside the shot's crop, one per quarter of a second of the source
    (`frame_hashes.py`), at least one. `thumbnails` are JPEG files in time order.
    """

    start_pts: int
    end_pts: int
    n_frames: int
    transition_in: TransitionKind | None
    transition_out: TransitionKind | None
    signals: Signals
    hashes: tuple[FrameHash, ...]
    thumbnails: tuple[bytes, ...]


@dataclass(frozen=True)
class ShotSpan:
    """The span of a shot, `end_pts` exclusive, and the kinds of transition at its start and end."""

    start_pts: int
    end_pts: int
    transition_in: TransitionKind | None
    transition_out: TransitionKind | None


def shot_spans(boundaries: Sequence[Boundary], start_pts: int, end_pts: int) -> list[ShotSpan]:
    """Return the spans between boundaries; the frames of a gradual transition are in none of them."""
    starts = [(start_pts, None), *((boundary.end_pts, boundary.kind) for boundary in boundaries)]
    ends = [*((boundary.start_pts, boundary.kind) for boundary in boundaries), (end_pts, None)]
    return [
        ShotSpan(start, end, transition_in, transition_out)
        for (start, transition_in), (end, transition_out) in zip(starts, ends, strict=True)
        if start < end
    ]


def samples_within(measurements: Measurements, span: ShotSpan) -> Sequence[DetailedSample]:
    """Return the detailed samples of a span; a very short span may have none."""
    return _within(measurements.samples, span, attrgetter("pts"))


def make_shot(
    info: MediaInfo,
    measurements: Measurements,
    span: ShotSpan,
    samples: Sequence[DetailedSample],
    crop: Box,
    max_thumbnails: int,
) -> Shot:
    """Return the shot of a span of a measured video, given its detailed samples, at least one, and its crop."""
    features = measurements.features.between(span.start_pts, span.end_pts)
    # A pair of frames across a transition shows no motion.
    motions = [
        motion
        for motion in _within(measurements.motions, span, attrgetter("start_pts"))
        if motion.end_pts < span.end_pts
    ]
    signals = shot_signals(features, motions, samples, crop, _cut_in_scale(features, span))
    # A shot too short for a hash time has the signature that is kept of every frame.
    middle = len(features) // 2
    luma_thumbnails = _within(measurements.luma_thumbnails, span, attrgetter("pts")) or [
        LumaThumbnail(int(features.pts_N[middle]), features.luma_NHW[middle])
    ]
    hashes = shot_hashes(
        luma_thumbnails,
        HashTimes(info.start_pts, info.time_base),
        span.start_pts,
        span.end_pts,
        crop_shares(crop, info.width, info.height),
    )
    return Shot(
        span.start_pts,
        span.end_pts,
        features.n_frames,
        span.transition_in,
        span.transition_out,
        signals,
        hashes,
        spread_thumbnails(samples, span, max_thumbnails),
    )


def crop_shares(crop: Box, width: int, height: int) -> FractionalBox:
    """Return a box in pixels as displayed as shares of the frame's width and height."""
    x0, y0, x1, y1 = crop
    return x0 / width, y0 / height, x1 / width, y1 / height


def spread_thumbnails(samples: Sequence[DetailedSample], span: ShotSpan, max_thumbnails: int) -> tuple[bytes, ...]:
    """Return up to `max_thumbnails` thumbnails of a shot's samples, in time order.

    They are those nearest to times spread evenly over the shot, each once.
    """
    chosen: dict[int, bytes] = {}
    for i in range(max_thumbnails):
        pts = span.start_pts + (span.end_pts - span.start_pts) * (i + 0.5) / max_thumbnails
        sample = min(samples, key=lambda item: abs(item.pts - pts))
        chosen[sample.pts] = sample.thumbnail
    return tuple(thumbnail for _, thumbnail in sorted(chosen.items()))


def _cut_in_scale(features: FrameFeatures, span: ShotSpan) -> float | None:
    """Return the scale by which a shot enlarges part of the last frame of the shot before, None if it does not."""
    scale = float(features.cut_in_scale_N[0])
    return scale if span.transition_in == "cut" and not math.isnan(scale) else None


def _within(items: Sequence[T], span: ShotSpan, pts: Callable[[T], int]) -> Sequence[T]:
    """Return those items of a sequence in time order that lie in a span."""
    return items[bisect_left(items, span.start_pts, key=pts) : bisect_left(items, span.end_pts, key=pts)]
