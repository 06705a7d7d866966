"""Statistics of detailed samples against their definitions, their authors' formulas, and images of known properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cluster.arrays import Float64Array, Pixels, UInt8Array
from pipelines.video.detailed_sample import (
    GRID_PX,
    DetailedSample,
    NativeArray,
    blockiness,
    colourfulness,
    noise_sigma,
    sharpness,
    take_detailed_sample,
)
from pipelines.video.scale import YuvPlanes
from tests.support.images import blots

GREY = np.full((72, 128), 128, np.uint8)


def sample(luma: UInt8Array, native: NativeArray | None = None) -> DetailedSample:
    return take_detailed_sample(0, YuvPlanes(luma, GREY, GREY), native, True)


def compressed(image: UInt8Array, quality: int) -> UInt8Array:
    """Return a grey image after JPEG compression."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


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


def tiles(image: UInt8Array) -> UInt8Array:
    """Return all tiles of 32 x 32 of an image, stacked."""
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    return np.ascontiguousarray(image.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32))


def rounded(image: Float64Array) -> UInt8Array:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4, 8])
def test_noise_of_known_sigma_in_flat_and_textured_images(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (
        np.full((256, 256), 90.0),
        blots(0)[:256, :256].astype(float),
        np.tile(np.arange(256.0), (256, 1)) * 0.7 + 30,
    ):
        noisy = rounded(clean + rng.normal(0, sigma, clean.shape))
        # Rounding to whole values is noise too, of 0.29.
        assert noise_sigma(tiles(noisy)) == pytest.approx(np.hypot(sigma, 0.29), rel=0.15, abs=0.1)


def test_texture_is_no_noise_beside_something_flat() -> None:
    rng = np.random.default_rng(1)
    image = np.full((256, 256), 120.0)
    image[:, 96:] = rng.choice([40, 200], (256, 160))
    assert noise_sigma(tiles(rounded(image + rng.normal(0, 1.5, image.shape)))) == pytest.approx(1.5, rel=0.15)


def test_clipped_black_hides_no_noise() -> None:
    rng = np.random.default_rng(2)
    image = np.where(np.arange(256)[None] < 128, -40.0, 120.0) + rng.normal(0, 2, (256, 256))
    assert noise_sigma(tiles(rounded(image))) == pytest.approx(2, rel=0.15)
    assert noise_sigma(np.zeros((320, 32), np.uint8)) == 0.0


def naive_blockiness(image: UInt8Array) -> float:
    """Return the steps on the grid over those in the middle of blocks, as loops, of an image of whole tiles."""
    on, off = [], []
    for lines in (tiles(image), tiles(image.T)):
        for line in lines.astype(int):
            for i in range(31):
                step = min(abs(line[i + 1] - line[i]), 16)
                if i % GRID_PX == 7:
                    on.append(step)
                elif 1 <= i % GRID_PX <= 5:
                    off.append(step)
    return float((np.mean(on) + 0.05) / (np.mean(off) + 0.05))


@pytest.mark.parametrize("quality", [5, 20, 95])
def test_blockiness_is_that_of_the_definition(quality: int) -> None:
    image = compressed(blots(3)[:128, :128], quality)
    # The tiles of the transpose are other tiles, but the same lines.
    assert blockiness(tiles(image)) == pytest.approx(naive_blockiness(image), rel=1e-3)


def test_blockiness_rises_with_compression_and_is_one_without() -> None:
    image = blots(4)[:512, :512]
    values = [blockiness(tiles(compressed(image, quality))) for quality in (95, 50, 20, 8)]
    assert blockiness(tiles(image)) == pytest.approx(1, abs=0.05)
    assert values == sorted(values)
    assert values[0] < 1.15
    assert values[-1] > 2
    # Off the grid blocks are not seen; a flat image has none.
    assert blockiness(tiles(compressed(blots(4)[:516, :516], 8)[4:, 4:])) < 1.1
    assert blockiness(np.full((320, 32), 80, np.uint8)) == 1.0


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
