from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from pipelines.video.decode import read_frames
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.gradual_transitions import _fit_ramp
from pipelines.video.shot_boundaries import MARGIN, Boundary, ContentScore, Detection, find_boundaries, drop_short_shots
from pipelines.video.signatures import Signatures
from tests.support.videos import sliding

LABELS = Path(__file__).with_name("sintel_labels.json")


def shot(seed: int, n: int, speed: float = 0.0, noise: float = 0.5, height: int = 18, width: int = 32) -> np.ndarray:
    """`[n, 3, height, width]` floats: soft patches in luma, Cb and Cr that move right by `speed` elements a frame, with
    a little noise."""
    rng = np.random.default_rng(seed)
    wide = width + int(abs(speed) * n) + 2
    # Patches of several sizes: with one size only, a slow pan would be a mixture of neighbouring patches, as a dissolve is.
    picture = np.full((3, height, wide), 128.0)
    for size, depth in ((8, 55), (4, 40), (2, 25)):
        coarse = rng.uniform(-depth, depth, (3, height // size + 1, wide // size + 1))
        picture += np.stack([cv2.resize(plane, (wide, height), interpolation=cv2.INTER_CUBIC) for plane in coarse])
    picture[1:] = 128 + (picture[1:] - 128) * 0.4
    x = np.arange(width) + (abs(speed) * np.arange(n))[:, None]
    low = np.floor(x).astype(int)
    moved = np.stack(
        [picture[:, :, low[k]] * (1 - (x[k] - low[k])) + picture[:, :, low[k] + 1] * (x[k] - low[k]) for k in range(n)]
    )
    return moved + rng.normal(0, noise, moved.shape)


def series(
    pictures: np.ndarray,
    pts: np.ndarray | None = None,
    time_base: Fraction = Fraction(1, 25),
    keep: np.ndarray | None = None,
) -> FrameFeatures:
    """A series of pictures `[N, 3, H, W]`; where `keep` is false, a frame is passed over."""
    at = np.arange(len(pictures)) if keep is None else np.flatnonzero(keep)
    pts = np.arange(len(pictures)) if pts is None else pts
    levels = np.clip(np.rint(pictures[at]), 0, 255).astype(np.uint8)
    luma = levels[:, 0]
    chroma = np.stack(
        [
            [cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in picture[1:]]
            for picture in levels
        ]
    )
    change = np.zeros(len(at), np.float32)
    change[1:] = np.abs(np.diff(luma.astype(np.float32), axis=0)).mean(axis=(1, 2))
    measured = {
        "pts_N": pts[at].astype(np.int64),
        "skipped_N": (np.diff(at, prepend=-1) - 1).astype(np.int32),
        "luma_NHW": luma,
        "chroma_N2hw": chroma,
    }
    others = {field.name: change for field in fields(FrameFeatures) if field.name not in {"time_base", *measured}}
    return FrameFeatures(time_base, **(others | measured | {"content_score_N": np.full(len(at), np.nan, np.float32)}))


def found(item: FrameFeatures, min_shot_s: float = 0.2) -> Detection:
    return find_boundaries(item, "signature", None, min_shot_s)


def spans(item: FrameFeatures) -> list[tuple[str, int, int]]:
    return [(boundary.kind, boundary.start_pts, boundary.end_pts) for boundary in found(item).boundaries]


def dissolve(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """`b` after `a` with n mixed frames, which both are shown in."""
    share = (np.arange(n) + 1)[:, None, None, None] / (n + 1)
    return np.concatenate([a[:-n], a[-n:] * (1 - share) + b[:n] * share, b[n:]])


def fade(a: np.ndarray, b: np.ndarray, colour: tuple[int, int, int], n: int, hold: int) -> np.ndarray:
    """`b` after `a` through a plain colour: n frames down, the last of them plain, `hold` plain ones, n frames up."""
    plain = np.broadcast_to(np.array(colour, float)[:, None, None], a.shape[1:])
    share = (np.arange(n) + 1)[:, None, None, None] / n
    up = (np.arange(n) + 1)[:, None, None, None] / (n + 1)
    return np.concatenate(
        [
            a[:-n],
            a[-n:] * (1 - share) + plain * share,
            np.repeat(plain[None], hold, axis=0),
            plain * (1 - up) + b[:n] * up,
            b[n:],
        ]
    )


# What is known of the input


@pytest.mark.parametrize("speed", [0.0, 0.4])
def test_cuts_are_at_the_first_frame_of_the_new_shot(speed: float) -> None:
    pictures = np.concatenate([shot(seed, n, speed) for seed, n in enumerate((30, 8, 41, 25))])
    assert spans(series(pictures)) == [("cut", 30, 30), ("cut", 38, 38), ("cut", 79, 79)]
    assert min(boundary.score for boundary in found(series(pictures)).boundaries) > 0.9


@pytest.mark.parametrize("n", [6, 12, 20, 30])
@pytest.mark.parametrize("speed", [0.0, 0.1])
def test_dissolves_are_found_and_measured(n: int, speed: float) -> None:
    pictures = dissolve(shot(1, 60, speed), shot(2, 60, speed), n)
    ((kind, start, end),) = spans(series(pictures))
    assert kind == "dissolve"
    assert (start, end) == pytest.approx((60 - n, 60), abs=1 + n // 10 if speed == 0 else 1 + n // 4)


@pytest.mark.parametrize("colour", [(16, 128, 128), (235, 128, 128), (81, 90, 240)])
@pytest.mark.parametrize(("n", "hold"), [(6, 0), (12, 5), (24, 30)])
def test_a_fade_is_one_boundary_with_the_plain_colour_in_it(colour: tuple[int, int, int], n: int, hold: int) -> None:
    pictures = fade(shot(1, 60), shot(2, 60), colour, n, hold)
    ((kind, start, end),) = spans(series(pictures))
    assert kind == "fade"
    assert (start, end) == pytest.approx((60 - n, 60 + hold + n), abs=2)


def test_a_file_that_starts_and_ends_black() -> None:
    a = shot(1, 80)
    black = np.zeros_like(a[:10]) + np.array([0, 128, 128])[:, None, None]
    pictures = np.concatenate([black, fade(black[:1], a, (0, 128, 128), 1, 8)[1:], black])
    assert [span[0] for span in spans(series(pictures))] == ["fade", "fade"]
    assert (spans(series(pictures))[0][1], spans(series(pictures))[-1][2]) == (0, len(pictures))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_flashes_are_no_cuts(n: int) -> None:
    pictures = shot(1, 60, 0.1)
    pictures[30 : 30 + n] = pictures[30 : 30 + n] * 0.2 + 255 * 0.8
    assert spans(series(pictures)) == []
    pictures[30 : 30 + n] = 255
    assert spans(series(pictures)) == []


def test_a_pan_and_a_lamp_switched_on_are_no_cuts() -> None:
    assert spans(series(shot(1, 60, 3.0))) == []
    lamp = shot(2, 60)
    lamp[30:, 0] *= 1.3
    assert spans(series(lamp)) == []
    slow = shot(2, 60)
    slow[:, 0] *= np.interp(np.arange(60), [20, 40], [0.6, 1.0])[:, None, None]
    assert spans(series(slow)) == []


def test_a_letterbox_does_not_hide_a_fade() -> None:
    pictures = fade(shot(1, 60), shot(2, 60), (235, 128, 128), 12, 4)
    pictures[:, 0, :2] = pictures[:, 0, -2:] = 16
    pictures[:, 1:, :2] = pictures[:, 1:, -2:] = 128
    ((kind, start, end),) = spans(series(pictures))
    assert (kind, start, end) == ("fade", pytest.approx(48, abs=2), pytest.approx(76, abs=2))


def test_series_too_short_to_hold_a_boundary() -> None:
    for n in (1, 2, 3):
        assert found(series(shot(1, n))).boundaries == ()
    plain = np.full((50, 3, 18, 32), 128.0)
    assert spans(series(plain)) in ([], [("fade", 0, 50)])


# Frames that were passed over


@pytest.mark.parametrize("every", [2, 3, 4])
def test_frames_passed_over_are_asked_for_and_then_decide(every: int) -> None:
    pictures = np.concatenate(
        [shot(0, 50), dissolve(shot(1, 61), fade(shot(2, 70), shot(3, 60), (16, 128, 128), 10, 3), 12), shot(4, 30)]
    )
    whole = spans(series(pictures))
    assert [span[0] for span in whole] == ["cut", "dissolve", "fade", "cut"]
    keep = np.zeros(len(pictures), bool)
    keep[::every] = True
    for _ in range(4):
        result = found(series(pictures, keep=keep))
        if not result.spans_to_decode:
            break
        for start, end in result.spans_to_decode:
            assert keep[start]
            assert keep[end]
            assert not keep[start:end].all()
            keep[start : end + 1] = True
    assert not result.spans_to_decode
    assert keep.mean() < 0.8
    for boundary, (kind, start, end) in zip(result.boundaries, whole, strict=True):
        assert boundary.kind == kind
        assert (boundary.start_pts, boundary.end_pts) == pytest.approx((start, end), abs=0 if kind == "cut" else 2)


def test_nothing_is_asked_of_a_quiet_shot() -> None:
    keep = np.arange(120) % 4 == 0
    assert found(series(shot(1, 120, 0.05), keep=keep)).spans_to_decode == ()
    assert MARGIN < 12


# Properties


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(["cut", "dissolve", "fade"]), min_size=1, max_size=4))
def test_boundaries_are_in_order_and_apart(seed: int, joins: list[str]) -> None:
    pictures = shot(seed, 40, seed % 7 / 10)
    for k, join in enumerate(joins):
        after = shot(seed + k + 1, 40, (seed + k) % 5 / 10)
        pictures = (
            dissolve(pictures, after, 8)
            if join == "dissolve"
            else fade(pictures, after, (16, 128, 128), 8, k)
            if join == "fade"
            else np.concatenate([pictures, after])
        )
    result = found(series(pictures))
    edges = [pts for boundary in result.boundaries for pts in (boundary.start_pts, boundary.end_pts)]
    assert edges == sorted(edges)
    assert all(0 < boundary.start_pts <= boundary.end_pts <= len(pictures) for boundary in result.boundaries)
    assert all(0 <= boundary.score <= 1 for boundary in (*result.boundaries, *result.doubtful))
    assert result.spans_to_decode == ()


@settings(max_examples=20)
@given(st.integers(1, 5000), st.integers(-(10**6), 10**6))
def test_only_times_matter_not_their_units(scale: int, offset: int) -> None:
    pictures = np.concatenate([shot(1, 40), dissolve(shot(2, 40), shot(3, 40), 10)])
    plain = found(series(pictures))
    other = found(series(pictures, np.arange(len(pictures)) * scale + offset, Fraction(1, 25 * scale)))
    assert [(b.kind, b.start_pts * scale + offset, b.end_pts * scale + offset, b.score) for b in plain.boundaries] == [
        (b.kind, b.start_pts, b.end_pts, b.score) for b in other.boundaries
    ]


def test_cuts_of_a_variable_frame_rate_are_exact_pts() -> None:
    pts = np.cumsum(np.random.default_rng(0).integers(10, 120, 96)) - 5000
    pictures = np.concatenate([shot(1, 40), shot(2, 31), shot(3, 25)])
    assert spans(series(pictures, pts, Fraction(1, 1000))) == [("cut", pts[40], pts[40]), ("cut", pts[71], pts[71])]


def test_the_same_series_gives_the_same_bits() -> None:
    pictures = np.concatenate([shot(1, 40, 0.5), dissolve(shot(2, 40, 0.3), shot(3, 40), 10)])
    assert found(series(pictures)) == found(series(pictures))


def test_a_higher_threshold_finds_no_more() -> None:
    pictures = np.concatenate([shot(1, 40, 0.5), dissolve(shot(2, 40, 0.3), shot(3, 40), 10)])
    counts = [
        len(find_boundaries(series(pictures), "signature", threshold, 0.2).boundaries)
        for threshold in (0.1, 0.5, 0.9, 1.1)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_of_boundaries_too_close_the_surer_one_stays() -> None:
    def cut(pts: int, score: float) -> Boundary:
        return Boundary("cut", pts, pts, score)

    base = Fraction(1, 10)
    assert drop_short_shots([cut(10, 0.9), cut(12, 0.8), cut(20, 0.7)], 0.3, base) == (cut(10, 0.9), cut(20, 0.7))
    assert drop_short_shots([cut(10, 0.8), cut(12, 0.9), cut(15, 0.7)], 0.3, base) == (cut(12, 0.9), cut(15, 0.7))
    assert drop_short_shots([cut(10, 0.8), cut(13, 0.9)], 0.3, base) == (cut(10, 0.8), cut(13, 0.9))
    assert drop_short_shots([], 0.3, base) == ()


# Against independent references


def test_distances_against_plain_numpy() -> None:
    track = Signatures(series(np.concatenate([shot(1, 20, 0.5), shot(2, 20)])))
    luma, chroma = track.luma_ND.astype(float), track.chroma_ND.astype(float)
    a, b = np.array([0, 5, 19, 39]), np.array([1, 25, 20, 0])
    apart = np.abs(luma[a] - luma[b]).mean(axis=1) + np.abs(chroma[a] - chroma[b]).mean(axis=1)
    assert track.distance(a, b) == pytest.approx(apart, rel=1e-5)
    assert track.steps[1:] == pytest.approx(track.distance(np.arange(39), np.arange(1, 40)))
    half = chroma.shape[1] // 2
    assert track.contrasts == pytest.approx(
        luma.std(axis=1) + chroma[:, :half].std(axis=1) + chroma[:, half:].std(axis=1), rel=1e-4
    )
    assert track.correlation(a, b) == pytest.approx(
        [np.corrcoef(luma[i], luma[j])[0, 1] for i, j in zip(a, b, strict=True)], abs=1e-4
    )
    moved = np.sort(luma[0])
    assert track.histogram_distance(np.array([0]), np.array([0]))[0] == 0
    expected = np.abs(moved - np.sort(luma[30])).mean() + sum(
        0.5 * np.abs(np.sort(chroma[0, s]) - np.sort(chroma[30, s])).mean() for s in (slice(half), slice(half, None))
    )
    assert track.histogram_distance(np.array([0]), np.array([30]))[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("start", "end"), [(5, 12), (20, 50), (30, 33)])
def test_the_ramp_is_the_best_of_all_ramps(start: int, end: int) -> None:
    t = np.arange(60.0)
    share = np.clip((t - start) / (end - start), 0, 1) + np.random.default_rng(start).normal(0, 0.02, 60)
    a, b, error = _fit_ramp(t, share, 0, 59, (start + end) // 2)

    def squares(i: int, j: int) -> float:
        ramp = np.clip((t - t[i]) / (t[j] - t[i]), 0, 1)
        design = np.stack([ramp, np.ones(60)], axis=1)
        return float(((design @ np.linalg.lstsq(design, share, rcond=None)[0] - share) ** 2).mean())

    best = min(((i, j) for i in range(59) for j in range(i + 1, 60)), key=lambda pair: squares(*pair))
    assert (a, b) == pytest.approx(best, abs=1)
    assert error == pytest.approx(squares(a, b), rel=1e-6)


@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_recorded_scores_give_what_pyscenedetect_gives_on_the_pictures(name: str) -> None:
    parts = [
        sliding(n, 2.0, 128, 72, seed) * np.array(colour)
        for seed, (n, colour) in enumerate([(40, (1, 0.3, 0.2)), (31, (0.2, 0.4, 1)), (25, (0.9, 0.9, 0.3))])
    ]
    pictures = np.concatenate(parts).astype(np.uint8)
    options = {"min_scene_len": 0.3}
    detector = ContentDetector(**options) if name == "content" else AdaptiveDetector(**options)
    cuts = [
        cut.pts
        for k, picture in enumerate(pictures)
        for cut in detector.process_frame(FrameTimecode(Timecode(k, Fraction(1, 25)), Fraction(25)), picture)
    ]
    score = ContentScore()
    content = np.array([score.push(picture) for picture in pictures], np.float32)
    assert content[0] == 0
    item = replace(series(np.zeros((96, 3, 18, 32))), content_score_N=content)
    assert [boundary.start_pts for boundary in find_boundaries(item, name, None, 0.3).boundaries] == cuts == [40, 71]
    score.reset()
    assert score.push(pictures[50]) == 0
    assert find_boundaries(item, name, 1000.0, 0.3).boundaries == ()


def test_what_cannot_be_done_is_said() -> None:
    item = series(shot(1, 10))
    with pytest.raises(ValueError, match="detector 'magic'"):
        find_boundaries(item, "magic", None, 0.3)
    with pytest.raises(ValueError, match="content score was not recorded"):
        find_boundaries(item, "content", None, 0.3)


# Real footage


def from_file(path: Path) -> FrameFeatures:
    """Signatures of every frame, by a route of its own: RGB, averaged areas, BT.601 in full range."""
    rows = []
    pts = []
    for at, rgb in read_frames(str(path), 128, 72):
        ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
        rows.append(cv2.resize(ycc, (32, 18), interpolation=cv2.INTER_AREA).transpose(2, 0, 1))
        pts.append(at)
    return series(np.stack(rows).astype(float), np.array(pts))


@pytest.mark.slow
def test_the_sintel_trailer_against_labels_made_by_eye(real_videos: Path) -> None:
    labels = json.loads(LABELS.read_text())
    item = from_file(real_videos / labels["file"])
    at = {int(pts): k for k, pts in enumerate(item.pts_N)}
    got = [
        (boundary.kind, at[boundary.start_pts], at.get(boundary.end_pts, labels["frames"]))
        for boundary in found(item).boundaries
    ]
    for label in labels["boundaries"]:
        start, end = label["start_frame"], label["end_frame"]
        if label["kind"] == "cut":
            assert any(kind == "cut" and k == start for kind, k, _ in got), label
        else:
            assert any(kind != "cut" and max(start, a) < min(end, b) for kind, a, b in got), label
    for quiet in labels["not_cuts"]:
        start, end = quiet["start_frame"], quiet["end_frame"]
        assert not any(kind == "cut" and start < k < end for kind, k, _ in got), quiet
    assert len(got) <= len(labels["boundaries"]) + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("talk_640x360.mp4", [144, 237]),
        ("talk_portrait_480x640.mp4", []),
        ("motorcycle_2160p.mp4", []),
        ("hydraulic_press_832x480.mp4", []),
    ],
)
def test_cuts_read_off_the_pictures(real_videos: Path, name: str, cuts: list[int]) -> None:
    item = from_file(real_videos / name)
    assert [int(np.searchsorted(item.pts_N, boundary.start_pts)) for boundary in found(item).boundaries] == cuts
