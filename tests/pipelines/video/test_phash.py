from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipelines.video.phash import FREQUENCIES, NOISE, hamming, is_informative, mirrored, phash, phashes
from tests.support.videos import sliding

N = 32


def area_weights(n: int, start: float, end: float) -> np.ndarray:
    """`[32, n]` matrix that averages the samples from `start` to `end` into 32 equal intervals."""
    edges = start + np.arange(N + 1) * ((end - start) / N)
    cells = np.arange(n)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.maximum(overlap, 0) * (N / (end - start))


def naive_coefficients(picture: np.ndarray) -> list[float]:
    """The definition, written as loops: average to 32 x 32, orthonormal DCT-II, the 64 lowest frequencies but the mean."""
    height, width = picture.shape
    small = area_weights(height, 0, height) @ picture.astype(float) @ area_weights(width, 0, width).T
    found = []
    for r, c in FREQUENCIES:
        down = [math.cos(math.pi * r * (2 * y + 1) / (2 * N)) for y in range(N)]
        across = [math.cos(math.pi * c * (2 * x + 1) / (2 * N)) for x in range(N)]
        total = sum(small[y, x] * down[y] * across[x] for y in range(N) for x in range(N))
        found.append(
            total
            * (math.sqrt(1 / N) if r == 0 else math.sqrt(2 / N))
            * (math.sqrt(1 / N) if c == 0 else math.sqrt(2 / N))
        )
    return found


def texture(seed: int, height: int = 72, width: int = 128) -> np.ndarray:
    """Soft patches of random grey, as most of a photograph is in its low frequencies."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 12)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(64, 128), (36, 64), (18, 32), (50, 37)])
def test_bits_are_the_signs_of_the_definition(size: tuple[int, int]) -> None:
    picture = texture(1, *size)
    bits = phash(picture)
    for i, value in enumerate(naive_coefficients(picture)):
        if abs(value - NOISE) > 1e-3:
            assert bool(bits >> i & 1) == (value > NOISE), (i, value)


def test_bits_go_from_low_frequencies_to_high() -> None:
    assert len(set(FREQUENCIES)) == 64
    assert (0, 0) not in FREQUENCIES
    radii = [r * r + c * c for r, c in FREQUENCIES]
    assert radii == sorted(radii)
    y, x = np.mgrid[0:64, 0:64] + 0.5
    for i, (r, c) in enumerate(FREQUENCIES):
        wave = 128 + 40 * np.cos(np.pi * r * y / 64) * np.cos(np.pi * c * x / 64)
        assert phash(wave.astype(np.float32)) == 1 << i


def test_many_pictures_at_once_hash_as_each_alone() -> None:
    pictures = np.stack([texture(seed, 36, 64) for seed in range(9)])
    together = phashes(pictures)
    assert together.dtype == np.uint64
    assert together.tolist() == [phash(picture) for picture in pictures]
    assert phashes(pictures[:0]).shape == (0,)


@given(arrays(np.uint8, (18, 32)))
@settings(max_examples=50)
def test_a_mirrored_picture_has_the_mirrored_hash(picture: np.ndarray) -> None:
    """In every bit whose coefficient is not next to 0."""
    clear = sum(1 << i for i, value in enumerate(naive_coefficients(picture)) if abs(value) > NOISE + 1e-3)
    (turned,) = mirrored(phashes(picture[None])).tolist()
    assert turned & clear == phash(picture[:, ::-1]) & clear


@given(arrays(np.uint64, st.integers(0, 5)))
def test_mirroring_twice_changes_nothing(hashes: np.ndarray) -> None:
    assert np.array_equal(mirrored(mirrored(hashes)), hashes)


@given(
    picture=arrays(np.uint8, st.tuples(st.integers(4, 40), st.integers(4, 40))),
    gain=st.floats(1.5, 4.0),
    offset=st.floats(-100, 100),
)
@settings(max_examples=50)
def test_brightness_has_no_bit_and_contrast_adds_only_what_was_nearly_flat(
    picture: np.ndarray, gain: float, offset: float
) -> None:
    """Without clipping: a bit that was set stays, and one that comes up belonged to a coefficient under the bound."""
    values = np.array(naive_coefficients(picture))
    # Sums in single precision are exact to about a thousandth.
    clear = sum(1 << i for i, value in enumerate(values) if not NOISE / gain - 0.01 < value < NOISE + 0.01)
    assert (phash(picture) ^ phash(picture.astype(np.float32) * np.float32(gain) + np.float32(offset))) & clear == 0


def test_a_box_is_hashed_as_if_it_were_the_picture() -> None:
    inner = texture(3, 24, 44)
    framed = np.pad(inner, ((6, 6), (10, 10)))
    assert phashes(framed[None], (10.0, 6.0, 54.0, 30.0)).tolist() == [phash(inner)]


@pytest.mark.parametrize("bars", [4.3, 5.5, 6.9])
def test_lines_that_are_part_bar_do_not_count(bars: float) -> None:
    """A letterbox that ends inside a line of the small picture: what is left of that line's picture is told from the next one."""
    pictures = [texture(seed, 288, 512) for seed in range(20)]
    top, bottom = round(bars * 8), 288 - round(bars * 8)
    bits = []
    for picture in pictures:
        inner = np.asarray(Image.fromarray(picture).resize((512, bottom - top), Image.Resampling.BOX))
        framed = np.pad(inner, ((top, 288 - bottom), (0, 0)))
        small = framed.reshape(36, 8, 64, 8).mean(axis=(1, 3))
        bits.append(hamming(int(phashes(small[None], (0.0, top / 8, 64.0, bottom / 8))[0]), phash(picture)))
    assert np.mean(bits) <= 3


def test_scaling_noise_and_gamma_change_few_bits_and_another_picture_half() -> None:
    pictures = [texture(seed, 144, 256) for seed in range(30)]
    rng = np.random.default_rng(0)
    edits = {
        "small": [np.asarray(Image.fromarray(p).resize((100, 70), Image.Resampling.BOX)) for p in pictures],
        "noisy": [np.clip(p + rng.normal(0, 12, p.shape), 0, 255) for p in pictures],
        "darker": [p * 0.7 for p in pictures],
        "gamma": [255 * (p / 255) ** 1.3 for p in pictures],
    }
    for name, copies in edits.items():
        bits = [
            hamming(phash(p), phash(np.asarray(copy, np.float32))) for p, copy in zip(pictures, copies, strict=True)
        ]
        assert np.mean(bits) <= 3, name
    unlike = [hamming(phash(a), phash(b)) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert np.mean(unlike) == pytest.approx(32, abs=1)
    assert min(unlike) >= 14


@pytest.mark.parametrize("level", [0, 17, 128, 255])
def test_flat_pictures_tell_nothing_whatever_the_noise(level: int) -> None:
    flat = np.full((36, 64), level, np.float32)
    rng = np.random.default_rng(1)
    # At 480 lines, where 170 pixels go into one of 64 x 36, this is noise of 6 levels.
    noisy = np.stack([np.clip(flat + rng.normal(0, 0.5, flat.shape), 0, 255) for _ in range(20)])
    assert phash(flat) == 0
    assert not is_informative(phashes(noisy)).any()


def test_plain_slopes_and_vignettes_tell_nothing_and_textures_do() -> None:
    y, x = np.mgrid[-1:1:36j, -1:1:64j]
    slopes = np.stack([128 + 100 * x, 128 - 90 * y, 128 + 60 * x - 60 * y, 200 - 80 * (x * x + y * y)]).astype(
        np.float32
    )
    assert not is_informative(phashes(slopes)).any()
    assert is_informative(phashes(np.stack([texture(seed, 36, 64) for seed in range(30)]))).all()
    assert is_informative(phashes(sliding(3, 20.0)[..., 0])).all()


def test_the_hash_is_the_same_every_time() -> None:
    """These hashes are stored: another definition needs another version of scan."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16)).astype(np.uint8)
    assert hex(phash(coarse.repeat(4, axis=0).repeat(4, axis=1))) == "0x445da541835db4b8"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_is_a_metric(a: int, b: int, c: int) -> None:
    assert hamming(a, b) == hamming(b, a) == sum((a >> i & 1) != (b >> i & 1) for i in range(64))
    assert (hamming(a, b) == 0) == (a == b)
    assert hamming(a, c) <= hamming(a, b) + hamming(b, c)
