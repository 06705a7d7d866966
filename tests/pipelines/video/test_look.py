from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster.arrays import Pixels
from pipelines.video.detailed_sample import GRID, Look, blockiness, colourfulness, noise_sigma, take_look
from tests.pipelines.video.test_motion import texture

GREY = np.full((72, 128), 128, np.uint8)


def look(luma: Pixels, native: np.ndarray | None = None, cb: Pixels = GREY, cr: Pixels = GREY) -> Look:
    return take_look(0, luma, cb, cr, native, True)


def jpeg(picture: Pixels, quality: int) -> Pixels:
    return np.asarray(
        cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE),
        np.uint8,
    )


def test_luma_contrast_and_clipping_of_known_pictures() -> None:
    half = np.zeros((144, 256), np.uint8)
    half[:, 128:] = 255
    seen = look(half)
    assert (seen.luma, seen.contrast, seen.clipped_black, seen.clipped_white) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 144, axis=0)
    seen = look(ramp)
    assert (seen.clipped_black, seen.clipped_white) == pytest.approx((3 / 256, 3 / 256))
    assert (seen.sharpness, seen.colourfulness, seen.noise, seen.blockiness) == (
        pytest.approx(0, abs=1e-9),
        pytest.approx(0, abs=1e-4),
        None,
        None,
    )


def hasler(rgb: np.ndarray) -> float:
    """Colourfulness as its authors give it, of `[H, W, 3]` RGB."""
    r, g, b = rgb.reshape(-1, 3).astype(float).T
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


@settings(max_examples=30)
@given(arrays(np.uint8, (18, 32, 3), elements=st.integers(20, 235)))
def test_colourfulness_is_that_of_its_authors(rgb: np.ndarray) -> None:
    ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    # OpenCV's YCrCb is BT.601 of full range, as in JPEG.
    assert colourfulness(np.ascontiguousarray(ycc[..., 2]), np.ascontiguousarray(ycc[..., 1])) == pytest.approx(
        hasler(rgb), rel=0.02, abs=1.0
    )


def tiles(picture: np.ndarray) -> np.ndarray:
    """All tiles of 32 x 32 of a picture, stacked."""
    rows, columns = picture.shape[0] // 32, picture.shape[1] // 32
    return np.ascontiguousarray(picture.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32))


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4, 8])
def test_noise_is_measured_in_levels_in_flat_and_in_textured_pictures(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (
        np.full((256, 256), 90.0),
        texture(0)[:256, :256].astype(float),
        np.tile(np.arange(256.0), (256, 1)) * 0.7 + 30,
    ):
        noisy = np.clip(np.rint(clean + rng.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)
        # Rounding to whole levels is noise too: 0.29 levels.
        assert noise_sigma(tiles(noisy)) == pytest.approx(np.hypot(sigma, 0.29), rel=0.15, abs=0.1)


def test_texture_is_no_noise_where_there_is_something_flat() -> None:
    rng = np.random.default_rng(1)
    picture = np.full((256, 256), 120.0)
    picture[:, 96:] = rng.choice([40, 200], (256, 160))
    noisy = np.clip(np.rint(picture + rng.normal(0, 1.5, picture.shape)), 0, 255).astype(np.uint8)
    assert noise_sigma(tiles(noisy)) == pytest.approx(1.5, rel=0.15)


def test_clipped_black_hides_no_noise() -> None:
    rng = np.random.default_rng(2)
    picture = np.where(np.arange(256)[None] < 128, -40.0, 120.0) + rng.normal(0, 2, (256, 256))
    assert noise_sigma(tiles(np.clip(np.rint(picture), 0, 255).astype(np.uint8))) == pytest.approx(2, rel=0.15)
    assert noise_sigma(np.zeros((320, 32), np.uint8)) == 0.0


def naive_blockiness(picture: np.ndarray) -> float:
    """Steps on the grid over steps in the middle of blocks, as loops, of a picture of whole tiles."""
    on, off = [], []
    for lines in (tiles(picture), tiles(picture.T)):
        for line in lines.astype(int):
            for i in range(31):
                step = min(abs(line[i + 1] - line[i]), 16)
                if i % GRID == 7:
                    on.append(step)
                elif 1 <= i % GRID <= 5:
                    off.append(step)
    return float((np.mean(on) + 0.05) / (np.mean(off) + 0.05))


@pytest.mark.parametrize("quality", [5, 20, 95])
def test_blockiness_is_that_of_the_definition(quality: int) -> None:
    picture = jpeg(texture(3)[:128, :128], quality)
    # The tiles of the transpose are other tiles, but the same lines.
    assert blockiness(tiles(picture)) == pytest.approx(naive_blockiness(picture), rel=1e-3)


def test_blockiness_rises_with_compression_and_is_one_without() -> None:
    picture = texture(4)[:512, :512]
    values = [blockiness(tiles(jpeg(picture, quality))) for quality in (95, 50, 20, 8)]
    assert blockiness(tiles(picture)) == pytest.approx(1, abs=0.05)
    assert values == sorted(values)
    assert values[0] < 1.15
    assert values[-1] > 2
    # Off the grid they are not seen; a flat picture has none.
    assert blockiness(tiles(jpeg(texture(4)[:516, :516], 8)[4:, 4:])) < 1.1
    assert blockiness(np.full((320, 32), 80, np.uint8)) == 1.0


def test_ten_bits_strides_and_sizes_measure_alike() -> None:
    rng = np.random.default_rng(5)
    native = np.clip(texture(5) + rng.normal(0, 3, (720, 1280)), 16, 235).astype(np.uint8)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    eight = look(luma, native)
    ten = look(luma, native.astype(np.uint16) * 4)
    padded = np.zeros((720, 1344), np.uint8)
    padded[:, :1280] = native
    assert look(luma, padded[:, :1280]) == eight
    assert eight.noise is not None
    assert eight.blockiness is not None
    assert eight.noise == pytest.approx(3, rel=0.1)
    assert (ten.noise, ten.blockiness) == pytest.approx((eight.noise, eight.blockiness), rel=0.01)
    tiny = look(luma, native[:20, :400])
    assert (tiny.noise, tiny.blockiness) == (None, None)
    assert look(luma, native[:33, :40]).noise is not None


def test_a_look_is_deterministic() -> None:
    native = texture(9)
    luma = cv2.resize(native, (256, 144), interpolation=cv2.INTER_AREA)
    assert look(luma, native) == look(luma.copy(), native.copy())
