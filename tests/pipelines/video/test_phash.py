"""Perceptual hashes: the definition as loops, mirroring, boxes, robustness to edits, and images without information."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cluster.arrays import Float64Array, UInt8Array, UInt64Array
from pipelines.video.phash import FREQUENCIES, MIN_COEFFICIENT, hamming, is_informative, mirrored, phash, phashes
from tests.support.videos import sliding

N = 32


def area_weights(n: int) -> Float64Array:
    """Return the `[32, n]` matrix that averages n samples into 32 equal intervals."""
    edges = np.arange(N + 1) * (n / N)
    samples = np.arange(n)
    overlap = np.minimum(edges[1:, None], samples + 1) - np.maximum(edges[:-1, None], samples)
    return np.maximum(overlap, 0) * (N / n)


def naive_coefficients(image: UInt8Array) -> list[float]:
    """Return the definition, as loops: average to 32 x 32, orthonormal DCT-II, the 64 lowest frequencies but the
    mean."""
    height, width = image.shape
    small = area_weights(height) @ image.astype(float) @ area_weights(width).T
    found = []
    for r, c in FREQUENCIES:
        down = [math.cos(math.pi * r * (2 * y + 1) / (2 * N)) for y in range(N)]
        across = [math.cos(math.pi * c * (2 * x + 1) / (2 * N)) for x in range(N)]
        total = sum(small[y, x] * down[y] * across[x] for y in range(N) for x in range(N))
        row_scale, column_scale = (math.sqrt((1 if frequency == 0 else 2) / N) for frequency in (r, c))
        found.append(total * row_scale * column_scale)
    return found


def patches(seed: int, height: int = 72, width: int = 128) -> UInt8Array:
    """Draw soft patches of random grey: mostly low frequencies, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 12)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(64, 128), (36, 64), (18, 32), (50, 37)])
def test_bits_are_the_signs_of_the_definition(size: tuple[int, int]) -> None:
    image = patches(1, *size)
    bits = phash(image)
    for i, value in enumerate(naive_coefficients(image)):
        if abs(value - MIN_COEFFICIENT) > 1e-3:
            assert bool(bits >> i & 1) == (value > MIN_COEFFICIENT), (i, value)


def test_bits_go_from_low_frequencies_to_high() -> None:
    assert len(set(FREQUENCIES)) == 64
    assert (0, 0) not in FREQUENCIES
    radii = [r * r + c * c for r, c in FREQUENCIES]
    assert radii == sorted(radii)
    y, x = np.mgrid[0:64, 0:64] + 0.5
    for i, (r, c) in enumerate(FREQUENCIES):
        wave = 128 + 40 * np.cos(np.pi * r * y / 64) * np.cos(np.pi * c * x / 64)
        assert phash(wave.astype(np.float32)) == 1 << i


def test_batch_hashes_as_each_image_alone() -> None:
    images = np.stack([patches(seed, 36, 64) for seed in range(9)])
    batch = phashes(images)
    assert batch.dtype == np.uint64
    assert batch.tolist() == [phash(image) for image in images]
    assert phashes(images[:0]).shape == (0,)


@pytest.mark.slow
@given(arrays(np.uint8, (18, 32)))
@settings(max_examples=50)
def test_mirrored_image_has_the_mirrored_hash(image: UInt8Array) -> None:
    """This holds for every bit whose coefficient is not close to 0."""
    coefficients = naive_coefficients(image)
    clear = sum(1 << i for i, value in enumerate(coefficients) if abs(value) > MIN_COEFFICIENT + 1e-3)
    (expected,) = mirrored(phashes(image[None])).tolist()
    assert expected & clear == phash(image[:, ::-1]) & clear


@pytest.mark.slow
@given(arrays(np.uint64, st.integers(0, 5)))
def test_mirroring_twice_changes_nothing(hashes: UInt64Array) -> None:
    assert np.array_equal(mirrored(mirrored(hashes)), hashes)


@pytest.mark.slow
@given(
    image=arrays(np.uint8, st.tuples(st.integers(4, 40), st.integers(4, 40))),
    gain=st.floats(1.5, 4.0),
    offset=st.floats(-100, 100),
)
@settings(max_examples=50)
def test_brightness_and_contrast_change_only_nearly_flat_bits(image: UInt8Array, gain: float, offset: float) -> None:
    """Without clipping, a set bit stays set, and a bit that becomes set belonged to a coefficient under the bound."""
    values = np.array(naive_coefficients(image))
    # Sums in single precision are exact to about a thousandth.
    clear = sum(
        1 << i for i, value in enumerate(values) if not MIN_COEFFICIENT / gain - 0.01 < value < MIN_COEFFICIENT + 0.01
    )
    changed = image.astype(np.float32) * np.float32(gain) + np.float32(offset)
    assert (phash(image) ^ phash(changed)) & clear == 0


def test_box_is_hashed_like_an_image() -> None:
    inner = patches(3, 24, 44)
    framed = np.pad(inner, ((6, 6), (10, 10)))
    assert phashes(framed[None], (10.0, 6.0, 54.0, 30.0)).tolist() == [phash(inner)]


@pytest.mark.slow
@pytest.mark.parametrize("bars", [4.3, 5.5, 6.9])
def test_lines_that_are_part_bar_do_not_count(bars: float) -> None:
    """A letterbox ends inside a line of the small image; the rest of that line is taken from the next one."""
    images = [patches(seed, 288, 512) for seed in range(20)]
    top, bottom = round(bars * 8), 288 - round(bars * 8)
    bits = []
    for image in images:
        inner = np.asarray(Image.fromarray(image).resize((512, bottom - top), Image.Resampling.BOX))
        framed = np.pad(inner, ((top, 288 - bottom), (0, 0)))
        small = framed.reshape(36, 8, 64, 8).mean(axis=(1, 3))
        bits.append(hamming(int(phashes(small[None], (0.0, top / 8, 64.0, bottom / 8))[0]), phash(image)))
    assert np.mean(bits) <= 3


@pytest.mark.slow
def test_edits_change_few_bits_and_another_image_half() -> None:
    images = [patches(seed, 144, 256) for seed in range(30)]
    rng = np.random.default_rng(0)
    edits = {
        "small": [np.asarray(Image.fromarray(p).resize((100, 70), Image.Resampling.BOX)) for p in images],
        "noisy": [np.clip(p + rng.normal(0, 12, p.shape), 0, 255) for p in images],
        "darker": [p * 0.7 for p in images],
        "gamma": [255 * (p / 255) ** 1.3 for p in images],
    }
    for name, copies in edits.items():
        bits = [hamming(phash(p), phash(np.asarray(copy, np.float32))) for p, copy in zip(images, copies, strict=True)]
        assert np.mean(bits) <= 3, name
    different = [hamming(phash(a), phash(b)) for i, a in enumerate(images) for b in images[:i]]
    assert np.mean(different) == pytest.approx(32, abs=1)
    assert min(different) >= 14


@pytest.mark.parametrize("value", [0, 17, 128, 255])
def test_flat_images_are_not_informative_whatever_the_noise(value: int) -> None:
    flat = np.full((36, 64), value, np.float32)
    rng = np.random.default_rng(1)
    # At 480 lines, where 170 pixels are averaged to one of 64 x 36, this is noise of 6 in 8-bit values.
    noisy = np.stack([np.clip(flat + rng.normal(0, 0.5, flat.shape), 0, 255) for _ in range(20)])
    assert phash(flat) == 0
    assert not is_informative(phashes(noisy)).any()


def test_slopes_and_vignettes_are_not_informative() -> None:
    y, x = np.mgrid[-1:1:36j, -1:1:64j]
    slopes = [128 + 100 * x, 128 - 90 * y, 128 + 60 * x - 60 * y, 200 - 80 * (x * x + y * y)]
    assert not is_informative(phashes(np.stack(slopes).astype(np.float32))).any()
    assert is_informative(phashes(np.stack([patches(seed, 36, 64) for seed in range(30)]))).all()
    assert is_informative(phashes(sliding(3, 20.0)[..., 0])).all()


def test_hash_of_a_known_image() -> None:
    """These hashes are stored: another definition needs another version of the scan step."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16)).astype(np.uint8)
    assert hex(phash(coarse.repeat(4, axis=0).repeat(4, axis=1))) == "0x445da541835db4b8"


@pytest.mark.slow
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_is_a_metric(a: int, b: int, c: int) -> None:
    assert hamming(a, b) == hamming(b, a) == sum((a >> i & 1) != (b >> i & 1) for i in range(64))
    assert (hamming(a, b) == 0) == (a == b)
    assert hamming(a, c) <= hamming(a, b) + hamming(b, c)
