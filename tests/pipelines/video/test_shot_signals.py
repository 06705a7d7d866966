from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.arrays import Pixels
from pipelines.video.decode import probe, read_frames
from pipelines.video.detailed_sample import Look, take_look
from pipelines.video.frame_features import Series
from pipelines.video.letterbox import crop_boxes
from pipelines.video.measure import differences
from pipelines.video.motion import MotionMeter, Move
from pipelines.video.signals import Signals, flicker, repeats, shot_signals
from tests.pipelines.video.test_motion import texture
from tests.support.videos import encode

GREY = np.full((72, 128), 128, np.uint8)
WHOLE = (0, 0, 1280, 720)


def series(
    peaks: list[float], *, fps: int = 24, passed_over: list[int] | None = None, means: list[float] | None = None
) -> Series:
    """Frames with these largest differences to the one before and these mean levels."""
    n = len(peaks)
    skipped = np.array(passed_over or [0] * n, np.int32)
    # Means are exact to 1/576 level: the first pixels of a signature are a level brighter.
    luma = np.zeros((n, 576), np.uint8)
    for row, level in zip(luma, means or [100.0] * n, strict=True):
        row[:] = int(level)
        row[: round((level - int(level)) * 576)] += 1
    zeros = np.zeros(n, np.float32)
    return Series(
        Fraction(1, fps),
        np.cumsum(skipped + 1).astype(np.int64),
        skipped,
        luma.reshape(n, 18, 32),
        np.full((n, 2, 9, 16), 128, np.uint8),
        change_N=zeros,
        residual_N=zeros,
        peak_N=np.array(peaks, np.float32),
        nearer_N=np.full(n, np.nan, np.float32),
        content_N=zeros,
    )


def signals_of(pictures: list[tuple[int, Pixels]], time_base: Fraction, width: int, height: int) -> Signals:
    """As the pass measures, from luma at full size."""
    meter = MotionMeter(time_base)
    moves: list[Move] = []
    looks: list[Look] = []
    small: list[Pixels] = []
    for pts, luma in pictures:
        small.append(cv2.resize(luma, (128, 72), interpolation=cv2.INTER_AREA))
        if (move := meter.push(pts, small[-1])) is not None:
            moves.append(move)
        if not looks or (pts - looks[-1].pts) * time_base >= 0.5:
            looks.append(
                take_look(pts, cv2.resize(luma, (256, 144), interpolation=cv2.INTER_AREA), GREY, GREY, luma, True)
            )
    rows = series([0.0, *differences(np.stack(small))[2].tolist()])
    rows = dataclasses.replace(rows, time_base=time_base, pts_N=np.array([pts for pts, _ in pictures]))
    (crop,) = crop_boxes([[look.borders for look in looks]], width, height)
    return shot_signals(rows, moves, looks, crop)


def decoded(path: Path) -> Signals:
    info = probe(str(path))
    return signals_of(list(read_frames(str(path), pixel_format="gray8")), info.time_base, info.width, info.height)


def zoom_in(width: int, height: int, fps: int, seconds: float = 1.5) -> np.ndarray:
    """The same camera move over the same picture, at any size and frame rate: `[n, height, width, 3]`."""
    large = texture(2, 1920, 1080)
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


def saved(path: Path, pictures: np.ndarray, fps: int, crf: int = 18) -> Signals:
    return decoded(encode(path, pictures, time_base=Fraction(1, fps), options={"crf": str(crf), "preset": "ultrafast"}))


def test_signals_compare_across_sizes(tmp_path: Path) -> None:
    small, large = (saved(tmp_path / f"{w}.mp4", zoom_in(w, w * 9 // 16, 24), 24) for w in (320, 1280))
    for name in ("luma", "contrast", "motion"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), rel=0.03), name
    assert small.clipped_white == pytest.approx(large.clipped_white, abs=0.01)
    assert small.camera == large.camera == "pan"
    assert large.crop == (0, 0, 1280, 720)


def test_signals_compare_across_frame_rates(tmp_path: Path) -> None:
    slow, *others = (saved(tmp_path / f"{fps}.mp4", zoom_in(480, 270, fps), fps) for fps in (12, 24, 48))
    for other in others:
        assert (other.luma, other.contrast) == pytest.approx((slow.luma, slow.contrast), rel=0.02)
        assert other.motion == pytest.approx(slow.motion, rel=0.05)
        assert (other.camera, other.frozen_share) == (slow.camera, 0.0)


def test_signals_survive_compression_that_shows(tmp_path: Path) -> None:
    fine, rough = (saved(tmp_path / f"{crf}.mp4", zoom_in(480, 270, 24), 24, crf) for crf in (12, 36))
    assert rough.motion == pytest.approx(fine.motion, rel=0.1)
    assert rough.luma == pytest.approx(fine.luma, rel=0.02)
    assert rough.camera == fine.camera


def test_a_letterboxed_copy_has_its_bars_cut_off(tmp_path: Path) -> None:
    pictures = zoom_in(640, 272, 24, seconds=0.6)
    boxed = np.zeros((len(pictures), 360, 640, 3), np.uint8)
    boxed[:, 44:316] = pictures
    assert saved(tmp_path / "bars.mp4", boxed, 24, crf=26).crop == pytest.approx((0, 44, 640, 316), abs=2)
    assert saved(tmp_path / "none.mp4", pictures, 24).crop == (0, 0, 640, 272)


def test_an_image_has_only_what_one_frame_tells() -> None:
    luma = cv2.resize(texture(1), (256, 144), interpolation=cv2.INTER_AREA)
    signals = shot_signals(series([0.0]), None, [take_look(0, luma, GREY, GREY, texture(1), True)], WHOLE)
    none = {field.name for field in dataclasses.fields(Signals) if getattr(signals, field.name) is None}
    assert none == {"motion", "local_motion", "camera", "frozen_share", "duplicate_share", "flicker"}


def test_a_shot_of_one_frame_stands_still() -> None:
    luma = cv2.resize(texture(1), (256, 144), interpolation=cv2.INTER_AREA)
    signals = shot_signals(series([9.0]), [], [take_look(0, luma, GREY, GREY, None, True)], WHOLE)
    assert (signals.motion, signals.local_motion, signals.camera, signals.frozen_share) == (0.0, 0.0, "still", 0.0)
    assert (signals.duplicate_share, signals.flicker, signals.noise, signals.blockiness) == (None, None, None, None)


def test_a_cut_in_names_only_a_shot_that_stands_still() -> None:
    luma = cv2.resize(texture(1), (256, 144), interpolation=cv2.INTER_AREA)
    looks = [take_look(0, luma, GREY, GREY, None, True)]
    assert shot_signals(series([0.0] * 9), [Move(0, 8, 0.0)], looks, WHOLE, cut_in=1.3).camera == "cut-in"
    assert shot_signals(series([0.0] * 9), [Move(0, 8, 0.2, pan=0.2)], looks, WHOLE, cut_in=1.3).camera == "pan"


def test_motion_is_weighted_by_time_and_looks_with_the_loop_filter_are_preferred() -> None:
    luma = cv2.resize(texture(1), (256, 144), interpolation=cv2.INTER_AREA)
    blocks = np.kron(np.random.default_rng(0).integers(0, 8, (90, 160)), np.ones((8, 8))).astype(np.uint8) * 3 + 60
    with_blocks = take_look(0, luma, GREY, GREY, blocks, False)
    without = take_look(1, luma, GREY, GREY, texture(1), True)
    assert with_blocks.blockiness is not None
    assert with_blocks.blockiness > 5
    moves = [Move(0, 30, 0.1, local=0.1), Move(30, 40, 0.5)]
    signals = shot_signals(series([5.0] * 9), moves, [with_blocks, without], WHOLE)
    assert signals.blockiness == without.blockiness
    assert shot_signals(series([5.0] * 9), moves, [with_blocks], WHOLE).blockiness == with_blocks.blockiness
    assert (signals.motion, signals.local_motion) == pytest.approx((0.2, 0.075))


def test_freezes_are_told_from_frames_shown_twice() -> None:
    assert repeats(series([9.0] * 25)) == (0.0, 0.0)
    assert repeats(series([9.0, *[0.2] * 24])) == (1.0, None)
    # Animation on twos: every second frame is new, and the others are touched up by the encoder.
    assert repeats(series([30.0, *[0.9, 9.0] * 12])) == (0.0, pytest.approx(0.5))
    # 24 frames shown as 30: every fifth is the one before again.
    assert repeats(series([30.0, *[9.0, 8.0, 9.0, 9.0, 0.3] * 6])) == (0.0, pytest.approx(0.2))
    # Half a second of freeze, then motion: no repeats in it.
    assert repeats(series([30.0, *[0.1] * 12, *[9.0] * 12])) == (0.5, 0.0)
    # The first frame of a shot has none before it in the shot.
    assert repeats(series([0.0, *[9.0] * 10])) == (0.0, 0.0)


def test_where_frames_were_passed_over_freezes_count_and_repeats_do_not() -> None:
    rows = series([30.0, *[0.1] * 6, *[9.0] * 6], passed_over=[0, *[1] * 12])
    assert repeats(rows) == (pytest.approx(0.5), None)
    some = series([30.0, 9.0, 0.2, 9.0, 9.0], passed_over=[0, 3, 0, 0, 3])
    assert repeats(some) == (0.0, 0.5)


def test_flicker_is_what_goes_up_and_down() -> None:
    assert flicker(series([1.0] * 24, means=[100 + 5 * (k % 2) for k in range(24)])) == pytest.approx(5 / 255)
    assert flicker(series([1.0] * 24, means=[40 + 5.0 * k for k in range(24)])) == pytest.approx(0, abs=1e-4)
    assert flicker(series([1.0] * 24)) == 0.0
    assert flicker(series([1.0, 1.0])) is None
    # Only triples of neighbours count.
    means = [100.0, 120.0, 100.0, 100.0, 100.0]
    assert flicker(series([1.0] * 5, means=means, passed_over=[0, 1, 0, 0, 0])) == pytest.approx(10 / 255 / 2)
    assert flicker(series([1.0] * 4, means=means[:4], passed_over=[0, 1, 1, 1])) is None


def test_signals_are_the_same_each_time(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", zoom_in(320, 180, 24, 0.5), time_base=Fraction(1, 24))
    assert decoded(path) == decoded(path)


@pytest.mark.slow
def test_sintel_is_cropped_to_its_picture(real_videos: Path) -> None:
    """854 x 480 with a picture of 2.35:1: 363.4 lines, from 58.3 to 421.7."""
    pictures = [
        (pts, luma)
        for pts, luma in list(read_frames(str(real_videos / "sintel_trailer_30s.mp4"), pixel_format="gray8"))[250:300]
    ]
    assert signals_of(pictures, Fraction(1, 12288), 854, 480).crop == pytest.approx((0, 58, 854, 422), abs=2)


@pytest.mark.slow
def test_compression_shows_in_noise_and_sharpness(real_videos: Path) -> None:
    pristine, distorted = (decoded(real_videos / f"carphone_{which}.mp4") for which in ("pristine", "distorted"))
    assert distorted.sharpness < 0.6 * pristine.sharpness
    assert distorted.noise is not None
    assert pristine.noise is not None
    assert distorted.noise < 0.6 * pristine.noise
    assert (distorted.luma, distorted.contrast) == pytest.approx((pristine.luma, pristine.contrast), rel=0.05)
