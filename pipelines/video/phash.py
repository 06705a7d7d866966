"""Perceptual hashes of pictures: 64 bits that survive scaling and compression."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipelines.video.luma import area_weights

SIDE = 32
LOW = 8
"""The picture is averaged to 32 x 32, and the 8 x 8 lowest frequencies of its cosine transform give a bit each: pHash of
Zauner, 'Implementation and Benchmarking of Perceptual Image Hash Functions', 2010."""

NOISE = 2.0
"""Coefficients below this (levels of 255, orthonormal transform) count as 0, so that flat pictures hash alike and not by noise."""


@cache
def cosine_basis(n: int, low: int) -> NDArray[np.float64]:
    """`[low, n]` lowest rows of the orthonormal DCT-II of length n."""
    k, i = np.arange(low)[:, None], np.arange(n)[None, :]
    basis = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, np.float64)


@cache
def _transform(n: int) -> NDArray[np.float64]:
    """Averaging to 32 samples and the transform in one `[8, n]` matrix."""
    return np.asarray(cosine_basis(SIDE, LOW) @ area_weights(n, SIDE).astype(np.float64))


def phash(luma_HW: NDArray[np.uint8] | NDArray[np.float32]) -> int:
    """Hash of a luma picture in levels of 0 to 255, as an unsigned 64-bit integer.

    Bit 8 r + c (from the lowest) is set where the coefficient of row frequency r and column frequency c is above the median of all 64.
    """
    height, width = luma_HW.shape
    coefficients = _transform(height) @ luma_HW.astype(np.float64) @ _transform(width).T
    coefficients[np.abs(coefficients) < NOISE] = 0.0
    bits = (coefficients > np.median(coefficients)).ravel()
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def hamming(a: int, b: int) -> int:
    """Number of bits in which two hashes differ, 0 to 64; about 32 for unrelated pictures."""
    return (a ^ b).bit_count()
