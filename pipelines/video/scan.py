"""The one pass over a source: its shots and every cheap signal of each, for less than it costs to decode the video.

A video is decoded once, in stretches (`stretches.py`), each frame at a small size (`measure.py`); what is left of it is a
series of a kilobyte a frame, in which the shots are then found (`shots.py`) and measured (`signals.py`). A long video can be
scanned in pieces by several workers; joined, they give the scan of the whole, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import Any, TypeVar

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image
from pydantic import Field

from cluster.config import Settings
from pipelines.video import phash, transnet
from pipelines.video.content_hash import content_hash
from pipelines.video.decode import DecodeError, MediaInfo, Video, open_video
from pipelines.video.detailed_sample import take_look
from pipelines.video.frame_features import Series
from pipelines.video.frame_hashes import HASH_EVERY_S, FrameHash, Moments, Still, shot_hashes, still
from pipelines.video.gop_segments import ANCHOR_S, NotSplittableError, Stretches, Window
from pipelines.video.letterbox import crop_boxes
from pipelines.video.measure import ANALYSIS_AREA, LOOK_AREA, Meter, Part, Rows, View, picture_size, upright_planes
from pipelines.video.scale import Box, rescale
from pipelines.video.shot_boundaries import Boundary, DetectorName, Kind, find_boundaries
from pipelines.video.signals import Signals, shot_signals
from pipelines.video.still_images import encode_jpeg, fit_long_side, read_image

PIECE_COST = 1e10
"""Pixels times frames of a piece of a long video: about 15 s of work, 8 minutes of 1080p or 40 of 480p at 24 fps."""

ROUNDS = 4
"""How often frames that were passed over are asked for once stretches are joined; one round is the rule."""


T = TypeVar("T")
VIEW_PTS, MOVE_PTS, STILL_PTS = attrgetter("pts"), attrgetter("start_pts"), attrgetter("pts")


class ScanSettings(Settings):
    """How shots are found and what is kept of them."""

    detector: DetectorName = Field(
        "signature",
        description="signature: cuts, dissolves and fades, told from motion and flashes; transnetv2: the same, with a network where that is "
        "uncertain; content, adaptive: PySceneDetect's, cuts only.",
    )
    threshold: float | None = Field(None, gt=0, description="Sensitivity of the detector; null for its default.")
    min_shot_s: float = Field(
        0.3,
        ge=0,
        description="Shots shorter than this are joined to a neighbour, across the weaker transition; in seconds.",
    )
    stitch: float | None = Field(
        None,
        gt=0,
        description="Join shots that a cut parted when the pictures on its two sides differ by less than this, in levels of 255.",
    )
    thumbnails: int = Field(
        3, ge=0, le=16, description="JPEG pictures kept of each shot, at most; one is taken each second."
    )
    thumbnail_px: int = Field(160, ge=16, le=256, description="Long side of a thumbnail in pixels.")


@dataclass(frozen=True)
class ScannedMedia(MediaInfo):
    """Media information with what only a full pass can tell."""

    source_duration_s: float
    """From the first frame to the end of the last, as decoded; 0 for an image."""
    n_frames: int
    content_hash: str
    """Hash of the compressed packets of the stream in order, or of an image's file: the same for a remux (`content.py`)."""


@dataclass(frozen=True)
class Shot:
    """A run of frames without a transition, `end_pts` exclusive, and its signals.

    `transition_in` and `transition_out` are what it begins and ends with: a kind of transition, or None where the video begins or ends.
    `hashes` are of the picture inside the shot's crop, each quarter of a second of the source (`moments.py`), at least one.
    `thumbnails` are JPEG files in time order.
    """

    start_pts: int
    end_pts: int
    n_frames: int
    transition_in: Kind | None
    transition_out: Kind | None
    signals: Signals
    hashes: tuple[FrameHash, ...]
    thumbnails: tuple[bytes, ...]


@dataclass(frozen=True)
class VideoScan:
    """A source, its shots, and the transitions between them; every frame is in a shot or in a gradual transition."""

    media: ScannedMedia
    shots: tuple[Shot, ...]
    boundaries: tuple[Boundary, ...]


@dataclass(frozen=True)
class Piece:
    """Part of a long video: stretches from cell `first` to `end` (exclusive; None: to the end), and about what it costs."""

    first: int
    end: int | None
    cost: float


def scan_video(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Decode a video once, from end to end. Raises `DecodeError` for one that does not decode to its end."""
    settings = settings or ScanSettings()
    with one_thread(), open_video(uri) as video:
        try:
            part = _measured(video, settings, 0, None)
            return _finished(video, settings, part)
        except NotSplittableError:
            pass
    with one_thread(), open_video(uri) as video:
        return _finished(video, settings, _measured(video, settings, 0, None, split=False))


def divide(uri: str) -> list[Piece]:
    """Pieces that workers can scan apart; none for a video that is not worth it. Reads the headers only. Raises `DecodeError`."""
    with open_video(uri) as video:
        info = video.info
        if not video.has_pts or not info.duration_s or not info.fps:
            return []
        cost_per_s = info.coded_width * info.coded_height * info.fps
        n = int(info.duration_s * cost_per_s / PIECE_COST)
        cells = int(info.duration_s / ANCHOR_S) + 1
        n = min(n, cells)
        if n < 2:
            return []
        edges = [cells * i // n for i in range(n)]
        return [
            Piece(first, end, cost_per_s * ANCHOR_S * ((cells if end is None else end) - first))
            for first, end in zip(edges, [*edges[1:], None], strict=True)
        ]


def scan_piece(uri: str, settings: ScanSettings, first: int, end: int | None) -> Part | None:
    """Scan cells `first` to `end` of a video; None where none begins there.

    Raises `DecodeError`, of which `NotSplittableError` says that the video has to be scanned whole.
    """
    with one_thread(), open_video(uri) as video:
        return _measured(video, settings, first, end)


def join_pieces(uri: str, settings: ScanSettings, parts: Sequence[Part | None]) -> VideoScan:
    """The scan of a video from its pieces, in order: what `scan_video` gives. Raises `DecodeError`."""
    with one_thread(), open_video(uri) as video:
        return _finished(video, settings, Part.joined([part for part in parts if part is not None]))


def _measured(video: Video, settings: ScanSettings, first: int, end: int | None, split: bool = True) -> Part | None:
    meter = _meter(video, settings)
    stretches = Stretches(video, first, end, thin=not meter.whole, split=split)
    parts = [part for part in map(meter.stretch, stretches) if part is not None]
    # Stretches are measured as they are read, so by now all of them are.
    return dataclasses.replace(Part.joined(parts), payload=stretches.payload) if parts else None


def _finished(video: Video, settings: ScanSettings, part: Part | None) -> VideoScan:
    """Shots and signals of a video that was measured to its end."""
    if part is None:
        raise DecodeError(f"{video.uri}: no frame can be decoded")
    info = video.info
    meter = _meter(video, settings)
    series, found = _boundaries(video, settings, meter, part.series)
    end_pts = part.last[0] + _last_duration(part, info)
    # A fade out that the file ends in lasts as long as the last frame is shown.
    boundaries = tuple(b if b.end_pts <= part.last[0] else dataclasses.replace(b, end_pts=end_pts) for b in found)
    video.check_complete(end_pts)
    part = dataclasses.replace(part, series=series)
    found_spans = [
        span for span in spans(boundaries, info.start_pts, end_pts) if len(series.between(span.start_pts, span.end_pts))
    ]
    views = [_views(video, meter, part, span) for span in found_spans]
    crops = crop_boxes([[view.look.borders for view in seen] for seen in views], info.width, info.height)
    shots = [
        _shot(info, part, span, seen, crop, settings)
        for span, seen, crop in zip(found_spans, views, crops, strict=True)
    ]
    duration_s = float((end_pts - info.start_pts) * info.time_base)
    media = ScannedMedia(
        **_fields(info),
        source_duration_s=duration_s,
        n_frames=series.n_frames,
        content_hash=content_hash([part.payload]),
    )
    return VideoScan(media, tuple(shots), boundaries)


def _boundaries(
    video: Video, settings: ScanSettings, meter: Meter, series: Series
) -> tuple[Series, tuple[Boundary, ...]]:
    """The boundaries, and the series with the frames that had to be decoded for them where stretches meet."""
    found = find_boundaries(series, settings.detector, settings.threshold, settings.min_shot_s)
    for _ in range(ROUNDS):
        if not found.uncertain:
            break
        groups = _near(found.uncertain, int(ANCHOR_S / video.info.time_base))
        series = series.with_windows(
            [closer for group in groups for closer in meter.windows(video.packets_from(group[0][0]), group)]
        )
        found = find_boundaries(series, settings.detector, settings.threshold, settings.min_shot_s)
    # A file that shows one plain colour from end to end is a shot of it, not a fade.
    first_pts, last_pts = int(series.pts_N[0]), int(series.pts_N[-1])
    decided = found.boundaries
    if settings.detector == "transnetv2":
        decided = transnet.refine(
            found,
            series,
            lambda start, end: meter.colours(video.packets_from(start), start, end),
            min_shot_s=settings.min_shot_s,
        )
    boundaries = tuple(b for b in decided if b.start_pts > first_pts or b.end_pts <= last_pts)
    if settings.stitch is not None:
        boundaries = stitched(series, boundaries, settings.stitch)
    return series, boundaries


def stitched(series: Series, boundaries: Sequence[Boundary], most: float) -> tuple[Boundary, ...]:
    """The boundaries without cuts whose two sides show almost the same picture: less than `most` levels of 255 apart on average."""
    kept = []
    for boundary in boundaries:
        after = int(np.searchsorted(series.pts_N, boundary.start_pts))
        if boundary.kind != "cut" or after == 0 or series.distance(after - 1, after) >= most:
            kept.append(boundary)
    return tuple(kept)


@dataclass(frozen=True)
class ShotSpan:
    """Where a shot lies and which kinds of transition it lies between."""

    start_pts: int
    end_pts: int
    transition_in: Kind | None
    transition_out: Kind | None


def spans(boundaries: Sequence[Boundary], start_pts: int, end_pts: int) -> list[ShotSpan]:
    """The shots between boundaries: the frames of a gradual transition belong to none."""
    starts = [(start_pts, None), *((boundary.end_pts, boundary.kind) for boundary in boundaries)]
    ends = [*((boundary.start_pts, boundary.kind) for boundary in boundaries), (end_pts, None)]
    return [
        ShotSpan(start, end, transition_in, transition_out)
        for (start, transition_in), (end, transition_out) in zip(starts, ends, strict=True)
        if start < end
    ]


def _views(video: Video, meter: Meter, part: Part, span: ShotSpan) -> Sequence[View]:
    """The views of a shot, at least one."""
    if views := _inside(part.views, span, VIEW_PTS):
        return views
    # A shot too short for a look of its own, and too like the one before to be noticed while it was decoded.
    series = part.series.between(span.start_pts, span.end_pts)
    middle_pts = int(series.pts_N[len(series) // 2])
    return [meter.view_of(video.packets_from(middle_pts), middle_pts)]


def _shot(
    info: MediaInfo, part: Part, span: ShotSpan, views: Sequence[View], crop: Box, settings: ScanSettings
) -> Shot:
    series = part.series.between(span.start_pts, span.end_pts)
    # A pair of frames across a transition is no motion.
    moves = [move for move in _inside(part.moves, span, MOVE_PTS) if move.end_pts < span.end_pts]
    signals = shot_signals(series, moves, [view.look for view in views], crop, _nearer(series, span))
    thumbnails = spread(views, span, settings.thumbnails)
    # A shot too short for a moment of its own has the small picture that is kept of every frame.
    stills = _inside(part.stills, span, STILL_PTS) or [
        Still(int(series.pts_N[len(series) // 2]), series.luma_NHW[len(series) // 2])
    ]
    hashes = shot_hashes(
        stills,
        Moments(info.start_pts, info.time_base),
        span.start_pts,
        span.end_pts,
        _share(crop, info.width, info.height),
    )
    return Shot(
        span.start_pts,
        span.end_pts,
        series.n_frames,
        span.transition_in,
        span.transition_out,
        signals,
        hashes,
        thumbnails,
    )


def _share(crop: Box, width: int, height: int) -> phash.Box:
    """A box in displayed pixels as shares of the picture's width and height."""
    x0, y0, x1, y1 = crop
    return x0 / width, y0 / height, x1 / width, y1 / height


def _nearer(series: Series, span: ShotSpan) -> float | None:
    """How much nearer a shot is that shows part of what the shot before it ended with."""
    scale = float(series.nearer_N[0])
    return scale if span.transition_in == "cut" and not math.isnan(scale) else None


def spread(views: Sequence[View], span: ShotSpan, count: int) -> tuple[bytes, ...]:
    """Thumbnails of up to `count` of the views, those nearest to moments spread evenly over a shot, in time order."""
    chosen: dict[int, bytes] = {}
    for i in range(count):
        moment = span.start_pts + (span.end_pts - span.start_pts) * (i + 0.5) / count
        view = min(views, key=lambda item: abs(item.pts - moment))
        chosen[view.pts] = view.thumbnail
    return tuple(thumbnail for _, thumbnail in sorted(chosen.items()))


def scan_image(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Measure a still image: one shot of one frame, PTS 0 to 1. Raises `DecodeError`."""
    settings = settings or ScanSettings()
    image = read_image(uri)
    # Through the same scaler as a video's frames, so that the same picture measures the same.
    frame = VideoFrame.from_ndarray(np.asarray(image, np.uint8), "rgb24")

    def small(area: int) -> VideoFrame:
        return rescale(
            VideoReformatter(), frame, *picture_size(image.height, image.width, area), "yuv420p", Colorspace.ITU601
        )

    rows = Rows(Fraction(1), scores=False)
    luma_HW = rows.push(0, 0, *upright_planes(small(ANALYSIS_AREA), 0), None)
    series = rows.series()
    native = np.asarray(image.convert("L"), np.uint8)
    look = take_look(0, *upright_planes(small(LOOK_AREA), 0), native, True)
    (crop,) = crop_boxes([[look.borders]], image.width, image.height)
    signals = shot_signals(series, None, [look], crop)
    thumbnails = (thumbnail(image, settings.thumbnail_px),) if settings.thumbnails else ()
    media = ScannedMedia(
        codec=str(image.info["codec"]),
        width=image.width,
        height=image.height,
        coded_width=image.width,
        coded_height=image.height,
        rotation_deg=0,
        fps=None,
        time_base_num=1,
        time_base_den=1,
        start_pts=0,
        duration_s=None,
        pixel_format="rgb24",
        color_range="full",
        bit_depth=8,
        hdr=None,
        interlaced=False,
        n_video_streams=0,
        source_duration_s=0.0,
        n_frames=1,
        content_hash=str(image.info["content_hash"]),
    )
    # A time base in which it lasts for one moment.
    hashes = shot_hashes([still(0, luma_HW)], Moments(0, HASH_EVERY_S), 0, 1, _share(crop, image.width, image.height))
    return VideoScan(media, (Shot(0, 1, 1, None, None, signals, hashes, thumbnails),), ())


def thumbnail(image: Image.Image, long_side: int) -> bytes:
    """A picture as a JPEG with this long side."""
    return encode_jpeg(
        np.asarray(
            image.resize(fit_long_side(image.width, image.height, long_side), Image.Resampling.LANCZOS), np.uint8
        )
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV without threads of its own: workers come one a core, and its flow depends on how many threads share a picture."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _meter(video: Video, settings: ScanSettings) -> Meter:
    return Meter(
        video,
        settings.detector,
        settings.threshold,
        settings.min_shot_s,
        settings.thumbnail_px if settings.thumbnails else 0,
    )


def _inside(items: Sequence[T], span: ShotSpan, pts: Callable[[T], int]) -> Sequence[T]:
    """Those items of a list in time order that lie in a span."""
    return items[bisect_left(items, span.start_pts, key=pts) : bisect_left(items, span.end_pts, key=pts)]


def _near(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Windows in groups that are decoded in one go: each starts at most this far after the one before ended."""
    group: list[Window] = []
    for window in windows:
        if group and window[0] - group[-1][1] > most:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _last_duration(part: Part, info: MediaInfo) -> int:
    """How long the last frame is shown: as the file says, or as long as the one before, or one frame at the average rate."""
    pts_N = part.series.pts_N
    gap = int(pts_N[-1] - pts_N[-2]) // (int(part.series.passed_over_N[-1]) + 1) if len(pts_N) > 1 else 0
    rate = Fraction(info.fps).limit_denominator(1001) if info.fps else 0
    return max(1, part.last[1] or gap or (round(1 / (rate * info.time_base)) if rate else 0))


def _fields(info: MediaInfo) -> dict[str, Any]:
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(MediaInfo)}
