"""The one full pass over a source: its shots, and every cheap signal of each, measured while it is decoded once.

All is measured on a small picture of always the same area, so that values compare across sizes. Memory is bounded: of a
shot, a few numbers a frame and at most 17 small pictures are kept.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from PIL import Image
from pydantic import Field

from cluster.config import Settings
from pipelines.video.decode import MediaInfo, Picture, open_video
from pipelines.video.errors import DecodeError
from pipelines.video.luma import Floats, sharpness, shrink
from pipelines.video.motion import MotionMeter, Move
from pipelines.video.phash import phash
from pipelines.video.scale import LumaScaler, Pixels
from pipelines.video.shots import LATENCY, DetectorName, ShotDetector
from pipelines.video.still import jpeg, read_image

AREA = 256 * 144
"""Pixels of the analysis picture; 256 is the width to which PySceneDetect itself shrinks frames before it compares them."""

SHRINK = 4
"""Motion is matched and hashes are made on a quarter of that, 64 x 36 pixels: details and compression noise are averaged away."""

HASH_EVERY_S = Fraction(1, 2)
"""A shot's first and last frame are hashed, and one each half second: clips cut out of it find hashes of their own."""

MAX_VIEWS = 16
"""Small pictures kept of the open shot; when there are more, every second one goes, so they stay spread evenly."""


class ScanSettings(Settings):
    """How shots are found and what is kept of them."""

    detector: DetectorName = Field("adaptive", description="adaptive: a change far above its neighbours'; content: a change above a fixed value.")
    threshold: float | None = Field(None, gt=0, description="Sensitivity of the detector; null for PySceneDetect's default (3.0 or 27).")
    min_shot_s: float = Field(0.3, ge=0, description="Shots shorter than this are joined to the one before, in seconds.")
    thumbnails: int = Field(3, ge=0, le=MAX_VIEWS, description="JPEG pictures kept of each shot.")
    thumbnail_px: int = Field(160, ge=16, le=192, description="Long side of a thumbnail in pixels.")


@dataclass(frozen=True)
class ScannedMedia(MediaInfo):
    """Media information with what only a full pass can tell."""

    source_duration_s: float
    """From the first frame to the end of the last, as decoded; 0 for an image."""
    n_frames: int


@dataclass(frozen=True)
class FrameHash:
    """Perceptual hash (unsigned 64 bits) of the frame at a PTS."""

    pts: int
    phash: int


@dataclass(frozen=True)
class Shot:
    """A run of frames without a cut, `end_pts` exclusive, and its signals.

    `luma` is the mean of Y in [0, 1] of full range, `contrast` the mean over frames of its standard deviation, `sharpness`
    the mean variance of the Laplacian, `motion` in long sides per second (see `motion.py`), `frozen_share` the share of
    frames equal to the one before; the last two are None for an image. `thumbnails` are JPEG files in time order.
    """

    start_pts: int
    end_pts: int
    n_frames: int
    luma: float
    contrast: float
    sharpness: float
    motion: float | None
    frozen_share: float | None
    hashes: tuple[FrameHash, ...]
    thumbnails: tuple[bytes, ...]


@dataclass(frozen=True)
class VideoScan:
    """A source and its shots, which cover all of its frames without gaps."""

    media: ScannedMedia
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class _Record:
    """Numbers of one frame."""

    pts: int
    luma: float
    contrast: float
    sharpness: float
    frozen: bool
    phash: int


def scan_video(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Decode a video once, from end to end. Raises `DecodeError` for one that does not decode to its end."""
    settings = settings or ScanSettings()
    with open_video(uri) as video:
        info = video.info
        height, width = analysis_size(info.height, info.width)
        detector = ShotDetector(settings.detector, settings.threshold, settings.min_shot_s, info.time_base, info.fps)
        meter = _ShotMeter(height, width, info.time_base, settings)
        shots: list[Shot] = []
        n_frames, gap, last = 0, 0, None
        for picture in video.pictures():
            luma, bgr = video.luma_and_bgr(picture.frame, width, height)
            gap = picture.pts - last.pts if last else 0
            meter.push(picture.pts, luma, bgr)
            for cut_pts in detector.push(picture.pts, bgr):
                shots.append(meter.close(cut_pts))
            n_frames, last = n_frames + 1, picture
        if last is None:
            raise DecodeError(f"{uri}: no frame can be decoded")
        end_pts = last.pts + _last_duration(last, gap, info)
        shots.append(meter.close(end_pts))
    media = ScannedMedia(**_fields(info), source_duration_s=float((end_pts - info.start_pts) * info.time_base), n_frames=n_frames)
    return VideoScan(media, tuple(shots))


def scan_image(uri: str, settings: ScanSettings | None = None) -> VideoScan:
    """Measure a still image: one shot of one frame, PTS 0 to 1. Raises `DecodeError`."""
    settings = settings or ScanSettings()
    image = read_image(uri)
    height, width = analysis_size(image.height, image.width)
    # Through the same scaler as a video's frames, so that the same picture measures the same.
    frame = VideoFrame.from_ndarray(np.asarray(image, np.uint8), "rgb24")
    luma, bgr = LumaScaler().scale(frame, width, height, Colorspace.ITU601)
    levels = luma.astype(np.float32)
    record = _record(0, levels, shrink(levels, SHRINK), False)
    thumbnails = (_thumbnail(bgr, settings.thumbnail_px),) if settings.thumbnails else ()
    hashes = (FrameHash(0, record.phash),)
    shot = Shot(0, 1, 1, record.luma, record.contrast, record.sharpness, None, None, hashes, thumbnails)
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
        n_video_streams=0,
        source_duration_s=0.0,
        n_frames=1,
    )
    return VideoScan(media, (shot,))


def analysis_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the analysis picture: always about the same area, the aspect kept, in multiples of 4 and at least 32."""
    scale = (AREA / (height * width)) ** 0.5 / SHRINK
    return max(8, round(height * scale)) * SHRINK, max(8, round(width * scale)) * SHRINK


class _ShotMeter:
    """Gathers the numbers and views of the open shot until a cut closes it."""

    def __init__(self, height: int, width: int, time_base: Fraction, settings: ScanSettings) -> None:
        self._time_base = time_base
        self._settings = settings
        self._motion = MotionMeter(height // SHRINK, width // SHRINK, time_base)
        self._records: list[_Record] = []
        self._moves: list[Move] = []
        self._recent: deque[tuple[int, Pixels]] = deque(maxlen=LATENCY + 1)
        self._views: list[tuple[int, Pixels]] = []
        self._stride = 1
        self._seen = 0

    def push(self, pts: int, luma: Pixels, bgr: Pixels) -> None:
        levels = luma.astype(np.float32)
        shrunk = shrink(levels, SHRINK)
        frozen, move = self._motion.push(pts, shrunk)
        self._records.append(_record(pts, levels, shrunk, frozen))
        if move is not None:
            self._moves.append(move)
        self._recent.append((pts, bgr))
        self._add_view((pts, bgr))

    def close(self, end_pts: int) -> Shot:
        """The shot of all frames before `end_pts`; later frames, seen while the cut was not yet certain, start the next."""
        records = [record for record in self._records if record.pts < end_pts]
        assert records, "a shot has at least one frame"
        start_pts = records[0].pts
        # The first frame of a shot has no frame before it, and a pair across a cut is no motion.
        speeds = [move.speed for move in self._moves if start_pts <= move.start_pts and move.end_pts < end_pts]
        frozen = [record.frozen for record in records[1:]]
        shot = Shot(
            start_pts=start_pts,
            end_pts=end_pts,
            n_frames=len(records),
            luma=float(np.mean([record.luma for record in records])),
            contrast=float(np.mean([record.contrast for record in records])),
            sharpness=float(np.mean([record.sharpness for record in records])),
            motion=float(np.mean(speeds)) if speeds else 0.0,
            frozen_share=float(np.mean(frozen)) if frozen else 0.0,
            hashes=self._hashes(records),
            thumbnails=self._thumbnails(start_pts, end_pts),
        )
        self._records = self._records[len(records) :]
        self._moves = [move for move in self._moves if move.end_pts >= end_pts]
        self._views, self._stride, self._seen = [], 1, 0
        for view in self._recent:
            if view[0] >= end_pts:
                self._add_view(view)
        return shot

    def _add_view(self, view: tuple[int, Pixels]) -> None:
        if self._seen % self._stride == 0:
            self._views.append(view)
        self._seen += 1
        if len(self._views) > MAX_VIEWS:
            self._views = self._views[::2]
            self._stride *= 2

    def _hashes(self, records: list[_Record]) -> tuple[FrameHash, ...]:
        step = max(1, int(HASH_EVERY_S / self._time_base))
        hashes: list[FrameHash] = []
        due = records[0].pts
        for record in records:
            if record.pts >= due:
                hashes.append(FrameHash(record.pts, record.phash))
                due += step * ((record.pts - due) // step + 1)
        if hashes[-1].pts != records[-1].pts:
            hashes.append(FrameHash(records[-1].pts, records[-1].phash))
        return tuple(hashes)

    def _thumbnails(self, start_pts: int, end_pts: int) -> tuple[bytes, ...]:
        views = [view for view in self._views if view[0] < end_pts]
        chosen: dict[int, Pixels] = {}
        for i in range(self._settings.thumbnails):
            moment = start_pts + (end_pts - start_pts) * (i + 0.5) / self._settings.thumbnails
            pts, bgr = min(views, key=lambda view: abs(view[0] - moment))
            chosen[pts] = bgr
        return tuple(_thumbnail(bgr, self._settings.thumbnail_px) for _, bgr in sorted(chosen.items(), key=lambda item: item[0]))


def _record(pts: int, levels: Floats, shrunk: Floats, frozen: bool) -> _Record:
    luma = levels / np.float32(255)
    return _Record(pts, float(luma.mean()), float(luma.std()), sharpness(luma), frozen, phash(shrunk))


def _thumbnail(bgr: Pixels, long_side: int) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return jpeg(np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.uint8))


def _last_duration(last: Picture, gap: int, info: MediaInfo) -> int:
    """How long the last frame is shown: as the file says, or as long as the one before, or one frame at the average rate."""
    by_rate = round(1 / (Fraction(info.fps).limit_denominator(1001) * info.time_base)) if info.fps else 0
    return max(1, last.duration or gap or by_rate)


def _fields(info: MediaInfo) -> dict[str, Any]:
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(MediaInfo)}
