"""Perceptual hashes of images: 64 bits that survive scaling and compression, and can be mirrored without the image.

Zauner's pHash ('Implementation and Benchmarking of Perceptual Image Hash Functions', 2010) averages an image to 32 x 32
and compares the 8 x 8 lowest frequencies of its cosine transform with their median. Here each bit is the sign of one
coefficient, and the mean is left out. So brightness changes no bit, and contrast only those of what is almost flat.
Mirroring an image negates the coefficients of odd horizontal frequency and leaves the others, so it flips known bits: a
mirrored copy is found without its image.

How many bits re-encoding, scaling and other edits change is in docs/measures/signals.md.

Shape legend: N images, H height, W width, F frequencies in one direction, S = 32 cells in one direction.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from cluster.arrays import BoolArray, Float32Array, UInt8Array, UInt64Array

SIDE_CELLS = 32
BITS = 64

MIN_COEFFICIENT = 1.0
"""Coefficients up to this (8-bit values, orthonormal transform) give a 0 bit: a wave of 0.06 8-bit values, less than
rounding to 8 bits leaves of it. So flat images have the hash 0, and not one of noise. With 0 in its place, re-encoding
changes a fifth more bits of footage; with 4, mirroring changes two thirds more, since bits below the bound are not
flipped."""

MIN_INFORMATIVE_BITS = 17
"""Hashes with fewer bits set say nothing about an image. About half of the 64 are set: at least 19 in every frame of 14
files of real footage, but 12 to 16 in a small title in the middle of black, as in every other such title. Black has 0,
a plain slope up to 8. Of 64 random bits, fewer are set once in 20,000 times."""

MIN_INSIDE_SHARE = 0.95
"""Share of a sample that must lie inside the box for its value to count; others are part bar."""

SubpixelBox = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, which may be fractions."""


def _lowest_frequencies() -> list[tuple[int, int]]:
    """Return (row, column) frequencies from low to high, without the mean: those within a quarter circle."""
    every = [(r, c) for r in range(SIDE_CELLS) for c in range(SIDE_CELLS) if r or c]
    return sorted(every, key=lambda rc: (rc[0] ** 2 + rc[1] ** 2, max(rc), rc))[:BITS]


FREQUENCIES = _lowest_frequencies()
"""Bit i, counted from the lowest, is set if the coefficient of this row and column frequency is positive. They go from
low frequencies, whose bits are the most stable, to high. They fill a quarter circle: of the square of 8 x 8, 9% more
bits change in a letterboxed copy and 15% more in a mirrored one."""

ODD_COLUMNS = np.uint64(sum(1 << i for i, (_, column) in enumerate(FREQUENCIES) if column % 2))
"""Mask of the bits that mirroring flips."""


def phash(luma_HW: UInt8Array | Float32Array) -> int:
    """Return the hash of a luma image in 8-bit values, as an unsigned 64-bit integer."""
    return int(phashes(luma_HW[None])[0])


def phashes(luma_NHW: UInt8Array | Float32Array, box: SubpixelBox | None = None) -> UInt64Array:
    """Return the hashes `[N]` of luma images in 8-bit values, of any size and aspect, or of a box of them.

    It takes 2 us per image of 64 x 36.
    """
    _, height, width = luma_NHW.shape
    x0, y0, x1, y1 = box or (0.0, 0.0, float(width), float(height))
    down_FH, across_FW = _dct_weights(height, y0, y1), _dct_weights(width, x0, x1)
    coefficients_NFF = down_FH @ np.asarray(luma_NHW, np.float32) @ across_FW.T
    rows, columns = np.array(FREQUENCIES).T
    bits_N64 = coefficients_NFF[:, rows, columns] > MIN_COEFFICIENT
    packed_N8 = np.ascontiguousarray(np.packbits(bits_N64, axis=1, bitorder="little"))
    return packed_N8.view("<u8")[:, 0].astype(np.uint64)


def mirrored(hashes: UInt64Array) -> UInt64Array:
    """Return the hashes of the same images mirrored left to right.

    They are exact but for bits whose coefficients are close to 0. The hash 0 of flat images, which mirroring does not
    change, becomes another one: check `is_informative` first.
    """
    return hashes ^ ODD_COLUMNS


def is_informative(hashes: UInt64Array) -> BoolArray:
    """Return which hashes distinguish images.

    Those of black, a plain colour or the ends of a fade do not: many videos share them.
    """
    return np.bitwise_count(hashes) >= MIN_INFORMATIVE_BITS


def hamming(a: int, b: int) -> int:
    """Return the number of bits in which two hashes differ, 0 to 64; about 32 for unrelated images."""
    return (a ^ b).bit_count()


@lru_cache(256)
def _dct_weights(n: int, start: float, end: float) -> Float32Array:
    """Return the weights `[F, n]` of n samples in each of the lowest coefficients of the DCT-II of 32 cells.

    The transform is orthonormal. The cells are the means of equal intervals from `start` to `end`; partial samples
    count by their share. A sample that is part bar is replaced by the next one inside.
    """
    edges = start + np.arange(SIDE_CELLS + 1) * ((end - start) / SIDE_CELLS)
    samples = np.arange(n)
    overlap_Sn = np.minimum(edges[1:, None], samples + 1) - np.maximum(edges[:-1, None], samples)
    cells_Sn = np.maximum(overlap_Sn, 0) * (SIDE_CELLS / (end - start))
    first, last = math.ceil(start - (1 - MIN_INSIDE_SHARE)), math.floor(end + (1 - MIN_INSIDE_SHARE)) - 1
    if 0 <= first <= last < n:
        cells_Sn[:, first] += cells_Sn[:, :first].sum(axis=1)
        cells_Sn[:, last] += cells_Sn[:, last + 1 :].sum(axis=1)
        cells_Sn[:, :first] = cells_Sn[:, last + 1 :] = 0
    frequencies = np.arange(max(max(rc) for rc in FREQUENCIES) + 1)
    waves_FS = (
        np.cos(np.pi / SIDE_CELLS * frequencies[:, None] * (np.arange(SIDE_CELLS) + 0.5))
        * np.sqrt(np.where(frequencies, 2, 1) / SIDE_CELLS)[:, None]
    )
    return np.asarray(waves_FS @ cells_Sn, np.float32)
