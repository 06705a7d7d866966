"""Features of every decoded frame: small enough to keep for a whole film, rich enough to find its shots afterwards.

Shape legend: N decoded frames, H height, W width of the signature; lower-case letters for its chroma, half of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Float32Array, Int64Array, UInt8Array

SIGNATURE_SHRINK = 4
"""Side of the squares of pixels that are averaged to one value of a signature. The analysis image (128 x 72 in area)
gives a signature of 32 x 18, with chroma at 16 x 9."""


def true_runs(mask_N: BoolArray) -> list[tuple[int, int]]:
    """Return the first index and the end (exclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask_N, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class FrameFeatures:
    """Features of the decoded frames, in presentation order; all arrays have N rows. About 1 kB per frame.

    `skipped_N` counts the frames of the source between this frame and the one before that were not decoded. `luma_NHW`
    and `chroma_N2hw` (Cb, Cr) are signatures in full range. `change_N` is the mean absolute difference of luma from the
    frame before at analysis size, `residual_N` the part of it that motion does not explain, `peak_N` the largest mean
    difference of a block of 8 x 8 pixels. These three are in 8-bit values, and 0 for the first frame. `cut_in_scale_N`
    is the scale by which the frame enlarges part of the one before (`camera.cut_in`), NaN where it does not or the
    change is too small for a cut. `content_score_N` is PySceneDetect's content score against the frame before, NaN
    where its detectors are not used.
    """

    time_base: Fraction
    pts_N: Int64Array
    skipped_N: NDArray[np.int32]
    luma_NHW: UInt8Array
    chroma_N2hw: UInt8Array
    change_N: Float32Array
    residual_N: Float32Array
    peak_N: Float32Array
    cut_in_scale_N: Float32Array
    content_score_N: Float32Array

    def __len__(self) -> int:
        return len(self.pts_N)

    @staticmethod
    def concatenate(pieces: Iterable[FrameFeatures], n_frames: int) -> FrameFeatures:
        """Join pieces, `n_frames` long in all, one after another; they share the time base and the size of signatures.

        Each piece is released once it has been copied, so a film takes its size in memory once, not twice.
        """
        whole: FrameFeatures | None = None
        done = 0
        for piece in pieces:
            if whole is None:
                empty = (np.empty((n_frames, *array.shape[1:]), array.dtype) for array in piece._arrays())
                whole = FrameFeatures(piece.time_base, *empty)
            for target, array in zip(whole._arrays(), piece._arrays(), strict=True):
                target[done : done + len(piece)] = array
            done += len(piece)
        assert whole is not None, "nothing to concatenate"
        assert done == n_frames, f"{done} frames were concatenated, not {n_frames}"
        return whole

    def rows(self, which: slice) -> FrameFeatures:
        """Return some rows, without a copy."""
        return FrameFeatures(self.time_base, *(array[which] for array in self._arrays()))

    def between(self, start_pts: int, end_pts: int) -> FrameFeatures:
        """Return the rows of a span, `end_pts` exclusive, without a copy."""
        first, end = np.searchsorted(self.pts_N, [start_pts, end_pts])
        return self.rows(slice(int(first), int(end)))

    def distance(self, i: int, j: int) -> float:
        """Return the mean absolute difference of luma between two signatures, in 8-bit values."""
        return float(np.abs(self.luma_NHW[i].astype(np.int16) - self.luma_NHW[j]).mean())

    def with_windows(self, windows: Sequence[FrameFeatures]) -> FrameFeatures:
        """Return the features with every frame of some windows, which are in order and may touch.

        Each window begins and ends with a frame of `self` and has all frames between. The row of a window's first frame
        is kept, as the window does not know the frame before it. The row of its last frame is replaced: it is now
        compared with its neighbour.
        """
        pieces, done = [], 0
        for window in windows:
            first, end = np.searchsorted(self.pts_N, [window.pts_N[0], window.pts_N[-1]], side="right")
            pieces += [self.rows(slice(done, int(first))), window.rows(slice(1, None))]
            done = int(end)
        pieces.append(self.rows(slice(done, None)))
        return FrameFeatures.concatenate(pieces, sum(map(len, pieces)))

    @property
    def n_frames(self) -> int:
        """Number of frames of the source, skipped ones included."""
        return len(self) + int(self.skipped_N.sum())

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, field.name) for field in fields(self)[1:]]
