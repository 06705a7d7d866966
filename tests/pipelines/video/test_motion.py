from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import Pixels
from pipelines.video.decode import read_frames
from pipelines.video.luma import Floats
from pipelines.video.motion import Flow, MotionMeter, Move, _places, block_flow, camera_fit
from tests.support.videos import sliding


def small(frames: np.ndarray) -> list[Pixels]:
    """Luma of frames at half the size: 128 x 72 for 256 x 144."""
    return [cv2.resize(frame[..., 0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for frame in frames]


def measured(pictures: list[Pixels], fps: int) -> list[Move]:
    meter = MotionMeter(Fraction(1, fps))
    moves = [meter.push(pts, picture) for pts, picture in enumerate(pictures)]
    return [move for move in moves if move is not None]


def mean(moves: list[Move], name: str) -> float:
    seconds = [move.end_pts - move.start_pts for move in moves]
    return float(np.average([getattr(move, name) for move in moves], weights=seconds))


def texture(seed: int = 0, width: int = 1280, height: int = 720) -> Pixels:
    """Blots of all sizes, as in photographs: less contrast the smaller they are."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for size in (8, 16, 32, 64, 128, 256):
        coarse = rng.normal(0, 1, (size * height // width + 1, size)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (8 / size) ** 0.6
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def view(picture: Pixels, x: float = 0.0, y: float = 0.0, zoom: float = 1.0, turn: float = 0.0) -> Pixels:
    """What a camera sees that has moved by (x, y) long sides to the right and up, `zoom` nearer, turned clockwise by `turn` rad: 128 x 72."""
    height, width = picture.shape
    scale = width * 0.7 / 128 / zoom
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    centre = np.array([width / 2 + x * 128 * width * 0.7 / 128, height / 2 - y * 128 * width * 0.7 / 128])
    matrix = np.array([[c, -s, 0], [s, c, 0]])
    # Four samples a side for each pixel, then averaged: no aliases.
    matrix[:, :2] /= 8
    matrix[:, 2] = centre - matrix[:, :2] @ np.array([128 * 8 / 2, 72 * 8 / 2])
    large = cv2.warpAffine(
        picture, matrix, (128 * 8, 72 * 8), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(cv2.resize(large, (128, 72), interpolation=cv2.INTER_AREA), np.uint8)


def pan(fps: int, speed: float, seconds: float = 0.6, seed: int = 0, portrait: bool = False) -> list[Pixels]:
    picture = texture(seed)
    pictures = [view(picture, x=speed * (k / fps - seconds / 2)) for k in range(round(seconds * fps) + 1)]
    return [np.ascontiguousarray(np.rot90(picture)) for picture in pictures] if portrait else pictures


@pytest.mark.parametrize("fps", [12, 24, 25, 30, 48, 60])
@pytest.mark.parametrize("speed", [0.04, 0.15, -0.5])
def test_a_pan_has_its_speed_at_any_frame_rate(fps: int, speed: float) -> None:
    moves = measured(pan(fps, speed), fps)
    # Of 0.4 pixels in 0.1 s a fifth is lost: blocks that changed by less than noise count as still.
    tolerance = 0.25 if abs(speed) < 0.1 else 0.06
    assert mean(moves, "speed") == pytest.approx(abs(speed), rel=tolerance)
    assert mean(moves, "pan") == pytest.approx(speed, rel=tolerance)
    assert abs(mean(moves, "tilt")) < 0.05 * abs(speed) + 0.005
    assert mean(moves, "local") < 0.05 * abs(speed) + 0.01


def test_frames_that_are_passed_over_do_not_change_the_speed() -> None:
    pictures = pan(30, 0.2, seconds=1.3)
    meter = MotionMeter(Fraction(1, 30))
    some = [move for pts in sorted({*range(0, 40, 4), *range(0, 40, 7)}) if (move := meter.push(pts, pictures[pts]))]
    assert mean(some, "speed") == pytest.approx(mean(measured(pictures, 30), "speed"), rel=0.03)


def test_a_portrait_pan_has_the_speed_of_its_long_side() -> None:
    moves = measured(pan(24, 0.2, portrait=True), 24)
    assert mean(moves, "speed") == pytest.approx(0.2, rel=0.06)
    # Turned counter-clockwise, what moved left moves down: the camera goes up.
    assert mean(moves, "tilt") == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"x": 0.02}, {"pan": 0.2}),
        ({"x": -0.05, "y": 0.02}, {"pan": -0.5, "tilt": 0.2}),
        ({"y": -0.03}, {"tilt": -0.3}),
        ({"zoom": 1.04}, {"zoom": 0.4}),
        ({"zoom": 1 / 1.04}, {"zoom": -0.4}),
        ({"turn": 0.04}, {"roll": 0.4}),
        ({"x": 0.03, "zoom": 1.03}, {"pan": 0.3, "zoom": 0.3}),
    ],
)
def test_the_camera_is_told_by_direction_and_speed(step: dict[str, float], expected: dict[str, float]) -> None:
    for seed in range(3):
        picture = texture(seed)
        (move,) = measured([view(picture), view(picture, **step)], 5)
        found = {name: getattr(move, name) for name in ("pan", "tilt", "zoom", "roll")}
        per_fifth = {name: value / 2 for name, value in expected.items()}
        assert found == pytest.approx({"pan": 0, "tilt": 0, "zoom": 0, "roll": 0} | per_fifth, abs=0.015, rel=0.12)
        assert move.local < 0.2 * move.speed


def test_directions_do_not_cancel_out() -> None:
    """A camera that shakes left and right has a mean flow of zero, and motion all the same."""
    there = small(sliding(13, 4.0))
    moves = measured(there + there[::-1], 12)
    assert mean(moves, "speed") == pytest.approx(4.0 * 12 / 256, rel=0.15)
    assert abs(mean(moves, "pan")) < 0.02


def test_what_moves_in_front_of_a_still_camera_is_local() -> None:
    background, thing = texture(1)[:72, :128], texture(2)[:32, :40]
    pictures = []
    for k in range(6):
        picture = background.copy()
        picture[20:52, 10 + 4 * k : 50 + 4 * k] = thing
        pictures.append(picture)
    moves = measured(pictures, 10)
    assert abs(mean(moves, "pan")) < 0.01
    assert mean(moves, "local") == pytest.approx(mean(moves, "speed"), rel=0.1)
    # An eighth of the picture, 4 pixels each 0.1 s.
    assert mean(moves, "speed") == pytest.approx(32 * 40 / (72 * 128) * 4 / 128 / 0.1, rel=0.5)


def test_a_still_picture_is_compared_over_half_a_second() -> None:
    moves = measured(small(np.repeat(sliding(1, 0), 25, axis=0)), 24)
    assert [(move.start_pts, move.end_pts) for move in moves] == [(0, 12), (12, 24)]
    assert all((move.speed, move.pan, move.tilt, move.zoom, move.roll, move.local) == (0,) * 6 for move in moves)


def test_a_pan_too_slow_to_see_in_a_tenth_of_a_second_is_measured() -> None:
    """0.06 pixels in 0.1 s, of a picture of 128."""
    picture = texture(3)
    moves = measured([view(picture, x=0.005 * k / 24) for k in range(73)], 24)
    assert mean(moves, "pan") == pytest.approx(0.005, rel=0.35)


def test_noise_flicker_and_fades_are_no_motion() -> None:
    rng = np.random.default_rng(0)
    still = texture(0)[100:172, 100:228].astype(float)
    for sigma in (1, 2, 4):
        noisy = [np.clip(still + rng.normal(0, sigma, still.shape), 0, 255).astype(np.uint8) for _ in range(20)]
        # A tenth of a pixel in 0.1 s.
        assert mean(measured(noisy, 10), "speed") < 0.1 / 128 / 0.1
    for changed in (
        [still * (1 - 0.03 * k) for k in range(20)],
        [still + 20 * (k % 2) - 10 for k in range(20)],
        [128 + (still - 128) * (1 - 0.03 * k) for k in range(20)],
    ):
        moves = measured([np.clip(picture, 0, 255).astype(np.uint8) for picture in changed], 10)
        assert mean(moves, "speed") < 0.1 / 128 / 0.1


def test_flat_pictures_do_not_move_however_bright() -> None:
    rng = np.random.default_rng(1)
    for level in (0, 60, 255):
        pictures = [np.clip(rng.normal(level, 1.5, (72, 128)), 0, 255).astype(np.uint8) for _ in range(5)]
        # A quarter of a pixel in 0.2 s, and no camera.
        assert all(move.speed < 0.01 and move.pan == move.tilt == move.zoom == 0 for move in measured(pictures, 5))


def test_state_is_the_last_frame_only() -> None:
    """What is measured from an anchor on is the same whatever was measured before, bit for bit."""
    pictures = small(sliding(20, 3.0))
    first, second = MotionMeter(Fraction(1, 5)), MotionMeter(Fraction(1, 5))
    whole = [first.push(k, picture) for k, picture in enumerate(pictures)]
    rest = [second.push(k, picture) for k, picture in list(enumerate(pictures))[10:]]
    assert whole[11:] == rest[1:]
    assert whole == [MotionMeter(Fraction(1, 5)).push(k, picture) for k, picture in enumerate(pictures)][:1] + whole[1:]


@settings(max_examples=40)
@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.integers(0, 2**32 - 1))
def test_the_fit_is_exact_on_a_similarity_and_ignores_a_third_of_outliers(
    x: float, y: float, growth: float, turn: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    at = _places(9, 16).at_K.reshape(9, 16)
    at_x, at_y = at.real, at.imag
    dx, dy = x + growth * at_x - turn * at_y, y + turn * at_x + growth * at_y
    known = np.ones((9, 16), np.bool_)

    def fit(dx: np.ndarray, dy: np.ndarray) -> tuple[float, float, float, float]:
        return camera_fit(Flow(dx.astype(np.float32), dy.astype(np.float32), known.astype(np.float32), known))

    assert fit(dx, dy) == pytest.approx((x, y, growth, turn), abs=1e-3)
    aside = rng.permutation(144).reshape(9, 16) < 36
    assert fit(dx + 6 * aside, dy) == pytest.approx((x, y, growth, turn), abs=0.15)


def test_the_fit_is_least_squares_where_nothing_stands_out() -> None:
    rng = np.random.default_rng(3)
    at_x, at_y = _places(9, 16).at_K.real, _places(9, 16).at_K.imag
    dx, dy = 1 + rng.normal(0, 0.02, 144), rng.normal(0, 0.02, 144)
    ones, zeros = np.ones(144), np.zeros(144)
    design = np.concatenate([np.stack([ones, zeros, at_x, -at_y], 1), np.stack([zeros, ones, at_y, at_x], 1)])
    expected = np.linalg.lstsq(design, np.concatenate([dx, dy]), rcond=None)[0]
    known = np.ones((9, 16), np.bool_)
    flow = Flow(
        dx.reshape(9, 16).astype(np.float32), dy.reshape(9, 16).astype(np.float32), known.astype(np.float32), known
    )
    assert camera_fit(flow) == pytest.approx(tuple(expected), abs=2e-4)


@pytest.mark.parametrize("size", [(32, 288), (288, 32), (96, 96), (72, 128)])
def test_any_shape_of_picture(size: tuple[int, int]) -> None:
    large = texture(4)
    before, after = large[100 : 100 + size[0], 100 : 100 + size[1]], large[100 : 100 + size[0], 103 : 103 + size[1]]
    flow = block_flow(before, after)
    assert flow.dx_IJ.shape == (size[0] // 8, size[1] // 8)
    assert camera_fit(flow)[0] == pytest.approx(-3, abs=0.6)


def test_threads_of_opencv_change_nothing() -> None:
    picture = texture(5)
    before, after = view(picture), view(picture, x=0.02, zoom=1.02)

    def flow(threads: int) -> Flow:
        cv2.setNumThreads(threads)
        return block_flow(before, after)

    threads = cv2.getNumThreads()
    one, two = flow(1), flow(2)
    cv2.setNumThreads(threads)
    for name in ("dx_IJ", "dy_IJ", "weight_IJ"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def lumas(path: Path, width: int, height: int) -> list[tuple[int, Pixels]]:
    return list(read_frames(str(path), width, height, "gray8"))


def farneback(before: Pixels, after: Pixels) -> float:
    flow: Floats = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["carphone_pristine.mp4", "short_1s_340x256.mp4", "nasa_320x180.mp4", "mpeg4_320x240.avi"]
)
def test_real_footage_ranks_as_by_another_optical_flow(real_videos: Path, name: str) -> None:
    """Farneback's flow is smooth and reaches into flat parts: it reads up to twice as high, and rises and falls with ours."""
    pictures = lumas(real_videos / name, 128, 72)[:200]
    pairs = list(zip(pictures[::3], pictures[3::3], strict=False))
    ours = []
    for (_, before), (_, after) in pairs:
        meter = MotionMeter(Fraction(1, 5))
        meter.push(0, before)
        move = meter.push(1, after)
        ours.append(move.speed * 25.6 if move else 0.0)
    theirs = [farneback(before, after) for (_, before), (_, after) in pairs]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.85
    assert 0.2 < (np.mean(ours) + 0.02) / (np.mean(theirs) + 0.02) < 1.3
