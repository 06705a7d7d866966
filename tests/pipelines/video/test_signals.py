"""Signals of shots: comparable across sizes, frame rates and compression, and counted where they can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.arrays import Pixels, UInt8Array
from pipelines.video.boxes import box_shares
from pipelines.video.decode import probe, read_frames
from pipelines.video.detailed_sample import DetailedSample, NativeArray, take_detailed_sample
from pipelines.video.feature_builder import frame_changes
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.letterbox import crop_boxes
from pipelines.video.motion import MotionMeter, PairMotion
from pipelines.video.scale import Box, YuvPlanes
from pipelines.video.shot_series import FrameSeries, ShotSeries, motions_of_content, usual_frame_interval
from pipelines.video.signals import Signals, flicker, repeat_shares, span_signals
from tests.support.images import blots
from tests.support.videos import encode

GREY = np.full((72, 128), 128, np.uint8)
WHOLE = (0, 0, 1280, 720)


def features_of(
    peaks: list[float], *, fps: int = 24, skipped: list[int] | None = None, means: list[float] | None = None
) -> FrameFeatures:
    """Return features of frames with these largest changes since the frame before, and these mean values."""
    n = len(peaks)
    skipped_N = np.array(skipped or [0] * n, np.int32)
    # Means are exact to 1/576: the first pixels of a signature are brighter by 1.
    luma = np.zeros((n, 576), np.uint8)
    for row, value in zip(luma, means or [100.0] * n, strict=True):
        row[:] = int(value)
        row[: round((value - int(value)) * 576)] += 1
    zeros = np.zeros(n, np.float32)
    return FrameFeatures(
        Fraction(1, fps),
        np.cumsum(skipped_N + 1).astype(np.int64),
        skipped_N,
        luma.reshape(n, 18, 32),
        np.full((n, 2, 9, 16), 128, np.uint8),
        change_N=zeros,
        residual_N=zeros,
        peak_N=np.array(peaks, np.float32),
        cut_in_scale_N=np.full(n, np.nan, np.float32),
        content_score_N=zeros,
    )


def sample(
    luma: UInt8Array, native: NativeArray | None = None, pts: int = 0, loop_filtered: bool = True
) -> DetailedSample:
    """Take a detailed sample of a grey frame."""
    small = cv2.resize(luma, (256, 144), interpolation=cv2.INTER_AREA)
    return take_detailed_sample(pts, YuvPlanes(small, GREY, GREY), native, loop_filtered)


def series_of(
    features: FrameFeatures,
    motions: Sequence[PairMotion] | None = (),
    samples: Sequence[DetailedSample] = (),
    crop: Box = WHOLE,
    size: tuple[int, int] = WHOLE[2:],
    cut_in: float | None = None,
) -> ShotSeries:
    """Return the series of a shot that has these frames and ends with the last one, inside its crop."""
    content = box_shares(crop, *size)
    return ShotSeries(
        min([int(features.pts_N[0]), *(motion.start_pts for motion in motions or ())]),
        max([int(features.pts_N[-1]) + 1, *(motion.end_pts + 1 for motion in motions or ())]),
        features.time_base,
        usual_frame_interval(features),
        FrameSeries.from_features(features, content),
        None if motions is None else motions_of_content(motions, content, *size),
        tuple(sample.inside(content, content) for sample in samples),
        cut_in,
    )


def shot_signals(
    features: FrameFeatures,
    motions: Sequence[PairMotion] | None,
    samples: Sequence[DetailedSample],
    cut_in: float | None = None,
) -> Signals:
    """Return the signals of a whole shot."""
    series = series_of(features, motions, samples, cut_in=cut_in)
    return span_signals(series, series.start_pts, series.end_pts)


def repeats(features: FrameFeatures) -> tuple[float, float | None]:
    series = series_of(features)
    return repeat_shares(series, series.start_pts, series.end_pts)


def flickering(features: FrameFeatures) -> float | None:
    return flicker(FrameSeries.from_features(features), 0, 1 << 60)


def measured(
    frames: Sequence[tuple[int, UInt8Array]], time_base: Fraction, width: int, height: int
) -> tuple[Signals, Box]:
    """Return the signals and the crop of (PTS, luma at full size) of each frame, measured as the scan does."""
    meter = MotionMeter(time_base)
    motions: list[PairMotion] = []
    samples: list[DetailedSample] = []
    small: list[UInt8Array] = []
    for pts, luma in frames:
        small.append(cv2.resize(luma, (128, 72), interpolation=cv2.INTER_AREA))
        if (motion := meter.push(pts, small[-1])) is not None:
            motions.append(motion)
        if not samples or (pts - samples[-1].pts) * time_base >= 0.5:
            samples.append(sample(luma, luma, pts))
    features = features_of([0.0, *frame_changes(np.stack(small))[2].tolist()])
    features = dataclasses.replace(features, time_base=time_base, pts_N=np.array([pts for pts, _ in frames]))
    (crop,) = crop_boxes([[one.borders for one in samples]], width, height)
    series = series_of(features, motions, samples, crop, (width, height))
    return span_signals(series, series.start_pts, series.end_pts), crop


def decoded(path: Path) -> tuple[Signals, Box]:
    info = probe(str(path))
    return measured(list(read_frames(str(path), pixel_format="gray8")), info.time_base, info.width, info.height)


def zoom_in(width: int, height: int, fps: int, seconds: float = 1.5) -> Pixels:
    """Draw the same camera motion over the same image, at any size and frame rate: `[n, height, width, 3]`."""
    large = blots(2, 1920, 1080)
    out = []
    for k in range(round(seconds * fps)):
        t = k / fps
        w = 1500 * 0.9**t
        x, y = 80 + 150 * t + (1500 - w) / 2, 60 + (1500 - w) / 2 * 9 / 16
        # Four samples a side for each pixel of the smallest size, as a sensor averages light.
        matrix = np.array([[w / 1280, 0, x], [0, w / 1280, y]])
        frame = cv2.warpAffine(large, matrix, (1280, 720), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        out.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
    return np.repeat(np.stack(out)[..., None], 3, axis=-1)


def encoded(path: Path, frames: Pixels, fps: int, crf: int = 18) -> Signals:
    """Return the signals of frames after they were encoded."""
    return encoded_with_crop(path, frames, fps, crf)[0]


def encoded_with_crop(path: Path, frames: Pixels, fps: int, crf: int = 18) -> tuple[Signals, Box]:
    """Return the signals and the crop of frames after they were encoded."""
    options = {"crf": str(crf), "preset": "ultrafast"}
    return decoded(encode(path, frames, time_base=Fraction(1, fps), options=options))


@pytest.mark.slow
def test_signals_compare_across_sizes(tmp_path: Path) -> None:
    (small, _), (large, crop) = (
        encoded_with_crop(tmp_path / f"{w}.mp4", zoom_in(w, w * 9 // 16, 24), 24) for w in (320, 1280)
    )
    for name in ("luma", "contrast", "motion"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), rel=0.03), name
    assert small.clipped_white == pytest.approx(large.clipped_white, abs=0.01)
    assert small.camera == large.camera == "pan"
    assert crop == (0, 0, 1280, 720)


@pytest.mark.slow
def test_signals_compare_across_frame_rates(tmp_path: Path) -> None:
    slow, *others = (encoded(tmp_path / f"{fps}.mp4", zoom_in(480, 270, fps), fps) for fps in (12, 24, 48))
    for other in others:
        assert (other.luma, other.contrast) == pytest.approx((slow.luma, slow.contrast), rel=0.02)
        assert other.motion == pytest.approx(slow.motion, rel=0.05)
        assert (other.camera, other.frozen_share) == (slow.camera, 0.0)


@pytest.mark.slow
def test_signals_survive_visible_compression(tmp_path: Path) -> None:
    fine, rough = (encoded(tmp_path / f"{crf}.mp4", zoom_in(480, 270, 24), 24, crf) for crf in (12, 36))
    assert rough.motion == pytest.approx(fine.motion, rel=0.1)
    assert rough.luma == pytest.approx(fine.luma, rel=0.02)
    assert rough.camera == fine.camera


@pytest.mark.slow
def test_letterboxed_copy_has_its_bars_cut_off(tmp_path: Path) -> None:
    frames = zoom_in(640, 272, 24, seconds=0.6)
    boxed = np.zeros((len(frames), 360, 640, 3), np.uint8)
    boxed[:, 44:316] = frames
    with_bars, crop = encoded_with_crop(tmp_path / "bars.mp4", boxed, 24, crf=26)
    assert crop == pytest.approx((0, 44, 640, 316), abs=2)
    without, crop = encoded_with_crop(tmp_path / "none.mp4", frames, 24)
    assert crop == (0, 0, 640, 272)
    # Signals are those of the image alone.
    for name in ("luma", "contrast", "colourfulness"):
        assert getattr(with_bars, name) == pytest.approx(getattr(without, name), rel=0.02), name
    assert with_bars.motion == pytest.approx(without.motion, rel=0.1)
    assert with_bars.clipped_black == pytest.approx(without.clipped_black, abs=0.005)


def test_image_has_no_signals_of_a_second_frame() -> None:
    signals = shot_signals(features_of([0.0]), None, [sample(blots(1), blots(1))])
    none = {field.name for field in dataclasses.fields(Signals) if getattr(signals, field.name) is None}
    assert none == {"motion", "local_motion", "camera", "frozen_share", "duplicate_share", "flicker"}


def test_shot_of_one_frame_is_still() -> None:
    signals = shot_signals(features_of([9.0]), [], [sample(blots(1))])
    assert (signals.motion, signals.local_motion, signals.camera, signals.frozen_share) == (0.0, 0.0, "still", 0.0)
    assert (signals.duplicate_share, signals.flicker, signals.noise, signals.blockiness) == (None, None, None, None)


def test_cut_in_names_only_a_still_shot() -> None:
    features, samples = features_of([0.0] * 9), [sample(blots(1))]
    assert shot_signals(features, [PairMotion(0, 8, 0.0)], samples, cut_in=1.3).camera == "cut-in"
    assert shot_signals(features, [PairMotion(0, 8, 0.2, pan=0.2)], samples, cut_in=1.3).camera == "pan"


def test_motion_is_weighted_by_time() -> None:
    motions = [PairMotion(0, 30, 0.1, local=0.1), PairMotion(30, 40, 0.5)]
    signals = shot_signals(features_of([5.0] * 9), motions, [sample(blots(1))])
    assert (signals.motion, signals.local_motion) == pytest.approx((0.2, 0.075))


def test_loop_filtered_samples_are_preferred() -> None:
    blocks = np.kron(np.random.default_rng(0).integers(0, 8, (90, 160)), np.ones((8, 8))).astype(np.uint8) * 3 + 60
    unfiltered = sample(blots(1), blocks, loop_filtered=False)
    filtered = sample(blots(1), blots(1), pts=1)
    assert unfiltered.inside().blockiness > 5
    features = features_of([5.0] * 9)
    assert shot_signals(features, [], [unfiltered, filtered]).blockiness == filtered.inside().blockiness
    assert shot_signals(features, [], [unfiltered]).blockiness == unfiltered.inside().blockiness


def test_freezes_differ_from_frames_shown_twice() -> None:
    assert repeats(features_of([9.0] * 25)) == (0.0, 0.0)
    assert repeats(features_of([9.0, *[0.2] * 24])) == (1.0, None)
    # Animation on twos: every second frame is new, and the others are touched up by the encoder.
    assert repeats(features_of([30.0, *[0.9, 9.0] * 12])) == (0.0, pytest.approx(0.5))
    # 24 frames shown as 30: every fifth repeats the one before.
    assert repeats(features_of([30.0, *[9.0, 8.0, 9.0, 9.0, 0.3] * 6])) == (0.0, pytest.approx(0.2))
    # Half a second of freeze, then motion: no repeats in it.
    assert repeats(features_of([30.0, *[0.1] * 12, *[9.0] * 12])) == (0.5, 0.0)
    # The first frame of a shot has none before it in the shot.
    assert repeats(features_of([0.0, *[9.0] * 10])) == (0.0, 0.0)


def test_skipped_frames_count_for_freezes_and_not_for_repeats() -> None:
    features = features_of([30.0, *[0.1] * 6, *[9.0] * 6], skipped=[0, *[1] * 12])
    assert repeats(features) == (pytest.approx(0.5), None)
    some_skipped = features_of([30.0, 9.0, 0.2, 9.0, 9.0], skipped=[0, 3, 0, 0, 3])
    assert repeats(some_skipped) == (0.0, 0.5)


def test_flicker_is_light_that_alternates() -> None:
    assert flickering(features_of([1.0] * 24, means=[100 + 5 * (k % 2) for k in range(24)])) == pytest.approx(5 / 255)
    assert flickering(features_of([1.0] * 24, means=[40 + 5.0 * k for k in range(24)])) == pytest.approx(0, abs=1e-4)
    assert flickering(features_of([1.0] * 24)) == 0.0
    assert flickering(features_of([1.0, 1.0])) is None
    # Only triples of neighbours count.
    means = [100.0, 120.0, 100.0, 100.0, 100.0]
    some = features_of([1.0] * 5, means=means, skipped=[0, 1, 0, 0, 0])
    assert flickering(some) == pytest.approx(10 / 255 / 2)
    assert flickering(features_of([1.0] * 4, means=means[:4], skipped=[0, 1, 1, 1])) is None


@pytest.mark.slow
def test_signals_are_deterministic(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", zoom_in(320, 180, 24, 0.5), time_base=Fraction(1, 24))
    assert decoded(path) == decoded(path)


@pytest.mark.slow
def test_trailer_is_cropped_to_its_image(video_folder: Path) -> None:
    """854 x 480 with an image of 2.35:1: 363.4 lines, from 58.3 to 421.7."""
    frames = list(read_frames(str(video_folder / "sintel_trailer_30s.mp4"), pixel_format="gray8"))[250:300]
    _, crop = measured(frames, Fraction(1, 12288), 854, 480)
    assert crop == pytest.approx((0, 58, 854, 422), abs=2)


@pytest.mark.slow
def test_compression_lowers_noise_and_sharpness(video_folder: Path) -> None:
    pristine, distorted = (decoded(video_folder / f"carphone_{which}.mp4")[0] for which in ("pristine", "distorted"))
    assert distorted.sharpness < 0.6 * pristine.sharpness
    assert distorted.noise is not None
    assert pristine.noise is not None
    assert distorted.noise < 0.6 * pristine.noise
    assert (distorted.luma, distorted.contrast) == pytest.approx((pristine.luma, pristine.contrast), rel=0.05)
