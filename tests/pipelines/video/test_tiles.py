"""Noise and blockiness on tiles: against known noise, the definition as loops, and compressed images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cluster.arrays import Float64Array, UInt8Array
from pipelines.video.tiles import GRID_PX, measure_tiles, sum_tiles
from tests.support.images import blots


def compressed(image: UInt8Array, quality: int) -> UInt8Array:
    """Return a grey image after JPEG compression."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def tiles(image: UInt8Array) -> UInt8Array:
    """Return all tiles of 32 x 32 of an image, stacked."""
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    return np.ascontiguousarray(image.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32))


def noise_sigma(stacked: UInt8Array) -> float:
    return sum_tiles(stacked, np.zeros((len(stacked) // 32, 4))).noise_sigma()


def blockiness(stacked: UInt8Array) -> float:
    return sum_tiles(stacked, np.zeros((len(stacked) // 32, 4))).blockiness()


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


def test_tiles_outside_a_box_are_left_out() -> None:
    """Half of the frame is noisy: its tiles alone have its noise, and a box without a tile has those of the frame."""
    native = np.full((512, 512), 128.0)
    native[:, 256:] += np.random.default_rng(6).normal(0, 6, (512, 256))
    tiles_of_frame = measure_tiles(rounded(native))
    assert tiles_of_frame is not None
    assert tiles_of_frame.inside((0.5, 0.0, 1.0, 1.0)).noise_sigma() == pytest.approx(6, rel=0.1)
    assert tiles_of_frame.inside((0.0, 0.0, 0.5, 1.0)).noise_sigma() == 0.0
    assert tiles_of_frame.inside((0.4, 0.4, 0.41, 0.41)).noise_sigma() == tiles_of_frame.noise_sigma()
