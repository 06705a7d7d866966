"""Hashes over time: on one grid of the source's clock, of the picture shown at each moment, and close in a copy that was edited."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, Scene, choose_bodies, choose_background, render
from pipelines.video.frame_hashes import HASH_EVERY_S, MOST_REPEATS, FrameHash, Moments, Still, shot_hashes
from pipelines.video.phash import hamming, is_informative, mirrored, phash
from pipelines.video.scan import ScanSettings, VideoScan, scan_image, scan_video
from tests.pipelines.video.test_scan import patches
from tests.support.videos import encode

WHOLE = (0.0, 0.0, 1.0, 1.0)
BASES = [Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 12288), Fraction(1, 24), Fraction(1, 4), Fraction(1)]


@given(st.sampled_from(BASES), st.integers(-1000, 10**6), st.integers(0, 10**7))
def test_moments_are_quarters_of_seconds_from_the_first_frame(base: Fraction, start: int, after: int) -> None:
    moments = Moments(start, base)
    number = moments.before(start + after)
    assert (number - 1) * HASH_EVERY_S < after * base <= number * HASH_EVERY_S
    exact = start + number * HASH_EVERY_S / base
    assert exact - 1 < moments.pts(number) <= exact
    assert moments.before(start) == 0


def stills(pts: list[int]) -> list[Still]:
    return [Still(p, patches(1, p % 97)[0, ::3, ::3, 0]) for p in pts]


@given(
    pts=st.lists(st.integers(0, 900), min_size=1, max_size=12, unique=True).map(sorted),
    start=st.integers(0, 900),
    length=st.integers(1, 600),
)
def test_each_moment_has_the_latest_frame_not_after_it(pts: list[int], start: int, length: int) -> None:
    end = start + length
    inside = [item for item in stills(pts) if start <= item.pts < end] or stills([start])
    found = shot_hashes(inside, Moments(0, Fraction(1, 100)), start, end, WHOLE)
    grid = [moment for moment in range(0, 1600, 25) if start <= moment < end]
    if not grid:
        assert [item.pts for item in found] == [(start + end) // 2]
        return
    assert [item.pts for item in found] == grid
    for moment, item in zip(grid, found, strict=True):
        shown = [one for one in inside if one.pts <= moment] or inside[:1]
        assert item.phash == phash(shown[-1].luma_HW)


def test_a_frame_that_is_shown_for_years_is_hashed_for_a_minute() -> None:
    found = shot_hashes(stills([0, 10**9]), Moments(0, Fraction(1)), 0, 10**9 + 2, WHOLE)
    assert len(found) == MOST_REPEATS + 8
    assert found[-1].pts == 10**9 + 1


def times(scan: VideoScan) -> dict[int, FrameHash]:
    """The hashes of a video by the number of their moment."""
    info = scan.media
    every = [item for shot in scan.shots for item in shot.hashes]
    return {round((item.pts - info.start_pts) * info.time_base / HASH_EVERY_S): item for item in every}


def film(seconds: int = 4, fps: int = 24) -> np.ndarray:
    """Soft patches that wander, in three shots."""
    lengths = [seconds * fps // 3] * 3
    return np.concatenate([patches(n, seed) for seed, n in enumerate(lengths)])


@pytest.mark.parametrize("options", [{"bf": "3"}, {"bf": "0", "g": "12"}])
@pytest.mark.parametrize("fps", [10, 24, 30])
def test_a_video_has_a_hash_at_each_quarter_of_a_second_whatever_its_shots_are(
    tmp_path: Path, fps: int, options: dict[str, str]
) -> None:
    scan = scan_video(str(encode(tmp_path / "a.mp4", film(4, fps), time_base=Fraction(1, fps), options=options)))
    assert len(scan.shots) == 3
    assert sorted(times(scan)) == list(range(16))
    for shot in scan.shots:
        assert all(shot.start_pts <= item.pts < shot.end_pts for item in shot.hashes)


def test_what_is_shown_at_a_moment_is_hashed(tmp_path: Path) -> None:
    """Frames of a variable rate, each another picture; every one of them is decoded, for nothing refers to no other."""
    pictures = np.stack([patches(1, seed)[0] for seed in range(12)])
    pts = [0, 100, 240, 260, 700, 760, 990, 1000, 1010, 1800, 1990, 2260]
    path = encode(tmp_path / "vfr.mkv", pictures, pts=pts, time_base=Fraction(1, 1000), codec="ffv1")
    found = times(scan_video(str(path)))
    for number, item in found.items():
        shown = max(i for i, p in enumerate(pts) if p <= number * 250)
        bits = [hamming(item.phash, times(scan_image(str(image(tmp_path, picture))))[0].phash) for picture in pictures]
        assert int(np.argmin(bits)) == shown


def image(folder: Path, picture: np.ndarray) -> Path:
    path = folder / "one.png"
    Image.fromarray(picture).save(path)
    return path


def test_an_image_has_one_hash_that_of_a_video_of_it(tmp_path: Path) -> None:
    picture = patches(1, 5)[0]
    one = scan_image(str(image(tmp_path, picture))).shots[0].hashes
    assert [item.pts for item in one] == [0]
    video = scan_video(str(encode(tmp_path / "a.mp4", [picture] * 12, time_base=Fraction(1, 24), options={"crf": "5"})))
    assert max(hamming(one[0].phash, item.phash) for item in video.shots[0].hashes) <= 1


def resized(pictures: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)) for picture in pictures]
    )


def graded(pictures: np.ndarray, gain: float = 1.0, offset: float = 0.0, gamma: float = 1.0) -> np.ndarray:
    return np.clip(255 * (pictures / 255) ** gamma * gain + offset, 0, 255).astype(np.uint8)


def grey(pictures: np.ndarray) -> np.ndarray:
    """Luma of BT.601."""
    return np.round(pictures @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


EDITS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, float]] = {
    # Name: edit, x264's crf, bound on the mean of differing bits of 64.
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


def drawn(seed: int, seconds: float = 2.5) -> np.ndarray:
    """A demo scene: shapes on a plain background."""
    rng = np.random.default_rng(seed)
    bodies = choose_bodies(rng, 3)
    scene = Scene(
        ACTIONS[seed % len(ACTIONS)], CAMERA_MOVES[seed % len(CAMERA_MOVES)], choose_background(rng, bodies, None), bodies, seconds
    )
    return np.stack(render(scene, 160, 96, 24, (seed,)))


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_differs_in_few_bits(tmp_path: Path, edit: str) -> None:
    change, crf, bound = EDITS[edit]
    pictures = film()
    fine = times(
        scan_video(str(encode(tmp_path / "fine.mp4", pictures, time_base=Fraction(1, 24), options={"crf": "12"})))
    )
    copy = times(
        scan_video(
            str(encode(tmp_path / "copy.mp4", change(pictures), time_base=Fraction(1, 24), options={"crf": crf}))
        )
    )
    assert sorted(fine) == sorted(copy)
    a, b = (np.array([hashes[k].phash for k in sorted(fine)], np.uint64) for hashes in (fine, copy))
    assert is_informative(a).all()
    bits = np.bitwise_count(a ^ (mirrored(b) if edit == "mirror" else b))
    assert bits.mean() <= bound, bits


def sequence(path: Path) -> np.ndarray:
    found = times(scan_video(str(path)))
    return np.array([found[k].phash for k in sorted(found)], np.uint64)


def test_a_copy_that_begins_elsewhere_has_the_same_sequence_moved_along(tmp_path: Path) -> None:
    """0.37 s cut off at the start, which no number of quarters is: each moment lies 0.12 or 0.13 s from one of the other's."""
    pictures = film()
    whole = sequence(encode(tmp_path / "a.mp4", pictures, time_base=Fraction(1, 24), options={"crf": "12"}))
    late = sequence(encode(tmp_path / "b.mp4", pictures[9:], time_base=Fraction(1, 24), options={"crf": "24"}))
    bits = {
        offset: np.bitwise_count(whole[offset:][: len(late)] ^ late[: len(whole) - offset]).mean()
        for offset in range(4)
    }
    assert min(bits, key=bits.__getitem__) in (1, 2)
    assert min(bits.values()) <= 7


def test_unlike_videos_differ_in_half_of_the_bits(tmp_path: Path) -> None:
    textures = [
        sequence(encode(tmp_path / f"{seed}.mp4", patches(12, seed), time_base=Fraction(1, 24)))[0]
        for seed in range(12)
    ]
    bits = [int(np.bitwise_count(a ^ b)) for i, a in enumerate(textures) for b in textures[:i]]
    assert np.mean(bits) == pytest.approx(32, abs=2)
    assert min(bits) >= 16
    # Shapes on a plain background have less to tell them apart by.
    scenes = [
        sequence(encode(tmp_path / f"s{seed}.mp4", drawn(seed, 1.0), time_base=Fraction(1, 24))) for seed in range(8)
    ]
    means = [np.bitwise_count(a ^ b).mean() for i, a in enumerate(scenes) for b in scenes[:i]]
    assert np.mean(means) > 24
    assert min(means) > 14


def test_a_shot_shorter_than_a_moment_has_a_hash(tmp_path: Path) -> None:
    pictures = np.concatenate([patches(32, 1), patches(4, 2), patches(32, 3)])
    scan = scan_video(
        str(encode(tmp_path / "a.mp4", pictures, time_base=Fraction(1, 24))), ScanSettings(min_shot_s=0.0)
    )
    assert [shot.n_frames for shot in scan.shots] == [32, 4, 32]
    assert [len(shot.hashes) for shot in scan.shots] == [6, 1, 6]
    (between,) = scan.shots[1].hashes
    assert scan.shots[1].start_pts <= between.pts < scan.shots[1].end_pts
    assert hamming(between.phash, phash(grey(patches(4, 2)[2]))) <= 6
