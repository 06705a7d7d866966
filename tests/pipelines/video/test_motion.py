"""Motion of pairs of frames: right speeds and directions at any frame rate, and none where only light or noise
changes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import Float32Array, Float64Array, Pixels, UInt8Array
from pipelines.video.decode import read_frames
from pipelines.video.motion import (
    BlockFlow,
    MotionMeter,
    PairMotion,
    _block_centres,
    block_flow,
    block_means,
    fit_camera_motion,
)
from tests.support.images import blots, camera_view, motions_of
from tests.support.videos import sliding


def half_size_luma(frames: Pixels) -> list[UInt8Array]:
    """Return luma of frames at half the size: 128 x 72 for 256 x 144."""
    return [cv2.resize(frame[..., 0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for frame in frames]


def mean(motions: list[PairMotion], name: str) -> float:
    """Return the mean of a component of motions, weighted by time."""
    durations = [motion.end_pts - motion.start_pts for motion in motions]
    return float(np.average([getattr(motion, name) for motion in motions], weights=durations))


def pan(fps: int, speed: float, seconds: float = 0.6, portrait: bool = False) -> list[UInt8Array]:
    """Return luma images of a camera that pans to the right by `speed` long sides per second, upright or rotated by 90
    degrees."""
    image = blots()
    views = [camera_view(image, x=speed * (k / fps - seconds / 2)) for k in range(round(seconds * fps) + 1)]
    return [np.ascontiguousarray(np.rot90(view)) for view in views] if portrait else views


def test_block_means_against_numpy() -> None:
    image = np.random.default_rng(1).integers(0, 256, (72, 128)).astype(np.uint8)
    assert block_means(image) == pytest.approx(image.reshape(9, 8, 16, 8).mean(axis=(1, 3)), abs=1e-4)
    assert block_means(image, 4) == pytest.approx(image.reshape(18, 4, 32, 4).mean(axis=(1, 3)), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fps", [12, 24, 25, 30, 48, 60])
@pytest.mark.parametrize("speed", [0.04, 0.15, -0.5])
def test_pan_has_its_speed_at_any_frame_rate(fps: int, speed: float) -> None:
    motions = motions_of(pan(fps, speed), fps)
    # Of 0.4 pixels in 0.1 s a fifth is lost: blocks that changed by less than noise count as still.
    tolerance = 0.25 if abs(speed) < 0.1 else 0.06
    assert mean(motions, "speed") == pytest.approx(abs(speed), rel=tolerance)
    assert mean(motions, "pan") == pytest.approx(speed, rel=tolerance)
    assert abs(mean(motions, "tilt")) < 0.05 * abs(speed) + 0.005
    assert mean(motions, "local") < 0.05 * abs(speed) + 0.01


@pytest.mark.slow
def test_skipped_frames_do_not_change_the_speed() -> None:
    images = pan(30, 0.2, seconds=1.3)
    meter = MotionMeter(Fraction(1, 30))
    pushed = [meter.push(pts, images[pts]) for pts in sorted({*range(0, 40, 4), *range(0, 40, 7)})]
    some = [motion for motion in pushed if motion is not None]
    assert mean(some, "speed") == pytest.approx(mean(motions_of(images, 30), "speed"), rel=0.03)


def test_portrait_pan_has_the_speed_of_its_long_side() -> None:
    motions = motions_of(pan(24, 0.2, portrait=True), 24)
    assert mean(motions, "speed") == pytest.approx(0.2, rel=0.06)
    # Rotated counter-clockwise, motion to the left becomes motion downwards: the camera tilts up.
    assert mean(motions, "tilt") == pytest.approx(0.2, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"x": 0.02}, {"pan": 0.2}),
        ({"x": -0.05, "y": 0.02}, {"pan": -0.5, "tilt": 0.2}),
        ({"y": -0.03}, {"tilt": -0.3}),
        ({"zoom": 1.04}, {"zoom": 0.4}),
        ({"zoom": 1 / 1.04}, {"zoom": -0.4}),
        ({"rotation": 0.04}, {"roll": 0.4}),
        ({"x": 0.03, "zoom": 1.03}, {"pan": 0.3, "zoom": 0.3}),
    ],
)
def test_camera_motion_by_component(step: dict[str, float], expected: dict[str, float]) -> None:
    for seed in range(3):
        image = blots(seed)
        (motion,) = motions_of([camera_view(image), camera_view(image, **step)], 5)
        found = {name: getattr(motion, name) for name in ("pan", "tilt", "zoom", "roll")}
        per_fifth = {name: value / 2 for name, value in expected.items()}
        assert found == pytest.approx({"pan": 0, "tilt": 0, "zoom": 0, "roll": 0} | per_fifth, abs=0.015, rel=0.12)
        assert motion.local < 0.2 * motion.speed


def test_opposite_directions_do_not_cancel_out() -> None:
    """A camera that shakes left and right has a mean flow of zero, but still moves."""
    forward = half_size_luma(sliding(13, 4.0))
    motions = motions_of(forward + forward[::-1], 12)
    assert mean(motions, "speed") == pytest.approx(4.0 * 12 / 256, rel=0.15)
    assert abs(mean(motions, "pan")) < 0.02


def test_object_before_a_still_camera_is_local_motion() -> None:
    background, thing = blots(1)[:72, :128], blots(2)[:32, :40]
    images = []
    for k in range(6):
        image = background.copy()
        image[20:52, 10 + 4 * k : 50 + 4 * k] = thing
        images.append(image)
    motions = motions_of(images, 10)
    assert abs(mean(motions, "pan")) < 0.01
    assert mean(motions, "local") == pytest.approx(mean(motions, "speed"), rel=0.1)
    # An eighth of the image, 4 pixels each 0.1 s.
    assert mean(motions, "speed") == pytest.approx(32 * 40 / (72 * 128) * 4 / 128 / 0.1, rel=0.5)


def test_still_image_is_compared_over_half_a_second() -> None:
    motions = motions_of(half_size_luma(np.repeat(sliding(1, 0), 25, axis=0)), 24)
    assert [(motion.start_pts, motion.end_pts) for motion in motions] == [(0, 12), (12, 24)]
    for motion in motions:
        assert (motion.speed, motion.pan, motion.tilt, motion.zoom, motion.roll, motion.local) == (0,) * 6


@pytest.mark.slow
def test_pan_too_slow_to_see_in_a_tenth_of_a_second() -> None:
    """The pan moves by 0.06 pixels in 0.1 s, of an image of 128."""
    image = blots(3)
    motions = motions_of([camera_view(image, x=0.005 * k / 24) for k in range(73)], 24)
    assert mean(motions, "pan") == pytest.approx(0.005, rel=0.35)


def test_noise_flicker_and_fades_are_no_motion() -> None:
    rng = np.random.default_rng(0)
    still = blots(0)[100:172, 100:228].astype(float)
    for sigma in (1, 2, 4):
        noisy = [np.clip(still + rng.normal(0, sigma, still.shape), 0, 255).astype(np.uint8) for _ in range(20)]
        # A tenth of a pixel in 0.1 s.
        assert mean(motions_of(noisy, 10), "speed") < 0.1 / 128 / 0.1
    for changed in (
        [still * (1 - 0.03 * k) for k in range(20)],
        [still + 20 * (k % 2) - 10 for k in range(20)],
        [128 + (still - 128) * (1 - 0.03 * k) for k in range(20)],
    ):
        motions = motions_of([np.clip(image, 0, 255).astype(np.uint8) for image in changed], 10)
        assert mean(motions, "speed") < 0.1 / 128 / 0.1


def test_flat_images_do_not_move_at_any_brightness() -> None:
    rng = np.random.default_rng(1)
    for value in (0, 60, 255):
        images = [np.clip(rng.normal(value, 1.5, (72, 128)), 0, 255).astype(np.uint8) for _ in range(5)]
        for motion in motions_of(images, 5):
            # A quarter of a pixel in 0.2 s, and no camera motion.
            assert motion.speed < 0.01
            assert motion.pan == motion.tilt == motion.zoom == 0


def test_meter_depends_on_the_last_frame_only() -> None:
    """Motions from an anchor on are the same whatever was measured before, bit for bit."""
    images = half_size_luma(sliding(20, 3.0))
    first, second = MotionMeter(Fraction(1, 5)), MotionMeter(Fraction(1, 5))
    whole = [first.push(k, image) for k, image in enumerate(images)]
    rest = [second.push(k, image) for k, image in list(enumerate(images))[10:]]
    assert whole[11:] == rest[1:]
    assert whole == [MotionMeter(Fraction(1, 5)).push(k, image) for k, image in enumerate(images)][:1] + whole[1:]


def grid_centres() -> tuple[Float32Array, Float32Array]:
    """Return x and y `[9, 16]` of the points that the displacements of 16 x 9 blocks belong to."""
    centres = _block_centres(9, 16).centre_K.reshape(9, 16)
    return centres.real, centres.imag


def fit(dx: Float64Array, dy: Float64Array) -> tuple[float, float, float, float]:
    """Fit the camera motion to displacements of blocks that are all known equally well."""
    known = np.ones((9, 16), np.bool_)
    return fit_camera_motion(BlockFlow(dx.astype(np.float32), dy.astype(np.float32), known.astype(np.float32), known))


@settings(max_examples=40)
@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.integers(0, 2**32 - 1))
def test_fit_is_exact_and_ignores_a_quarter_of_outliers(
    x: float, y: float, growth: float, rotation: float, seed: int
) -> None:
    at_x, at_y = grid_centres()
    dx, dy = x + growth * at_x - rotation * at_y, y + rotation * at_x + growth * at_y
    assert fit(dx, dy) == pytest.approx((x, y, growth, rotation), abs=1e-3)
    outliers = np.random.default_rng(seed).permutation(144).reshape(9, 16) < 36
    assert fit(dx + 6 * outliers, dy) == pytest.approx((x, y, growth, rotation), abs=0.15)


def test_fit_without_outliers_is_least_squares() -> None:
    rng = np.random.default_rng(3)
    at_x, at_y = (values.ravel() for values in grid_centres())
    dx, dy = 1 + rng.normal(0, 0.02, 144), rng.normal(0, 0.02, 144)
    ones, zeros = np.ones(144), np.zeros(144)
    design = np.concatenate([np.stack([ones, zeros, at_x, -at_y], 1), np.stack([zeros, ones, at_y, at_x], 1)])
    expected = np.linalg.lstsq(design, np.concatenate([dx, dy]), rcond=None)[0]
    assert fit(dx.reshape(9, 16), dy.reshape(9, 16)) == pytest.approx(tuple(expected), abs=2e-4)


@pytest.mark.parametrize("size", [(32, 288), (288, 32), (96, 96), (72, 128)])
def test_images_of_any_aspect(size: tuple[int, int]) -> None:
    large = blots(4)
    before, after = large[100 : 100 + size[0], 100 : 100 + size[1]], large[100 : 100 + size[0], 103 : 103 + size[1]]
    flow = block_flow(before, after)
    assert flow.dx_IJ.shape == (size[0] // 8, size[1] // 8)
    assert fit_camera_motion(flow)[0] == pytest.approx(-3, abs=0.6)


@pytest.fixture
def opencv_threads() -> Iterator[None]:
    """Restore OpenCV's number of threads after a test that changes it."""
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


@pytest.mark.usefixtures("opencv_threads")
def test_threads_of_opencv_change_nothing() -> None:
    image = blots(5)
    before, after = camera_view(image), camera_view(image, x=0.02, zoom=1.02)

    def flow(threads: int) -> BlockFlow:
        cv2.setNumThreads(threads)
        return block_flow(before, after)

    one, two = flow(1), flow(2)
    for name in ("dx_IJ", "dy_IJ", "weight_IJ"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def farneback(before: UInt8Array, after: UInt8Array) -> float:
    """Return the mean length of Farneback's optical flow, in pixels."""
    flow: Float32Array = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["carphone_pristine.mp4", "short_1s_340x256.mp4", "nasa_320x180.mp4", "mpeg4_320x240.avi"]
)
def test_footage_ranks_as_by_another_optical_flow(video_folder: Path, name: str) -> None:
    """Farneback's flow is smooth and reaches into flat parts: it reads up to twice as high, and rises and falls with
    ours."""
    images = [image for _, image in read_frames(str(video_folder / name), 128, 72, "gray8")][:200]
    pairs = list(zip(images[::3], images[3::3], strict=False))
    motions = [motions_of(pair, 5) for pair in pairs]
    ours = [motion[0].speed * 25.6 if motion else 0.0 for motion in motions]
    theirs = [farneback(before, after) for before, after in pairs]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.85
    assert 0.2 < (np.mean(ours) + 0.02) / (np.mean(theirs) + 0.02) < 1.3
