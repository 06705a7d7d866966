from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from videos import sliding

from pipelines.video.phash import _averaged, hamming, phash


def naive_phash(picture: np.ndarray) -> int:
    """The definition, written as loops: average to 32 x 32, DCT-II, signs against the median of the 8 x 8 lowest frequencies."""
    n = 32
    height, width = picture.shape
    small = picture.astype(float).reshape(n, height // n, n, width // n).mean(axis=(1, 3))
    table = []
    for r in range(8):
        for c in range(8):
            total = 0.0
            for y in range(n):
                for x in range(n):
                    total += small[y, x] * math.cos(math.pi * r * (2 * y + 1) / (2 * n)) * math.cos(math.pi * c * (2 * x + 1) / (2 * n))
            value = total * (math.sqrt(1 / n) if r == 0 else math.sqrt(2 / n)) * (math.sqrt(1 / n) if c == 0 else math.sqrt(2 / n))
            table.append(0.0 if abs(value) < 2.0 else value)
    median = sorted(table)[31] / 2 + sorted(table)[32] / 2
    return sum(1 << i for i, value in enumerate(table) if value > median)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_hash_of_the_definition(seed: int) -> None:
    picture = sliding(1, 0, width=128, height=64, seed=seed)[0, ..., 0]
    assert phash(picture) == naive_phash(picture)


@given(arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70))))
@settings(deadline=None, max_examples=50)
def test_cells_are_exact_means_of_intervals(picture: np.ndarray) -> None:
    """However small the picture is: each of 32 equal intervals is averaged, parts of pixels by their share."""
    rows, columns = (area_weights(n, 32) for n in picture.shape)
    assert _averaged(picture) == pytest.approx(rows @ picture.astype(float) @ columns.T, abs=1e-2)


def area_weights(n_in: int, n_out: int) -> np.ndarray:
    """`[n_out, n_in]` matrix that averages n_in samples into n_out equal intervals."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    cells = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.maximum(overlap, 0) * (n_out / n_in)


def test_scaling_and_noise_change_few_bits_and_another_picture_many() -> None:
    picture = sliding(1, 0, seed=1)[0, ..., 0]
    small = np.asarray(Image.fromarray(picture).resize((100, 70), Image.Resampling.BOX))
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 12, picture.shape), 0, 255)
    darker = picture * 0.8
    other = sliding(1, 0, seed=2)[0, ..., 0]
    assert max(hamming(phash(picture), phash(copy)) for copy in (small, noisy, darker)) <= 4
    assert hamming(phash(picture), phash(other)) >= 16


@pytest.mark.parametrize("level", [0, 17, 255])
def test_flat_pictures_hash_alike_whatever_the_noise(level: int) -> None:
    flat = np.full((36, 64), level, np.float32)
    noisy = np.clip(flat + np.random.default_rng(1).normal(0, 1, flat.shape), 0, 255)
    # Clipped noise lifts the mean of black, which is the lowest bit.
    assert hamming(phash(flat), phash(noisy.astype(np.float32))) <= (level == 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_is_a_metric(a: int, b: int, c: int) -> None:
    assert hamming(a, b) == hamming(b, a) == sum((a >> i & 1) != (b >> i & 1) for i in range(64))
    assert (hamming(a, b) == 0) == (a == b)
    assert hamming(a, c) <= hamming(a, b) + hamming(b, c)
