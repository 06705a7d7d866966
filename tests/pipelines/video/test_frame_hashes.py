"""Hashes of frames: at fixed times of the source, of the frame shown then, and similar in an edited copy."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.arrays import Pixels, UInt8Array, UInt64Array
from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, Scene, choose_background, choose_bodies, render
from pipelines.video.frame_hashes import (
    HASH_INTERVAL_S,
    MAX_REPEATS,
    FrameHash,
    HashTimes,
    LumaThumbnail,
    shot_hashes,
)
from pipelines.video.phash import hamming, is_informative, mirrored, phash
from pipelines.video.scan import ScanSettings, VideoScan, scan_image, scan_video
from tests.support.images import soft_patches
from tests.support.videos import encode

pytestmark = pytest.mark.slow

WHOLE = (0.0, 0.0, 1.0, 1.0)
TIME_BASES = [
    Fraction(1, 1000),
    Fraction(1001, 30000),
    Fraction(1, 12288),
    Fraction(1, 24),
    Fraction(1, 4),
    Fraction(1),
]


@given(st.sampled_from(TIME_BASES), st.integers(-1000, 10**6), st.integers(0, 10**7))
def test_hash_times_are_quarters_of_a_second(time_base: Fraction, start_pts: int, after_pts: int) -> None:
    times = HashTimes(start_pts, time_base)
    number = times.count_before(start_pts + after_pts)
    assert (number - 1) * HASH_INTERVAL_S < after_pts * time_base <= number * HASH_INTERVAL_S
    exact = start_pts + number * HASH_INTERVAL_S / time_base
    assert exact - 1 < times.pts(number) <= exact
    assert times.count_before(start_pts) == 0


def thumbnails(pts: list[int]) -> list[LumaThumbnail]:
    return [LumaThumbnail(p, soft_patches(1, p % 97)[0, ::3, ::3, 0]) for p in pts]


@given(
    pts=st.lists(st.integers(0, 900), min_size=1, max_size=12, unique=True).map(sorted),
    start=st.integers(0, 900),
    length=st.integers(1, 600),
)
def test_hash_is_of_the_latest_frame_not_after_its_time(pts: list[int], start: int, length: int) -> None:
    end = start + length
    inside = [item for item in thumbnails(pts) if start <= item.pts < end] or thumbnails([start])
    found = shot_hashes(inside, HashTimes(0, Fraction(1, 100)), start, end, WHOLE)
    hash_times = [time for time in range(0, 1600, 25) if start <= time < end]
    if not hash_times:
        assert [item.pts for item in found] == [(start + end) // 2]
        return
    assert [item.pts for item in found] == hash_times
    for time, item in zip(hash_times, found, strict=True):
        shown = [one for one in inside if one.pts <= time] or inside[:1]
        assert item.phash == phash(shown[-1].luma_HW)


def test_frame_shown_for_years_is_hashed_for_a_minute() -> None:
    found = shot_hashes(thumbnails([0, 10**9]), HashTimes(0, Fraction(1)), 0, 10**9 + 2, WHOLE)
    assert len(found) == MAX_REPEATS + 8
    assert found[-1].pts == 10**9 + 1


def hashes_by_number(scan: VideoScan) -> dict[int, FrameHash]:
    """Return the hashes of a video by the number of their hash time."""
    info = scan.media
    every = [item for shot in scan.shots for item in shot.hashes]
    return {round((item.pts - info.start_pts) * info.time_base / HASH_INTERVAL_S): item for item in every}


def film(fps: int = 24) -> Pixels:
    """Draw three shots of soft patches that move, 4 s in all."""
    return np.concatenate([soft_patches(4 * fps // 3, seed) for seed in range(3)])


@pytest.mark.parametrize("options", [{"bf": "3"}, {"bf": "0", "g": "12"}])
@pytest.mark.parametrize("fps", [10, 24, 30])
def test_hash_at_each_quarter_of_a_second(tmp_path: Path, fps: int, options: dict[str, str]) -> None:
    scan = scan_video(str(encode(tmp_path / "a.mp4", film(fps), time_base=Fraction(1, fps), options=options)))
    assert len(scan.shots) == 3
    assert sorted(hashes_by_number(scan)) == list(range(16))
    for shot in scan.shots:
        assert all(shot.start_pts <= item.pts < shot.end_pts for item in shot.hashes)


def png(path: Path, frame: Pixels) -> str:
    Image.fromarray(frame).save(path)
    return str(path)


def test_frame_shown_at_a_hash_time_is_hashed(tmp_path: Path) -> None:
    """Frames of a variable rate, each another image; every one of them is decoded, as in ffv1 none refers to
    another."""
    frames = np.stack([soft_patches(1, seed)[0] for seed in range(12)])
    pts = [0, 100, 240, 260, 700, 760, 990, 1000, 1010, 1800, 1990, 2260]
    path = encode(tmp_path / "vfr.mkv", frames, pts=pts, time_base=Fraction(1, 1000), codec="ffv1")
    of_images = [scan_image(png(tmp_path / "one.png", frame)).shots[0].hashes[0].phash for frame in frames]
    for number, item in hashes_by_number(scan_video(str(path))).items():
        shown = max(i for i, p in enumerate(pts) if p <= number * 250)
        assert int(np.argmin([hamming(item.phash, other) for other in of_images])) == shown


def test_image_has_one_hash_that_of_a_video_of_it(tmp_path: Path) -> None:
    frame = soft_patches(1, 5)[0]
    (only,) = scan_image(png(tmp_path / "one.png", frame)).shots[0].hashes
    assert only.pts == 0
    video = scan_video(str(encode(tmp_path / "a.mp4", [frame] * 12, time_base=Fraction(1, 24), options={"crf": "5"})))
    assert max(hamming(only.phash, item.phash) for item in video.shots[0].hashes) <= 1


def resized(frames: Pixels, width: int, height: int) -> Pixels:
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in frames]
    )


def graded(frames: Pixels, gain: float = 1.0, offset: float = 0.0, gamma: float = 1.0) -> Pixels:
    return np.clip(255 * (frames / 255) ** gamma * gain + offset, 0, 255).astype(np.uint8)


def grey(frames: Pixels) -> UInt8Array:
    """Return luma of BT.601."""
    return np.round(frames @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


EDITS: dict[str, tuple[Callable[[Pixels], Pixels], str, float]] = {
    # Name: edit, crf of x264, bound on the mean number of different bits, of 64.
    "re-encode": (lambda p: p, "36", 2.5),
    "rescale": (lambda p: resized(p, 80, 48), "24", 2.5),
    "squeeze": (lambda p: resized(p, 96, 96), "24", 2.5),
    "letterbox": (lambda p: np.pad(p, ((0, 0), (16, 16), (0, 0), (0, 0))), "24", 2.5),
    "pillarbox": (lambda p: np.pad(p, ((0, 0), (0, 0), (32, 32), (0, 0))), "24", 2.5),
    "mirror": (lambda p: p[:, :, ::-1], "24", 3.0),
    "brighter": (lambda p: graded(p, 0.8, 40), "24", 2.5),
    "gamma": (lambda p: graded(p, gamma=1.4), "24", 5.0),
    "grey": (lambda p: np.repeat(grey(p)[..., None], 3, axis=-1), "24", 2.5),
}


def sequence(path: Path) -> UInt64Array:
    """Return the hashes of a video in the order of their times, which have no gaps."""
    found = hashes_by_number(scan_video(str(path)))
    assert sorted(found) == list(range(len(found)))
    return np.array([found[number].phash for number in sorted(found)], np.uint64)


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copy_differs_in_few_bits(tmp_path: Path, edit: str) -> None:
    change, crf, bound = EDITS[edit]
    frames = film()
    fine = sequence(encode(tmp_path / "fine.mp4", frames, time_base=Fraction(1, 24), options={"crf": "12"}))
    copy = sequence(encode(tmp_path / "copy.mp4", change(frames), time_base=Fraction(1, 24), options={"crf": crf}))
    assert len(fine) == len(copy)
    assert is_informative(fine).all()
    bits = np.bitwise_count(fine ^ (mirrored(copy) if edit == "mirror" else copy))
    assert bits.mean() <= bound, bits


def test_copy_that_begins_elsewhere_has_the_sequence_shifted(tmp_path: Path) -> None:
    """0.37 s are cut off at the start, no multiple of a quarter: each hash time is 0.12 or 0.13 s from one of the
    other's."""
    frames = film()
    whole = sequence(encode(tmp_path / "a.mp4", frames, time_base=Fraction(1, 24), options={"crf": "12"}))
    late = sequence(encode(tmp_path / "b.mp4", frames[9:], time_base=Fraction(1, 24), options={"crf": "24"}))
    bits = {
        offset: np.bitwise_count(whole[offset:][: len(late)] ^ late[: len(whole) - offset]).mean()
        for offset in range(4)
    }
    assert min(bits, key=bits.__getitem__) in (1, 2)
    assert min(bits.values()) <= 7


def scene(seed: int) -> Pixels:
    """Draw a demo scene of 1 s: shapes on a plain background."""
    rng = np.random.default_rng(seed)
    bodies = choose_bodies(rng, 3)
    action, move = ACTIONS[seed % len(ACTIONS)], CAMERA_MOVES[seed % len(CAMERA_MOVES)]
    drawn = Scene(action, move, choose_background(rng, bodies, None), bodies, 1.0)
    return np.stack(render(drawn, 160, 96, 24, (seed,)))


def test_different_videos_differ_in_half_of_the_bits(tmp_path: Path) -> None:
    patches = [
        sequence(encode(tmp_path / f"{seed}.mp4", soft_patches(12, seed), time_base=Fraction(1, 24)))[0]
        for seed in range(12)
    ]
    bits = [int(np.bitwise_count(a ^ b)) for i, a in enumerate(patches) for b in patches[:i]]
    assert np.mean(bits) == pytest.approx(32, abs=2)
    assert min(bits) >= 16
    # Shapes on a plain background have fewer features to distinguish them.
    scenes = [sequence(encode(tmp_path / f"s{seed}.mp4", scene(seed), time_base=Fraction(1, 24))) for seed in range(8)]
    means = [np.bitwise_count(a ^ b).mean() for i, a in enumerate(scenes) for b in scenes[:i]]
    assert np.mean(means) > 24
    assert min(means) > 14


def test_shot_shorter_than_a_quarter_of_a_second_has_a_hash(tmp_path: Path) -> None:
    frames = np.concatenate([soft_patches(32, 1), soft_patches(4, 2), soft_patches(32, 3)])
    path = encode(tmp_path / "a.mp4", frames, time_base=Fraction(1, 24))
    scan = scan_video(str(path), ScanSettings(min_shot_s=0.0))
    assert [shot.n_frames for shot in scan.shots] == [32, 4, 32]
    assert [len(shot.hashes) for shot in scan.shots] == [6, 1, 6]
    (between,) = scan.shots[1].hashes
    assert scan.shots[1].start_pts <= between.pts < scan.shots[1].end_pts
    assert hamming(between.phash, phash(grey(soft_patches(4, 2)[2]))) <= 6
