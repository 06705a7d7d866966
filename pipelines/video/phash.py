"""Perceptual hashes of pictures: 64 bits that survive scaling and compression, and tell what a mirrored copy would have.

Zauner's pHash ('Implementation and Benchmarking of Perceptual Image Hash Functions', 2010) averages a picture to 32 x 32 and
compares the 8 x 8 lowest frequencies of its cosine transform with their median. Here each bit is the sign of one coefficient, and the
mean is left out: brightness has no bit, contrast none but in what is almost flat, and mirroring a picture, which negates the
coefficients of odd horizontal frequency and leaves the others, turns known bits over. A mirrored copy is found without its picture.

How many bits re-encoding, scaling and other edits change is in docs/signals.md.

Shape legend: N pictures, H height, W width, F frequencies one way, S = 32 cells one way.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32
BITS = 64

NOISE = 1.0
"""Coefficients up to this (levels of 255, orthonormal transform) give 0: a wave of 0.06 levels, less than rounding to 8 bits leaves of
it. Flat pictures so have the hash 0, and not one of noise. With 0 in its place, re-encoding changes a fifth more bits of
footage; with 4, mirroring two thirds more, for what is 0 cannot turn over."""

LEAST_BITS = 17
"""Hashes with fewer bits set tell nothing. About half of the 64 are set: 19 at least in every picture of 14 files of real footage, but 12 to 16
in a small title in the middle of black, as every other such title has. Black has 0, a plain slope up to 8. Of 64 bits that fall
by chance, fewer are set once in 20,000 times."""

INSIDE = 0.95
"""Share of a sample that must lie inside the box for its level to count; others are part bar."""

Box = tuple[float, float, float, float]


def _lowest() -> list[tuple[int, int]]:
    """(row, column) frequencies from low to high, without the mean: those within a quarter circle."""
    every = [(r, c) for r in range(SIDE) for c in range(SIDE) if r or c]
    return sorted(every, key=lambda rc: (rc[0] ** 2 + rc[1] ** 2, max(rc), rc))[:BITS]


FREQUENCIES = _lowest()
"""Bit i, from the lowest, is set where the coefficient of this row and column frequency is positive. From low frequencies, whose bits are
the steadiest, to high. They fill a quarter circle: of the square of 8 x 8, 9% more bits change in a letterboxed copy and 15% more in a
mirrored one."""

ODD_COLUMNS = np.uint64(sum(1 << i for i, (_, column) in enumerate(FREQUENCIES) if column % 2))
"""The bits that mirroring turns over."""


def phash(luma_HW: NDArray[np.uint8] | NDArray[np.float32]) -> int:
    """Hash of a luma picture in levels of 0 to 255, as an unsigned 64-bit integer."""
    return int(phashes(luma_HW[None])[0])


def phashes(luma_NHW: NDArray[np.uint8] | NDArray[np.float32], box: Box | None = None) -> NDArray[np.uint64]:
    """Hashes `[N]` of luma pictures in levels of 0 to 255, of any size and aspect. 2 us a picture of 64 x 36.

    Of a `box` of them where one is given: x0, y0, x1, y1 in pixels, which may be fractions.
    """
    _, height, width = luma_NHW.shape
    x0, y0, x1, y1 = box or (0.0, 0.0, float(width), float(height))
    down_FH, across_FW = _waves(height, y0, y1), _waves(width, x0, x1)
    coefficients_NFF = down_FH @ np.asarray(luma_NHW, np.float32) @ across_FW.T
    rows, columns = np.array(FREQUENCIES).T
    bits_N64 = coefficients_NFF[:, rows, columns] > NOISE
    packed_N8 = np.ascontiguousarray(np.packbits(bits_N64, axis=1, bitorder="little"))
    return packed_N8.view("<u8")[:, 0].astype(np.uint64)


def mirrored(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the same pictures, left and right exchanged: exact but for bits whose coefficients are next to 0.

    The hash 0 of flat pictures, which mirroring does not change, becomes another one: ask `is_informative` before.
    """
    return hashes ^ ODD_COLUMNS


def is_informative(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether hashes tell pictures apart: not those of black, of a plain colour or of the ends of a fade, which many videos share."""
    return np.bitwise_count(hashes) >= LEAST_BITS


def hamming(a: int, b: int) -> int:
    """Number of bits in which two hashes differ, 0 to 64; about 32 for unrelated pictures."""
    return (a ^ b).bit_count()


@lru_cache(256)
def _waves(n: int, start: float, end: float) -> NDArray[np.float32]:
    """`[F, n]`: the weights of n samples in each of the lowest coefficients of the orthonormal DCT-II of 32 cells.

    The cells are the means of equal intervals from `start` to `end`, parts of samples by their share. A sample that is part bar is
    replaced by the next one inside.
    """
    edges = start + np.arange(SIDE + 1) * ((end - start) / SIDE)
    samples = np.arange(n)
    cells_Sn = np.maximum(np.minimum(edges[1:, None], samples + 1) - np.maximum(edges[:-1, None], samples), 0) * (
        SIDE / (end - start)
    )
    first, last = math.ceil(start - (1 - INSIDE)), math.floor(end + (1 - INSIDE)) - 1
    if 0 <= first <= last < n:
        cells_Sn[:, first] += cells_Sn[:, :first].sum(axis=1)
        cells_Sn[:, last] += cells_Sn[:, last + 1 :].sum(axis=1)
        cells_Sn[:, :first] = cells_Sn[:, last + 1 :] = 0
    frequencies = np.arange(max(max(rc) for rc in FREQUENCIES) + 1)
    waves_FS = (
        np.cos(np.pi / SIDE * frequencies[:, None] * (np.arange(SIDE) + 0.5))
        * np.sqrt(np.where(frequencies, 2, 1) / SIDE)[:, None]
    )
    return np.asarray(waves_FS @ cells_Sn, np.float32)
