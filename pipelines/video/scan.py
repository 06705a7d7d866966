"""Scan a source in a single pass: find its shots and measure cheap signals of each.

This costs less than decoding the video at its size. A video is decoded once, in segments (`gop_segments.py`), each
frame at a small size (`segment_meter.py`). Of each frame about a kilobyte of features is kept, in which the shots are
then found (`shot_boundaries.py`) and measured (`shots.py`). A long video can be scanned in pieces by several workers;
joined, they give the scan of the whole, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image
from pydantic import Field

from cluster.config import Settings
from pipelines.video.boxes import box_shares
from pipelines.video.content_hash import content_hash
from pipelines.video.decode import DecodedFrame, DecodeError, Video, open_video
from pipelines.video.detailed_sample import DetailedSample, take_detailed_sample
from pipelines.video.feature_builder import ANALYSIS_AREA, FeatureBuilder
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.frame_hashes import HASH_INTERVAL_S, HashTimes, luma_thumbnail, shot_hashes
from pipelines.video.gaps import find_gaps, max_frame_pts, with_gaps
from pipelines.video.gop_segments import ANCHOR_INTERVAL_S, GopSegments, NotSplittableError, SegmentFrame, Window
from pipelines.video.letterbox import crop_boxes
from pipelines.video.media_info import MediaInfo
from pipelines.video.orientation import UPRIGHT
from pipelines.video.scale import YuvPlanes, rescale, size_with_area, upright_planes
from pipelines.video.segment_meter import SAMPLE_AREA, Measurements, SegmentMeter
from pipelines.video.shot_boundaries import Boundary, DetectorName, find_boundaries, stitch_cuts
from pipelines.video.shot_series import FrameSeries, ShotSeries, usual_frame_interval
from pipelines.video.shots import Shot, ShotSpan, Thumbnail, crop_jpeg, make_shot, samples_within, shot_spans
from pipelines.video.still_images import encode_jpeg, fit_long_side, read_image

PIECE_COST = 1e10
"""Pixels times frames of a piece of a long video: about 15 s of work, 8 minutes of 1080p or 40 of 480p at 24 fps."""

MAX_DECODE_ROUNDS = 4
"""Largest number of times that skipped frames are decoded after segments were joined; once is usual."""


class ScanSettings(Settings):
    """Settings of how shots are found and which thumbnails are kept."""

    detector: DetectorName = Field(
        "signature",
        description="signature: cuts, dissolves and fades, distinguished from motion and flashes; content, "
        "adaptive: PySceneDetect's detectors, cuts only.",
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
        description="Join shots at a cut if the frames on its two sides differ by less than this, in 8-bit values; "
        "null joins none.",
    )
    thumbnail_px: int = Field(
        160,
        ge=0,
        le=256,
        description="Long side in pixels of JPEG thumbnails, one per second of footage (about 5 kB); 0 stores none.",
    )


@dataclass(frozen=True)
class ScannedMedia(MediaInfo):
    """Facts about a source, with those that need a full pass."""

    source_duration_s: float
    """Seconds of footage, as decoded, without gaps; 0 for an image."""
    n_frames: int
    """Number of frames that are shown."""
    n_misplaced_frames: int
    """Number of decoded frames that no reader shows, since their PTS is not later than that of the frame before."""
    content_hash: str
    """Hash of the compressed packets of the stream in order, or of an image's file; a remux has the same
    (`content_hash.py`)."""


@dataclass(frozen=True)
class VideoScan:
    """A source, its shots, and the transitions between them; every frame is in a shot or in a gradual transition."""

    media: ScannedMedia
    shots: tuple[Shot, ...]
    boundaries: tuple[Boundary, ...]


@dataclass(frozen=True)
class Piece:
    """A piece of a long video: its intervals of five seconds from `first` to `end` (exclusive; None: to the end).

    `cost` is about the number of pixels it decodes.
    """

    first: int
    end: int | None
    cost: float


def scan_video(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Decode a video once, from end to end, and return its scan.

    Raises `DecodeError` if it does not decode to its end.
    """
    settings = settings or ScanSettings()
    with single_threaded_opencv(), open_video(uri) as video:
        try:
            return _finish(video, settings, _measure(video, settings, 0, None))
        except NotSplittableError:
            pass
    with single_threaded_opencv(), open_video(uri) as video:
        return _finish(video, settings, _measure(video, settings, 0, None, split=False))


def divide(uri: str) -> list[Piece]:
    """Return pieces that workers can scan separately, none for a video that is too short.

    It reads the headers and decodes the first frame. Raises `DecodeError`.
    """
    with open_video(uri) as video:
        info = video.info
        if not video.has_pts or video.clock_may_jump or not info.duration_s or not info.fps:
            return []
        cost_per_s = info.coded_width * info.coded_height * info.fps
        intervals = int(info.duration_s / ANCHOR_INTERVAL_S) + 1
        n = min(int(info.duration_s * cost_per_s / PIECE_COST), intervals)
        if n < 2:
            return []
        edges = [intervals * i // n for i in range(n)]
        return [
            Piece(first, end, cost_per_s * ANCHOR_INTERVAL_S * ((intervals if end is None else end) - first))
            for first, end in zip(edges, [*edges[1:], None], strict=True)
        ]


def scan_piece(uri: str, settings: ScanSettings, first: int, end: int | None) -> Measurements | None:
    """Measure the intervals `first` to `end` of a video; None if no segment begins in them.

    Raises `DecodeError`; its subclass `NotSplittableError` means that the video has to be scanned whole.
    """
    with single_threaded_opencv(), open_video(uri) as video:
        return _measure(video, settings, first, end)


def join_pieces(uri: str, settings: ScanSettings, pieces: Sequence[Measurements | None]) -> VideoScan:
    """Return the scan of a video from its pieces, in order: the same as that of `scan_video`. Raises `DecodeError`."""
    with single_threaded_opencv(), open_video(uri) as video:
        measured = [piece for piece in pieces if piece is not None]
        return _finish(video, settings, Measurements.concatenate(measured))


def _measure(
    video: Video, settings: ScanSettings, first: int, end: int | None, split: bool = True
) -> Measurements | None:
    meter = _segment_meter(video, settings)
    segments = GopSegments(video, first, end, skip=not meter.needs_every_frame, split=split)
    pieces = [piece for piece in map(meter.measure_segment, segments) if piece is not None]
    if not pieces:
        return None
    # Segments are measured as they are read, so all of them have been read by now.
    return dataclasses.replace(Measurements.concatenate(pieces), packet_digests=segments.packet_digests)


def _finish(video: Video, settings: ScanSettings, measurements: Measurements | None) -> VideoScan:
    """Return the scan of a video that was measured to its end."""
    if measurements is None:
        raise DecodeError(f"{video.uri}: no frame can be decoded")
    info = video.info
    meter = _segment_meter(video, settings)
    features, found = _find_boundaries(video, settings, meter, measurements.features)
    frame_interval_pts = usual_frame_interval(features)
    last_pts, last_duration = measurements.last_frame
    end_pts = last_pts + _last_duration(measurements, info, frame_interval_pts)
    # A fade out at the end of the file lasts as long as the last frame is shown.
    found = tuple(b if b.end_pts <= last_pts else dataclasses.replace(b, end_pts=end_pts) for b in found)
    video.check_complete(max(end_pts, last_pts + last_duration))
    gaps = find_gaps(features, frame_interval_pts)
    boundaries = with_gaps(found, gaps)
    measurements = dataclasses.replace(measurements, features=features)
    spans = [
        span
        for span in shot_spans(boundaries, info.start_pts, end_pts)
        if len(features.between(span.start_pts, span.end_pts))
    ]
    samples = [_samples(video, meter, measurements, span) for span in spans]
    crops = crop_boxes([[sample.borders for sample in of_shot] for of_shot in samples], info.width, info.height)
    shots = [
        make_shot(info, measurements, frame_interval_pts, span, of_shot, crop)
        for span, of_shot, crop in zip(spans, samples, crops, strict=True)
    ]
    missing_pts = sum(gap.end_pts - gap.start_pts for gap in gaps)
    media = ScannedMedia(
        **_fields(info),
        source_duration_s=float((end_pts - info.start_pts - missing_pts) * info.time_base),
        n_frames=features.n_frames,
        n_misplaced_frames=measurements.n_misplaced,
        content_hash=content_hash([measurements.packet_digests]),
    )
    return VideoScan(media, tuple(shots), boundaries)


def _find_boundaries(
    video: Video, settings: ScanSettings, meter: SegmentMeter, features: FrameFeatures
) -> tuple[FrameFeatures, tuple[Boundary, ...]]:
    """Return the boundaries, and the features with the frames that had to be decoded for them where segments meet."""
    options = settings.detector, settings.threshold, settings.min_shot_s
    detection = find_boundaries(features, *options)
    for _ in range(MAX_DECODE_ROUNDS):
        if not detection.spans_to_decode:
            break
        groups = _nearby_groups(detection.spans_to_decode, int(ANCHOR_INTERVAL_S / video.info.time_base))
        features = features.with_windows(
            [window for group in groups for window in meter.measure_windows(video.packets_from(group[0][0]), group)]
        )
        detection = find_boundaries(features, *options)
    # A file that shows one plain colour from end to end is a shot of it, not a fade.
    first_pts, last_pts = int(features.pts_N[0]), int(features.pts_N[-1])
    boundaries = tuple(b for b in detection.boundaries if b.start_pts > first_pts or b.end_pts <= last_pts)
    if settings.stitch is not None:
        boundaries = stitch_cuts(features, boundaries, settings.stitch)
    return features, boundaries


def _samples(video: Video, meter: SegmentMeter, measurements: Measurements, span: ShotSpan) -> Sequence[DetailedSample]:
    """Return the detailed samples of a shot, at least one."""
    if samples := samples_within(measurements, span):
        return samples
    # The shot is too short for a sample at the usual interval, and too much like the one before to trigger one.
    features = measurements.features.between(span.start_pts, span.end_pts)
    middle_pts = int(features.pts_N[len(features) // 2])
    return [meter.take_sample(SegmentFrame(_frame_at(video, middle_pts), 0, loop_filtered=True))]


def _frame_at(video: Video, pts: int) -> DecodedFrame:
    """Decode the frame at `pts` again. Raises `DecodeError`."""

    def find(frames: Iterator[DecodedFrame]) -> DecodedFrame:
        for decoded in frames:
            if decoded.pts == pts:
                return decoded
        raise DecodeError(f"{video.uri}: the frame at PTS {pts} is missing when it is decoded again")

    if video.seek(pts):
        return find(video.decoded_frames())
    # The container cannot seek: decode from the start.
    with open_video(video.uri) as again:
        return find(again.decoded_frames())


def scan_image(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Measure a still image: one shot of one frame, PTS 0 to 1. Raises `DecodeError`."""
    settings = settings or ScanSettings()
    image = read_image(uri)
    # Through the same scaler as the frames of a video, so that the same image measures the same.
    frame = VideoFrame.from_ndarray(np.asarray(image, np.uint8), "rgb24")

    def planes_with_area(area: int) -> YuvPlanes:
        size = size_with_area(image.height, image.width, area)
        return upright_planes(rescale(VideoReformatter(), frame, *size, "yuv420p", Colorspace.ITU601), UPRIGHT)

    builder = FeatureBuilder(Fraction(1), content_scores=False)
    luma_HW = builder.push(0, 0, planes_with_area(ANALYSIS_AREA), None)
    native_luma = np.asarray(image.convert("L"), np.uint8)
    sample = take_detailed_sample(0, planes_with_area(SAMPLE_AREA), native_luma, True)
    (crop,) = crop_boxes([[sample.borders]], image.width, image.height)
    content = box_shares(crop, image.width, image.height)
    series = ShotSeries(
        0,
        1,
        Fraction(1),
        1.0,
        FrameSeries.from_features(builder.features(), content),
        None,
        (sample.inside(content, content),),
    )
    jpeg = crop_jpeg(thumbnail(image, settings.thumbnail_px), content) if settings.thumbnail_px else b""
    thumbnails = (Thumbnail(0, jpeg),) if jpeg else ()
    # The hash times are those of a time base in which the image lasts for one of them.
    hashes = shot_hashes([luma_thumbnail(0, luma_HW)], HashTimes(0, HASH_INTERVAL_S), 0, 1, content)
    return VideoScan(_image_media(image), (Shot(0, 1, 1, None, None, crop, series, hashes, thumbnails),), ())


def _image_media(image: Image.Image) -> ScannedMedia:
    return ScannedMedia(
        codec=str(image.info["codec"]),
        width=image.width,
        height=image.height,
        coded_width=image.width,
        coded_height=image.height,
        rotation_deg=0,
        mirrored=False,
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
        n_misplaced_frames=0,
        content_hash=str(image.info["content_hash"]),
    )


def thumbnail(image: Image.Image, long_side: int) -> bytes:
    """Return an image as a JPEG file with this long side."""
    size = fit_long_side(image.width, image.height, long_side)
    return encode_jpeg(np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.uint8))


@contextlib.contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """Limit OpenCV to one thread.

    There is one worker per core, and OpenCV's optical flow depends on the number of threads.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _segment_meter(video: Video, settings: ScanSettings) -> SegmentMeter:
    return SegmentMeter(video, settings.detector, settings.threshold, settings.min_shot_s, settings.thumbnail_px)


def _nearby_groups(windows: Sequence[Window], max_gap_pts: int) -> Iterator[list[Window]]:
    """Yield windows in groups that are decoded in one go.

    Each window starts at most `max_gap_pts` after the one before ended.
    """
    group: list[Window] = []
    for window in windows:
        if group and window[0] - group[-1][1] > max_gap_pts:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _last_duration(measurements: Measurements, info: MediaInfo, frame_interval_pts: float) -> int:
    """Return how long the last frame is shown.

    It is the duration in the file, or else that of the frame before, or else one frame at the average rate. What would
    be a gap counts as the usual time.
    """
    pts_N = measurements.features.pts_N
    n_skipped = int(measurements.features.skipped_N[-1])
    gap_pts = int(pts_N[-1] - pts_N[-2]) // (n_skipped + 1) if len(pts_N) > 1 else 0
    rate = Fraction(info.fps).limit_denominator(1001) if info.fps else 0
    _, duration = measurements.last_frame
    duration = max(1, duration or gap_pts or (round(1 / (rate * info.time_base)) if rate else 0))
    return duration if duration <= max_frame_pts(info.time_base) else max(1, round(frame_interval_pts))


def _fields(info: MediaInfo) -> dict[str, Any]:
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(MediaInfo)}
