"""Statistics of detailed samples against their definitions, their authors' formulas, and images of known properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cluster.arrays import Pixels, UInt8Array
from pipelines.video.boxes import box_shares
from pipelines.video.detailed_sample import (
    DetailedSample,
    PlaneValues,
    SampleValues,
    StoredPlanes,
    colourfulness,
    sharpness,
    take_detailed_sample,
)
from pipelines.video.scale import YuvPlanes
from pipelines.video.tiles import NativeArray
from tests.support.images import blots

GREY = np.full((72, 128), 128, np.uint8)


def taken(luma: UInt8Array, native: NativeArray | None = None) -> DetailedSample:
    return take_detailed_sample(0, YuvPlanes(luma, GREY, GREY), native, True)


def sample(luma: UInt8Array, native: NativeArray | None = None) -> SampleValues:
    return taken(luma, native).inside()


def test_luma_contrast_and_clipping_of_known_images() -> None:
    half = np.zeros((144, 256), np.uint8)
    half[:, 128:] = 255
    seen = sample(half)
    assert (seen.luma, seen.contrast, seen.clipped_black, seen.clipped_white) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 144, axis=0)
    seen = sample(ramp)
    assert (seen.clipped_black, seen.clipped_white) == pytest.approx((3 / 256, 3 / 256))
    assert seen.sharpness == pytest.approx(0, abs=1e-9)
    assert seen.colourfulness == pytest.approx(0, abs=1e-4)
    assert (seen.noise, seen.blockiness) == (None, None)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    image = np.random.default_rng(2).integers(0, 256, (6, 7)).astype(np.uint8)
    luma = image / 255
    values = [
        luma[i - 1, j] + luma[i + 1, j] + luma[i, j - 1] + luma[i, j + 1] - 4 * luma[i, j]
        for i in range(1, 5)
        for j in range(1, 6)
    ]
    assert sharpness(image) == pytest.approx(np.var(values), rel=1e-5)


def test_blur_lowers_sharpness_and_a_gradient_has_none() -> None:
    crisp = (np.indices((64, 64)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)
    assert sharpness(crisp) > 10 * sharpness(cv2.blur(crisp, (5, 5))) > 0
    assert sharpness(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)) < 1e-9
    assert sharpness(np.ones((2, 50), np.uint8)) == 0.0


def hasler(rgb: Pixels) -> float:
    """Return colourfulness by the formula of its authors, of `[H, W, 3]` RGB."""
    r, g, b = rgb.reshape(-1, 3).astype(float).T
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


@pytest.mark.slow
@settings(max_examples=30)
@given(arrays(np.uint8, (18, 32, 3), elements=st.integers(20, 235)))
def test_colourfulness_is_that_of_its_authors(rgb: Pixels) -> None:
    # OpenCV's YCrCb is BT.601 of full range, as in JPEG.
    ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    cb, cr = np.ascontiguousarray(ycc[..., 2]), np.ascontiguousarray(ycc[..., 1])
    assert colourfulness(cb, cr) == pytest.approx(hasler(rgb), rel=0.02, abs=1.0)


def test_ten_bits_strides_and_sizes_measure_alike() -> None:
    rng = np.random.default_rng(5)
    native = np.clip(blots(5) + rng.normal(0, 3, (720, 1280)), 16, 235).astype(np.uint8)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    eight_bits = sample(luma, native)
    ten_bit_native: NDArray[np.uint16] = native.astype(np.uint16) * 4
    ten_bits = sample(luma, ten_bit_native)
    padded = np.zeros((720, 1344), np.uint8)
    padded[:, :1280] = native
    assert sample(luma, padded[:, :1280]) == eight_bits
    assert eight_bits.noise is not None
    assert eight_bits.blockiness is not None
    assert eight_bits.noise == pytest.approx(3, rel=0.1)
    assert (ten_bits.noise, ten_bits.blockiness) == pytest.approx((eight_bits.noise, eight_bits.blockiness), rel=0.01)
    tiny = sample(luma, native[:20, :400])
    assert (tiny.noise, tiny.blockiness) == (None, None)
    assert sample(luma, native[:33, :40]).noise is not None


def test_samples_are_deterministic() -> None:
    native = blots(9)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    assert sample(luma, native) == sample(luma.copy(), native.copy())


@pytest.mark.parametrize("crop", [(0, 18, 256, 126), (56, 0, 200, 144), (32, 16, 224, 128)])
def test_content_measures_like_the_image_without_bars(crop: tuple[int, int, int, int]) -> None:
    """Bars of letterbox, pillarbox and both change no value of the image inside, in any orientation of the source."""
    x0, y0, x1, y1 = crop
    rng = np.random.default_rng(4)
    native = np.full((720, 1280), 16, np.uint8)
    inside = np.s_[5 * y0 : 5 * y1, 5 * x0 : 5 * x1]
    native[inside] = np.clip(blots(7)[inside] + rng.normal(0, 3, native[inside].shape), 20, 235)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    seen = taken(luma, native)
    share = box_shares(crop, 256, 144)
    values, alone = seen.inside(share, share), sample(np.ascontiguousarray(luma[y0:y1, x0:x1]))
    for name in ("luma", "contrast", "clipped_black", "clipped_white", "sharpness"):
        assert getattr(values, name) == pytest.approx(getattr(alone, name), rel=1e-6), name
    assert values.noise == pytest.approx(3, rel=0.15)
    assert values.blockiness == pytest.approx(1, abs=0.05)
    assert seen.inside().luma < 0.95 * values.luma


def test_planes_are_stored_without_loss() -> None:
    rng = np.random.default_rng(3)
    planes = YuvPlanes(*(rng.integers(0, 256, shape, np.uint8) for shape in ((144, 256), (72, 128), (72, 128))))
    for before, after in zip(planes, StoredPlanes.store(planes).load(), strict=True):
        assert np.array_equal(before, after)


def test_image_without_plain_borders_keeps_no_planes() -> None:
    assert isinstance(taken(blots(2)[:144, :256]).image, PlaneValues)
    assert isinstance(taken(np.zeros((144, 256), np.uint8)).image, StoredPlanes)
