"""Shots of a video: the spans between its boundaries, with the signals, hashes and thumbnails of each."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np
from PIL import Image

from pipelines.video.boxes import WHOLE_FRAME, FractionalBox, box_shares, coded_box, inner_pixels
from pipelines.video.detailed_sample import DetailedSample
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.frame_hashes import FrameHash, HashTimes, LumaThumbnail, shot_hashes
from pipelines.video.media_info import MediaInfo
from pipelines.video.motion import split_at_held_frames
from pipelines.video.scale import Box
from pipelines.video.segment_meter import Measurements
from pipelines.video.shot_boundaries import Boundary, TransitionKind
from pipelines.video.shot_series import FrameSeries, ShotSeries, motions_of_content
from pipelines.video.signals import Signals, span_signals
from pipelines.video.still_images import encode_jpeg

T = TypeVar("T")


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG file of the frame at `pts`, of the image without bars."""

    pts: int
    jpeg: bytes


@dataclass(frozen=True)
class Shot:
    """A run of frames without a transition, `end_pts` exclusive, and its measurements.

    `transition_in` and `transition_out` are the kinds of transition at its start and end, None at the start and end of
    the video. `crop` is (x0, y0, x1, y1) of the image without bars, in pixels as displayed. `series`, `hashes` and
    `thumbnails` are of the image inside it. `hashes` has one per quarter of a second of the source
    (`frame_hashes.py`), at least one. `thumbnails` are in time order.
    """

    start_pts: int
    end_pts: int
    n_frames: int
    transition_in: TransitionKind | None
    transition_out: TransitionKind | None
    crop: Box
    series: ShotSeries
    hashes: tuple[FrameHash, ...]
    thumbnails: tuple[Thumbnail, ...]

    @property
    def signals(self) -> Signals:
        """The signals of the whole shot."""
        return span_signals(self.series, self.start_pts, self.end_pts)


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
    frame_interval_pts: float,
    span: ShotSpan,
    samples: Sequence[DetailedSample],
    crop: Box,
) -> Shot:
    """Return the shot of a span of a measured video, given its detailed samples, at least one, and its crop.

    `frame_interval_pts` is the usual time between the video's frames.
    """
    features = measurements.features.between(span.start_pts, span.end_pts)
    content = box_shares(crop, info.width, info.height)
    # A pair of frames across a transition shows no motion.
    motions = [
        motion
        for motion in _within(measurements.motions, span, attrgetter("start_pts"))
        if motion.end_pts < span.end_pts
    ]
    split = split_at_held_frames(motions, info.time_base)
    coded_content = coded_box(content, info.orientation)
    series = ShotSeries(
        span.start_pts,
        span.end_pts,
        info.time_base,
        frame_interval_pts,
        FrameSeries.from_features(features, content),
        motions_of_content(split, content, info.width, info.height),
        tuple(sample.inside(content, coded_content) for sample in samples),
        _cut_in_scale(features, span),
    )
    # A shot too short for a hash time has the signature that is kept of every frame.
    middle = len(features) // 2
    luma_thumbnails = _within(measurements.luma_thumbnails, span, attrgetter("pts")) or [
        LumaThumbnail(int(features.pts_N[middle]), features.luma_NHW[middle])
    ]
    times = HashTimes(info.start_pts, info.time_base)
    return Shot(
        span.start_pts,
        span.end_pts,
        features.n_frames,
        span.transition_in,
        span.transition_out,
        crop,
        series,
        shot_hashes(luma_thumbnails, times, span.start_pts, span.end_pts, content),
        tuple(Thumbnail(sample.pts, crop_jpeg(sample.thumbnail, content)) for sample in samples if sample.thumbnail),
    )


def crop_jpeg(jpeg: bytes, content: FractionalBox) -> bytes:
    """Return a JPEG file cropped to a box; the file itself for the whole frame."""
    if content == WHOLE_FRAME:
        return jpeg
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return encode_jpeg(np.asarray(image.crop(inner_pixels(content, image.width, image.height)), np.uint8))


def spread(
    items: Sequence[T], n: int, start_pts: int, end_pts: int, pts: Callable[[T], int] = attrgetter("pts")
) -> list[T]:
    """Return up to `n` of the items of a span, in time order; `pts` gives the time of an item.

    They are those nearest to times spread evenly over the span, each once.
    """
    chosen: dict[int, T] = {}
    for i in range(n if items else 0):
        wanted = start_pts + (end_pts - start_pts) * (i + 0.5) / n
        item = min(items, key=lambda item: abs(pts(item) - wanted))
        chosen[pts(item)] = item
    return [chosen[key] for key in sorted(chosen)]


def _cut_in_scale(features: FrameFeatures, span: ShotSpan) -> float | None:
    """Return the scale by which a shot enlarges part of the last frame of the shot before, None if it does not."""
    scale = float(features.cut_in_scale_N[0])
    return scale if span.transition_in == "cut" and not math.isnan(scale) else None


def _within(items: Sequence[T], span: ShotSpan, pts: Callable[[T], int]) -> Sequence[T]:
    """Return those items of a sequence in time order that lie in a span."""
    return items[bisect_left(items, span.start_pts, key=pts) : bisect_left(items, span.end_pts, key=pts)]
