"""Signatures of frames as rows of numbers that can be compared: distances, correlations, contrast.

Distances are in 8-bit values: the mean absolute difference of luma plus that of chroma. Letterbox bars are left out.

Shape legend: N frames, D elements of a signature, C pairs of frames (candidates), K frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import cv2
import numpy as np

from cluster.arrays import Float32Array, Int64Array, UInt8Array
from pipelines.video.frame_features import FrameFeatures

CHUNK_FRAMES = 2048
"""Frames handled in one operation: 1.8 MB of signatures, which fit in a core's cache. Those of a film would take 1 GB
as floats."""

MIN_IMAGE_VALUE = 32
"""A line of the signature whose brightest element in the whole file is darker than this 8-bit value is a letterbox bar,
which does not fade with the image."""

MAX_SHIFT = 4
"""Largest shift, in elements of the signature, at which two frames are correlated to follow a pan: an eighth of the
width."""


class Signatures:
    """Signatures of all frames of a file, without letterbox bars, and the comparisons between them."""

    def __init__(self, features: FrameFeatures) -> None:
        self.n = len(features)
        self.pts_N, self.change_N, self.residual_N = features.pts_N, features.change_N, features.residual_N
        self.seconds_N = (features.pts_N - features.pts_N[:1]).astype(np.float64) * float(features.time_base)
        self.source_index_N: Int64Array = np.cumsum(features.skipped_N.astype(np.int64) + 1)
        """Index of each frame among all frames of the source, skipped ones included; it starts at 1."""
        luma_NHW, chroma_N2hw = features.luma_NHW, features.chroma_N2hw
        rows, columns = _image_lines(luma_NHW)
        luma_NHW, chroma_N2hw = luma_NHW[:, rows, columns], chroma_N2hw[:, :, _half(rows), _half(columns)]
        self._shape = luma_NHW.shape[1:]
        self.luma_ND: UInt8Array = np.ascontiguousarray(luma_NHW).reshape(self.n, -1)
        self.chroma_ND: UInt8Array = np.ascontiguousarray(chroma_N2hw).reshape(self.n, -1)

    @cached_property
    def frame_differences(self) -> Float32Array:
        """Frame difference: the distance `[N]` of every frame to the one before; 0 for the first."""
        out = np.zeros(self.n, np.float32)
        for lo, hi in _chunks(1, self.n):
            out[lo:hi] = _row_distance(self.luma_ND[lo - 1 : hi - 1], self.luma_ND[lo:hi])
            out[lo:hi] += _row_distance(self.chroma_ND[lo - 1 : hi - 1], self.chroma_ND[lo:hi])
        return out

    @cached_property
    def contrasts(self) -> Float32Array:
        """Standard deviation `[N]` of luma plus that of Cb and of Cr over the image; 0 for a plain colour.

        It is in 8-bit values.
        """
        out = np.zeros(self.n, np.float32)
        half = self.chroma_ND.shape[1] // 2
        for lo, hi in _chunks(0, self.n):
            for plane in (self.luma_ND[lo:hi], self.chroma_ND[lo:hi, :half], self.chroma_ND[lo:hi, half:]):
                values = plane.astype(np.float32)
                values -= values.mean(axis=1, keepdims=True)
                out[lo:hi] += np.sqrt(np.einsum("nd,nd->n", values, values) / np.float32(values.shape[1]))
        return out

    def distance(self, a_C: Int64Array, b_C: Int64Array) -> Float32Array:
        """Return the distances `[C]` of C pairs of frames."""
        out = np.empty(len(a_C), np.float32)
        for lo, hi in _chunks(0, len(a_C)):
            a, b = a_C[lo:hi], b_C[lo:hi]
            luma_distance = _row_distance(self.luma_ND[a], self.luma_ND[b])
            out[lo:hi] = luma_distance + _row_distance(self.chroma_ND[a], self.chroma_ND[b])
        return out

    def correlation(self, a_C: Int64Array, b_C: Int64Array) -> Float32Array:
        """Return Pearson's correlation `[C]` of the luma of C pairs of frames.

        It is 1 for the same image at any brightness, and 0 where one of the two is plain.
        """
        out = np.zeros(len(a_C), np.float32)
        for lo, hi in _chunks(0, len(a_C)):
            a, b = (self.luma_ND[index[lo:hi]].astype(np.float32) for index in (a_C, b_C))
            a -= a.mean(axis=1, keepdims=True)
            b -= b.mean(axis=1, keepdims=True)
            scale = np.sqrt(np.einsum("cd,cd->c", a, a) * np.einsum("cd,cd->c", b, b))
            out[lo:hi] = np.where(scale > self.n_luma, np.einsum("cd,cd->c", a, b) / np.maximum(scale, 1), 0)
        return out

    def shifted_correlation(self, a: int, b: int) -> float:
        """Return the highest correlation of the luma of two frames over shifts of up to `MAX_SHIFT` elements.

        It is 1 where the frames differ by no more than a pan or a change of light.
        """
        height, width = self._shape
        y, x = min(MAX_SHIFT, height // 4), min(MAX_SHIFT, width // 4)
        one, other = self.luma_ND[a].reshape(height, width), self.luma_ND[b].reshape(height, width)
        middle = np.ascontiguousarray(one[y : height - y, x : width - x])
        if min(float(middle.std()), float(other.std())) < 1:
            return 0.0
        return float(cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED).max())

    def histogram_distance(self, a_C: Int64Array, b_C: Int64Array) -> Float32Array:
        """Return the earth mover's distances `[C]` of the histograms of C pairs of frames.

        It is that of luma plus half of that of Cb and of Cr, in 8-bit values; motion inside the image leaves it small.
        In one dimension the distance is the mean absolute difference of the sorted values (Vallender 1974).
        """
        out = np.zeros(len(a_C), np.float32)
        half = self.chroma_ND.shape[1] // 2
        for plane in (self.luma_ND, self.chroma_ND[:, :half], self.chroma_ND[:, half:]):
            for lo, hi in _chunks(0, len(a_C)):
                a, b = np.sort(plane[a_C[lo:hi]], axis=1), np.sort(plane[b_C[lo:hi]], axis=1)
                out[lo:hi] += _row_distance(a, b) * np.float32(1.0 if plane is self.luma_ND else 0.5)
        return out

    def vectors(self, lo: int, hi: int) -> Float32Array:
        """Return the signatures of frames `lo` to `hi` (exclusive) as floats `[K, D]`.

        Chroma is scaled so that the sum of absolute differences over `n_luma` is the distance.
        """
        luma, chroma = self.luma_ND[lo:hi], self.chroma_ND[lo:hi]
        weight = np.float32(luma.shape[1] / chroma.shape[1])
        return np.concatenate([luma.astype(np.float32), chroma.astype(np.float32) * weight], axis=1)

    @property
    def n_luma(self) -> int:
        """Number of luma elements of a signature."""
        return int(self.luma_ND.shape[1])


def _row_distance(a_CD: UInt8Array, b_CD: UInt8Array) -> Float32Array:
    """Return the mean absolute difference of each pair of rows; OpenCV's bytes cost a twentieth of numpy's."""
    difference = cv2.absdiff(np.ascontiguousarray(a_CD), np.ascontiguousarray(b_CD))
    sums = cv2.reduce(difference, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(sums.reshape(-1) / np.float32(a_CD.shape[1]), np.float32)


def _chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + CHUNK_FRAMES, stop)) for lo in range(start, stop, CHUNK_FRAMES))


def _image_lines(luma_NHW: UInt8Array) -> tuple[slice, slice]:
    """Return the rows and columns of the signature inside the letterbox; all of them where nothing is ever bright.

    The line next to a bar is left out too: it is part bar. Bars are cut in pairs of lines, as chroma has half the
    lines.
    """
    brightest = luma_NHW.max(axis=0, initial=0)
    return _bright_lines(brightest.max(axis=1)), _bright_lines(brightest.max(axis=0))


def _bright_lines(brightest: UInt8Array) -> slice:
    n = len(brightest)
    bright = np.flatnonzero(brightest >= MIN_IMAGE_VALUE)
    # A file with bars of half its height or more is a dark film rather than a letterbox.
    if len(bright) == 0 or int(bright[-1]) - int(bright[0]) < n // 2:
        return slice(0, n)
    first, last = int(bright[0]), int(bright[-1])
    return slice(0 if first == 0 else (first + 2) // 2 * 2, n if last == n - 1 else last // 2 * 2)


def _half(lines: slice) -> slice:
    return slice(lines.start // 2, (lines.stop + 1) // 2)
