"""Shot boundaries: cuts, decoding of skipped frames, properties of all detections, and PySceneDetect's detectors."""

from __future__ import annotations

import json
from dataclasses import replace
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
from pipelines.video.shot_boundaries import (
    DECODE_MARGIN_FRAMES,
    Boundary,
    ContentScore,
    Detection,
    drop_short_shots,
    find_boundaries,
)
from tests.support.frame_features import dissolve, draw_shot, fade, features_of
from tests.support.videos import sliding


def detect(features: FrameFeatures) -> Detection:
    return find_boundaries(features, "signature", None, 0.2)


def transitions(features: FrameFeatures) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of the boundaries found."""
    return [(boundary.kind, boundary.start_pts, boundary.end_pts) for boundary in detect(features).boundaries]


@pytest.mark.parametrize("speed", [0.0, 0.4])
def test_cuts_are_at_the_first_frame_of_the_new_shot(speed: float) -> None:
    features = features_of(np.concatenate([draw_shot(seed, n, speed) for seed, n in enumerate((30, 8, 41, 25))]))
    assert transitions(features) == [("cut", 30, 30), ("cut", 38, 38), ("cut", 79, 79)]
    assert min(boundary.score for boundary in detect(features).boundaries) > 0.9


@pytest.mark.parametrize("n", [1, 2, 3])
def test_flashes_are_no_cuts(n: int) -> None:
    frames = draw_shot(1, 60, 0.1)
    frames[30 : 30 + n] = frames[30 : 30 + n] * 0.2 + 255 * 0.8
    assert transitions(features_of(frames)) == []
    frames[30 : 30 + n] = 255
    assert transitions(features_of(frames)) == []


def test_pan_and_changes_of_light_are_no_cuts() -> None:
    assert transitions(features_of(draw_shot(1, 60, 3.0))) == []
    lamp = draw_shot(2, 60)
    lamp[30:, 0] *= 1.3
    assert transitions(features_of(lamp)) == []
    slow = draw_shot(2, 60)
    slow[:, 0] *= np.interp(np.arange(60), [20, 40], [0.6, 1.0])[:, None, None]
    assert transitions(features_of(slow)) == []


def test_videos_too_short_to_hold_a_boundary() -> None:
    for n in (1, 2, 3):
        assert detect(features_of(draw_shot(1, n))).boundaries == ()
    plain = np.full((50, 3, 18, 32), 128.0)
    assert transitions(features_of(plain)) in ([], [("fade", 0, 50)])


@pytest.mark.parametrize("every", [2, 3, 4])
def test_skipped_frames_are_decoded_where_they_decide(every: int) -> None:
    faded = fade(draw_shot(2, 70), draw_shot(3, 60), (16, 128, 128), 10, 3)
    frames = np.concatenate([draw_shot(0, 50), dissolve(draw_shot(1, 61), faded, 12), draw_shot(4, 30)])
    whole = transitions(features_of(frames))
    assert [kind for kind, _, _ in whole] == ["cut", "dissolve", "fade", "cut"]
    keep = np.zeros(len(frames), bool)
    keep[::every] = True
    for _ in range(4):
        detection = detect(features_of(frames, keep=keep))
        if not detection.spans_to_decode:
            break
        for start, end in detection.spans_to_decode:
            assert keep[start]
            assert keep[end]
            assert not keep[start:end].all()
            keep[start : end + 1] = True
    assert not detection.spans_to_decode
    assert keep.mean() < 0.8
    for boundary, (kind, start, end) in zip(detection.boundaries, whole, strict=True):
        assert boundary.kind == kind
        assert (boundary.start_pts, boundary.end_pts) == pytest.approx((start, end), abs=0 if kind == "cut" else 2)


def test_no_skipped_frame_of_a_quiet_shot_is_decoded() -> None:
    keep = np.arange(120) % 4 == 0
    assert detect(features_of(draw_shot(1, 120, 0.05), keep=keep)).spans_to_decode == ()
    assert DECODE_MARGIN_FRAMES < 12


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(["cut", "dissolve", "fade"]), min_size=1, max_size=4))
def test_boundaries_are_in_order_and_apart(seed: int, kinds: list[str]) -> None:
    frames = draw_shot(seed, 40, seed % 7 / 10)
    for k, kind in enumerate(kinds):
        after = draw_shot(seed + k + 1, 40, (seed + k) % 5 / 10)
        if kind == "dissolve":
            frames = dissolve(frames, after, 8)
        elif kind == "fade":
            frames = fade(frames, after, (16, 128, 128), 8, k)
        else:
            frames = np.concatenate([frames, after])
    detection = detect(features_of(frames))
    edges = [pts for boundary in detection.boundaries for pts in (boundary.start_pts, boundary.end_pts)]
    assert edges == sorted(edges)
    assert all(0 < boundary.start_pts <= boundary.end_pts <= len(frames) for boundary in detection.boundaries)
    assert all(0 <= boundary.score <= 1 for boundary in detection.boundaries)
    assert detection.spans_to_decode == ()


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(1, 5000), st.integers(-(10**6), 10**6))
def test_units_of_pts_do_not_matter(scale: int, offset: int) -> None:
    frames = np.concatenate([draw_shot(1, 40), dissolve(draw_shot(2, 40), draw_shot(3, 40), 10)])
    plain = detect(features_of(frames))
    other = detect(features_of(frames, np.arange(len(frames)) * scale + offset, Fraction(1, 25 * scale)))
    assert [(b.kind, b.start_pts * scale + offset, b.end_pts * scale + offset, b.score) for b in plain.boundaries] == [
        (b.kind, b.start_pts, b.end_pts, b.score) for b in other.boundaries
    ]


def test_cuts_of_a_variable_frame_rate_are_exact_pts() -> None:
    pts = np.cumsum(np.random.default_rng(0).integers(10, 120, 96)) - 5000
    frames = np.concatenate([draw_shot(1, 40), draw_shot(2, 31), draw_shot(3, 25)])
    expected = [("cut", pts[40], pts[40]), ("cut", pts[71], pts[71])]
    assert transitions(features_of(frames, pts, Fraction(1, 1000))) == expected


def test_detection_is_deterministic() -> None:
    frames = np.concatenate([draw_shot(1, 40, 0.5), dissolve(draw_shot(2, 40, 0.3), draw_shot(3, 40), 10)])
    assert detect(features_of(frames)) == detect(features_of(frames))


@pytest.mark.slow
def test_higher_threshold_finds_no_more() -> None:
    frames = np.concatenate([draw_shot(1, 40, 0.5), dissolve(draw_shot(2, 40, 0.3), draw_shot(3, 40), 10)])
    counts = [
        len(find_boundaries(features_of(frames), "signature", threshold, 0.2).boundaries)
        for threshold in (0.1, 0.5, 0.9, 1.1)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_of_two_close_boundaries_the_higher_score_stays() -> None:
    def cut(pts: int, score: float) -> Boundary:
        return Boundary("cut", pts, pts, score)

    base = Fraction(1, 10)
    assert drop_short_shots([cut(10, 0.9), cut(12, 0.8), cut(20, 0.7)], 0.3, base) == (cut(10, 0.9), cut(20, 0.7))
    assert drop_short_shots([cut(10, 0.8), cut(12, 0.9), cut(15, 0.7)], 0.3, base) == (cut(12, 0.9), cut(15, 0.7))
    assert drop_short_shots([cut(10, 0.8), cut(13, 0.9)], 0.3, base) == (cut(10, 0.8), cut(13, 0.9))
    assert drop_short_shots([], 0.3, base) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_recorded_scores_decide_as_pyscenedetect_does(name: str) -> None:
    shots = [
        sliding(n, 2.0, 128, 72, seed) * np.array(colour)
        for seed, (n, colour) in enumerate([(40, (1, 0.3, 0.2)), (31, (0.2, 0.4, 1)), (25, (0.9, 0.9, 0.3))])
    ]
    images = np.concatenate(shots).astype(np.uint8)
    detector = (ContentDetector if name == "content" else AdaptiveDetector)(min_scene_len=0.3)
    cuts = [
        cut.pts
        for k, image in enumerate(images)
        for cut in detector.process_frame(FrameTimecode(Timecode(k, Fraction(1, 25)), Fraction(25)), image)
    ]
    score = ContentScore()
    scores = np.array([score.push(image) for image in images], np.float32)
    assert scores[0] == 0
    features = replace(features_of(np.zeros((96, 3, 18, 32))), content_score_N=scores)
    found = find_boundaries(features, name, None, 0.3).boundaries
    assert [boundary.start_pts for boundary in found] == cuts == [40, 71]
    score.reset()
    assert score.push(images[50]) == 0
    assert find_boundaries(features, name, 1000.0, 0.3).boundaries == ()


def test_unknown_detector_and_missing_scores_are_refused() -> None:
    features = features_of(draw_shot(1, 10))
    with pytest.raises(ValueError, match="detector 'magic'"):
        find_boundaries(features, "magic", None, 0.3)
    with pytest.raises(ValueError, match="content score was not recorded"):
        find_boundaries(features, "content", None, 0.3)


def read_features(path: Path) -> FrameFeatures:
    """Return the features of every frame of a file, computed apart from the scan.

    They come from RGB frames, by averaged areas and full-range BT.601.
    """
    signatures = []
    pts = []
    for frame_pts, rgb in read_frames(str(path), 128, 72):
        ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
        signatures.append(cv2.resize(ycc, (32, 18), interpolation=cv2.INTER_AREA).transpose(2, 0, 1))
        pts.append(frame_pts)
    return features_of(np.stack(signatures).astype(float), np.array(pts))


@pytest.mark.slow
def test_trailer_against_labels_of_every_frame(video_folder: Path) -> None:
    labels = json.loads(Path(__file__).with_name("sintel_labels.json").read_text())
    features = read_features(video_folder / labels["file"])
    index = {int(pts): k for k, pts in enumerate(features.pts_N)}
    found = [
        (boundary.kind, index[boundary.start_pts], index.get(boundary.end_pts, labels["frames"]))
        for boundary in detect(features).boundaries
    ]
    for label in labels["boundaries"]:
        start, end = label["start_frame"], label["end_frame"]
        if label["kind"] == "cut":
            assert any(kind == "cut" and k == start for kind, k, _ in found), label
        else:
            assert any(kind != "cut" and max(start, a) < min(end, b) for kind, a, b in found), label
    for span in labels["not_cuts"]:
        start, end = span["start_frame"], span["end_frame"]
        assert not any(kind == "cut" and start < k < end for kind, k, _ in found), span
    assert len(found) <= len(labels["boundaries"]) + 2


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
def test_cuts_of_footage_as_labelled(video_folder: Path, name: str, cuts: list[int]) -> None:
    features = read_features(video_folder / name)
    found = detect(features).boundaries
    assert [int(np.searchsorted(features.pts_N, boundary.start_pts)) for boundary in found] == cuts
