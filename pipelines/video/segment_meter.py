"""Measure GOP segments: features of each decoded frame, motion between frames, and detailed samples.

Shape legend: N frames, H height, W width of the analysis image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import cv2
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from cluster.arrays import UInt8Array
from pipelines.video.decode import DecodedFrame, Video, VideoPacket
from pipelines.video.detailed_sample import DetailedSample, take_detailed_sample
from pipelines.video.feature_builder import ANALYSIS_AREA, FeatureBuilder
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.frame_hashes import HashTimes, LumaThumbnail, luma_thumbnail
from pipelines.video.gop_segments import (
    Decoders,
    GopSegment,
    SegmentFrame,
    Window,
    decode_segment,
    decode_windows,
    key_frame_index,
)
from pipelines.video.motion import MotionMeter, PairMotion
from pipelines.video.scale import (
    YuvPlanes,
    native_luma,
    packed_array,
    rescale,
    size_with_area,
    upright_planes,
)
from pipelines.video.shot_boundaries import PYSCENEDETECT_DETECTORS, find_boundaries
from pipelines.video.still_images import encode_jpeg, fit_long_side

SAMPLE_AREA = 256 * 144
"""Pixels of the image of a detailed sample."""

SAMPLE_INTERVAL_S = 1.0
MIN_SAMPLE_INTERVAL_S = 0.3
NEW_IMAGE_CHANGE = 20.0
"""A detailed sample is taken each second. It is taken earlier, but at least 0.3 s after the last one, if the image has
since changed by this many 8-bit values, so that a new shot may have begun."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of a segment, or of several in a row.

    `luma_thumbnails` are of the frames shown at hash times. `last_frame` has the PTS and the duration of the last
    frame, 0 if not known. `packet_digests` are those of the segments' packets; the reader of the packets adds them.
    `n_misplaced` counts frames that are not shown, since their PTS does not rise.
    """

    features: FrameFeatures
    motions: tuple[PairMotion, ...]
    samples: tuple[DetailedSample, ...]
    luma_thumbnails: tuple[LumaThumbnail, ...]
    last_frame: tuple[int, int]
    packet_digests: bytes = b""
    n_misplaced: int = 0

    @staticmethod
    def concatenate(pieces: list[Measurements]) -> Measurements:
        """Join pieces of one video, in order. The list is emptied, so that no frame of a film is held twice.

        The row of a frame in which two pieces meet is that of the first, which knows the frame before it. Samples and
        thumbnails of that frame, of which there may be two, are kept once.
        """
        motions: list[PairMotion] = []
        samples: list[DetailedSample] = []
        thumbnails: list[LumaThumbnail] = []
        first_pts = [piece.features.pts_N[0] for piece in pieces]
        last_pts = [None, *(piece.features.pts_N[-1] for piece in pieces)]
        shares_frame = [first == last for first, last in zip(first_pts, last_pts, strict=False)]
        n_frames = sum(len(piece.features) for piece in pieces) - sum(shares_frame)
        last_frame, packet_digests = pieces[-1].last_frame, b"".join(piece.packet_digests for piece in pieces)
        n_misplaced = sum(piece.n_misplaced for piece in pieces)
        pieces.reverse()

        def take_features() -> Iterator[FrameFeatures]:
            for shared in shares_frame:
                piece = pieces.pop()
                sampled_pts = {sample.pts for sample in samples[-1:]}
                thumbnail_pts = {thumbnail.pts for thumbnail in thumbnails[-1:]}
                motions.extend(piece.motions)
                samples.extend(sample for sample in piece.samples if sample.pts not in sampled_pts)
                thumbnails.extend(item for item in piece.luma_thumbnails if item.pts not in thumbnail_pts)
                yield piece.features.rows(slice(1, None)) if shared else piece.features

        features = FrameFeatures.concatenate(take_features(), n_frames)
        series = (tuple(motions), tuple(samples), tuple(thumbnails))
        return Measurements(features, *series, last_frame, packet_digests, n_misplaced)


class SegmentMeter:
    """A meter for the segments of one video. It holds scalers and decoders, but no frame."""

    def __init__(
        self, video: Video, detector: str, threshold: float | None, min_shot_s: float, thumbnail_px: int
    ) -> None:
        """Prepare for a video; `thumbnail_px` is the long side of the samples' thumbnails, 0 for none."""
        self._video = video
        self._detection = (detector, threshold, min_shot_s)
        self.needs_every_frame = detector in PYSCENEDETECT_DETECTORS
        """Whether no frame may be skipped: PySceneDetect compares neighbours, and its thresholds are made for these."""
        self._thumbnail_px = thumbnail_px
        self._analysis_size = size_with_area(video.info.height, video.info.width, ANALYSIS_AREA)
        self._sample_size = size_with_area(video.info.height, video.info.width, SAMPLE_AREA)
        self._analysis_scaler, self._sample_scaler = VideoReformatter(), VideoReformatter()
        self._bgr_scaler = VideoReformatter()
        self._decoders = Decoders(video)
        self._hash_times = HashTimes(video.info.start_pts, video.info.time_base)

    def measure_segment(self, segment: GopSegment) -> Measurements | None:
        """Decode and measure a segment, and those of its skipped frames that could decide where a shot ends.

        Returns None for a segment without a frame. Raises `DecodeError`.
        """
        time_base = self._video.info.time_base
        motion_meter, builder = MotionMeter(time_base), self._feature_builder()
        motions: list[PairMotion] = []
        samples: list[DetailedSample] = []
        thumbnails: list[LumaThumbnail] = []
        sampled_HW: UInt8Array | None = None
        luma_HW: UInt8Array | None = None
        decoded: DecodedFrame | None = None
        n_hash_times = n_misplaced = 0
        for item in decode_segment(self._decoders, segment):
            before, n_hash_times = n_hash_times, self._hash_times.count_before(item.decoded.pts)
            if decoded is not None and luma_HW is not None and n_hash_times > before:
                # The previous frame was shown at a hash time.
                thumbnails.append(luma_thumbnail(decoded.pts, luma_HW))
            decoded = item.decoded
            n_misplaced += item.n_misplaced
            luma_HW = builder.push(decoded.pts, item.n_skipped, *self._analysis_images(decoded.frame))
            if (motion := motion_meter.push(decoded.pts, luma_HW)) is not None:
                motions.append(motion)
            if sampled_HW is None or self._is_sample_due(
                float((decoded.pts - samples[-1].pts) * time_base), sampled_HW, luma_HW
            ):
                samples.append(self.take_sample(item))
                sampled_HW = luma_HW
        if decoded is None or luma_HW is None:
            return None
        # The last frame of a video is shown until its end; that of another segment is known to the next one.
        thumbnails.append(luma_thumbnail(decoded.pts, luma_HW))
        features = builder.features()
        if (packets := segment.kept_packets) is not None:
            windows = find_boundaries(features, *self._detection).spans_to_decode
            groups = groupby(windows, lambda window: key_frame_index(packets, window[0]))
            features = features.with_windows(
                [window for start, group in groups for window in self.measure_windows(packets[start:], list(group))]
            )
        last_frame = (decoded.pts, decoded.duration)
        series = (tuple(motions), tuple(samples), tuple(thumbnails))
        return Measurements(features, *series, last_frame, n_misplaced=n_misplaced)

    def measure_windows(self, packets: Iterable[VideoPacket], windows: Sequence[Window]) -> list[FrameFeatures]:
        """Return the features of every frame of each window.

        `packets` begin with a key frame at or before the first window.
        """
        found = []
        for _, frames in groupby(decode_windows(self._decoders, packets, windows), itemgetter(0)):
            builder = self._feature_builder()
            for _, decoded in frames:
                builder.push(decoded.pts, 0, *self._analysis_images(decoded.frame))
            found.append(builder.features())
        return found

    def _feature_builder(self) -> FeatureBuilder:
        return FeatureBuilder(self._video.info.time_base, content_scores=self.needs_every_frame)

    def _analysis_images(self, frame: VideoFrame) -> tuple[YuvPlanes, UInt8Array | None]:
        """Return the planes of the analysis image, and the image in BGR if PySceneDetect needs it."""
        orientation = self._video.info.orientation
        small = self._video.to_yuv420p(self._analysis_scaler, frame, *self._analysis_size)
        planes = upright_planes(small, orientation)
        if not self.needs_every_frame:
            return planes, None
        bgr = rescale(self._bgr_scaler, small, small.width, small.height, "bgr24", None)
        return planes, orientation.upright(packed_array(bgr))

    def _is_sample_due(self, since_s: float, sampled_HW: UInt8Array, luma_HW: UInt8Array) -> bool:
        if since_s < MIN_SAMPLE_INTERVAL_S:
            return False
        if since_s >= SAMPLE_INTERVAL_S:
            return True
        return bool(cv2.norm(sampled_HW, luma_HW, cv2.NORM_L1) >= NEW_IMAGE_CHANGE * luma_HW.size)

    def take_sample(self, item: SegmentFrame) -> DetailedSample:
        """Return a detailed sample of a decoded frame."""
        info, frame = self._video.info, item.decoded.frame
        large = self._video.to_yuv420p(self._sample_scaler, frame, *self._sample_size)
        planes = upright_planes(large, info.orientation)
        sample = take_detailed_sample(item.decoded.pts, planes, native_luma(frame), item.loop_filtered, info.bit_depth)
        if not self._thumbnail_px:
            return sample
        size = fit_long_side(info.width, info.height, self._thumbnail_px)
        return dataclasses.replace(sample, thumbnail=encode_jpeg(self._video.to_array(large, *size)))
