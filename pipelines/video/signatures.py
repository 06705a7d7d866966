"""A series of signatures as rows of numbers that can be compared: distances, contrast, and the plain colour of a frame.

Distances are in levels: the mean absolute difference of luma plus that of chroma. Letterbox bars are left out.

Shape legend: N frames, D elements of a signature, C candidates, K frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.frame_features import Series

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

CHUNK = 2048
"""Frames handled at once: 1.8 MB of signatures, which stay in a core's cache; those of a film would take 1 GB as floats."""

BAR_LEVEL = 32
"""A line of the signature whose brightest element in the whole file is darker than this is a letterbox bar: it fades with no picture."""


REACH = 4
"""Elements of the signature, an eighth of its width, by which a pan is followed."""


class Track:
    """What is measured of each frame of a series by itself and against others."""

    def __init__(self, series: Series) -> None:
        self.n = len(series)
        self.pts_N, self.change_N, self.residual_N = series.pts_N, series.change_N, series.residual_N
        self.seconds_N = (series.pts_N - series.pts_N[:1]).astype(np.float64) * float(series.time_base)
        self.position_N: Ints = np.cumsum(series.passed_over_N.astype(np.int64) + 1)
        """Number of each frame among those of the source, passed-over ones counted."""
        luma_NHW, chroma_N2hw = series.luma_NHW, series.chroma_N2hw
        rows, columns = _picture_lines(luma_NHW)
        luma_NHW, chroma_N2hw = luma_NHW[:, rows, columns], chroma_N2hw[:, :, _half(rows), _half(columns)]
        self._shape = luma_NHW.shape[1:]
        self.luma_ND: Bytes = np.ascontiguousarray(luma_NHW).reshape(self.n, -1)
        self.chroma_ND: Bytes = np.ascontiguousarray(chroma_N2hw).reshape(self.n, -1)

    @cached_property
    def steps(self) -> Floats:
        """Distance `[N]` of every frame to the one before; 0 for the first."""
        out = np.zeros(self.n, np.float32)
        for lo, hi in _chunks(1, self.n):
            out[lo:hi] = _row_distance(self.luma_ND[lo - 1 : hi - 1], self.luma_ND[lo:hi])
            out[lo:hi] += _row_distance(self.chroma_ND[lo - 1 : hi - 1], self.chroma_ND[lo:hi])
        return out

    @cached_property
    def contrasts(self) -> Floats:
        """Standard deviation `[N]` over the picture of luma plus that of Cb and of Cr, in levels; 0 for a plain colour."""
        out = np.zeros(self.n, np.float32)
        half = self.chroma_ND.shape[1] // 2
        for lo, hi in _chunks(0, self.n):
            for plane in (self.luma_ND[lo:hi], self.chroma_ND[lo:hi, :half], self.chroma_ND[lo:hi, half:]):
                levels = plane.astype(np.float32)
                levels -= levels.mean(axis=1, keepdims=True)
                out[lo:hi] += np.sqrt(np.einsum("nd,nd->n", levels, levels) / np.float32(levels.shape[1]))
        return out

    def distance(self, a_C: Ints, b_C: Ints) -> Floats:
        """Distances of C pairs of frames."""
        out = np.empty(len(a_C), np.float32)
        for lo, hi in _chunks(0, len(a_C)):
            a, b = a_C[lo:hi], b_C[lo:hi]
            out[lo:hi] = _row_distance(self.luma_ND[a], self.luma_ND[b]) + _row_distance(
                self.chroma_ND[a], self.chroma_ND[b]
            )
        return out

    def correlation(self, a_C: Ints, b_C: Ints) -> Floats:
        """Pearson's correlation of luma of C pairs: 1 for the same picture, however bright; 0 where one is plain."""
        out = np.zeros(len(a_C), np.float32)
        for lo, hi in _chunks(0, len(a_C)):
            a, b = (self.luma_ND[index[lo:hi]].astype(np.float32) for index in (a_C, b_C))
            a -= a.mean(axis=1, keepdims=True)
            b -= b.mean(axis=1, keepdims=True)
            scale = np.sqrt(np.einsum("cd,cd->c", a, a) * np.einsum("cd,cd->c", b, b))
            out[lo:hi] = np.where(scale > self.n_luma, np.einsum("cd,cd->c", a, b) / np.maximum(scale, 1), 0)
        return out

    def likeness(self, a: int, b: int) -> float:
        """Highest correlation of luma of two frames over shifts of up to `REACH` elements: 1 where a pan or a change of light is all there is."""
        height, width = self._shape
        y, x = min(REACH, height // 4), min(REACH, width // 4)
        one, other = self.luma_ND[a].reshape(height, width), self.luma_ND[b].reshape(height, width)
        middle = np.ascontiguousarray(one[y : height - y, x : width - x])
        if min(float(middle.std()), float(other.std())) < 1:
            return 0.0
        return float(cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED).max())

    def histogram_distance(self, a_C: Ints, b_C: Ints) -> Floats:
        """Earth mover's distance of the luma histograms of C pairs plus that of their chroma's, in levels; motion inside the picture leaves it small.

        In one dimension it is the mean absolute difference of the sorted values (Vallender 1974).
        """
        out = np.zeros(len(a_C), np.float32)
        half = self.chroma_ND.shape[1] // 2
        for plane in (self.luma_ND, self.chroma_ND[:, :half], self.chroma_ND[:, half:]):
            for lo, hi in _chunks(0, len(a_C)):
                a, b = np.sort(plane[a_C[lo:hi]], axis=1), np.sort(plane[b_C[lo:hi]], axis=1)
                out[lo:hi] += _row_distance(a, b) * np.float32(1.0 if plane is self.luma_ND else 0.5)
        return out

    def rows(self, lo: int, hi: int) -> Floats:
        """Signatures of frames `lo` to `hi` as floats `[K, D]`; chroma is scaled so that the sum of differences over `n_luma` is a distance."""
        luma, chroma = self.luma_ND[lo:hi], self.chroma_ND[lo:hi]
        weight = np.float32(luma.shape[1] / chroma.shape[1])
        return np.concatenate([luma.astype(np.float32), chroma.astype(np.float32) * weight], axis=1)

    @property
    def n_luma(self) -> int:
        """Elements of luma in a signature."""
        return int(self.luma_ND.shape[1])


def _row_distance(a_CD: Bytes, b_CD: Bytes) -> Floats:
    """Mean absolute difference of each pair of rows; OpenCV's bytes cost a twentieth of numpy's."""
    difference = cv2.absdiff(np.ascontiguousarray(a_CD), np.ascontiguousarray(b_CD))
    sums = cv2.reduce(difference, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(sums.reshape(-1) / np.float32(a_CD.shape[1]), np.float32)


def _chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + CHUNK, stop)) for lo in range(start, stop, CHUNK))


def _picture_lines(luma_NHW: Bytes) -> tuple[slice, slice]:
    """Rows and columns of the signature inside the letterbox; all of them where nothing is ever bright.

    The line next to a bar is left out too: it is part bar. Bars are cut in pairs of lines, as chroma has half the lines.
    """
    brightest = luma_NHW.max(axis=0, initial=0)
    return _inside(brightest.max(axis=1)), _inside(brightest.max(axis=0))


def _inside(brightest: Bytes) -> slice:
    n = len(brightest)
    bright = np.flatnonzero(brightest >= BAR_LEVEL)
    # A file with bars of half of its height or more is a dark film rather than a letterbox.
    if len(bright) == 0 or int(bright[-1]) - int(bright[0]) < n // 2:
        return slice(0, n)
    first, last = int(bright[0]), int(bright[-1])
    return slice(0 if first == 0 else (first + 2) // 2 * 2, n if last == n - 1 else last // 2 * 2)


def _half(lines: slice) -> slice:
    return slice(lines.start // 2, (lines.stop + 1) // 2)
