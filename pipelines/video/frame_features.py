"""What the pass keeps of every frame it looks at: small enough for a film, rich enough to find its shots afterwards.

Shape legend: N frames looked at, H height, W width of the signature; lower-case letters for its chroma, half of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE_SHRINK = 4
"""A signature is the analysis picture (128 x 72 in area) averaged over squares of 4 pixels: 32 x 18, with chroma at 16 x 9."""


def runs(mask_N: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and end (exclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask_N, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class Series:
    """The frames looked at, in presentation order; all arrays have N rows. About 1 kB a frame.

    `passed_over` counts the frames of the source between this one and the one before that were not decoded. `luma` and
    `chroma` (Cb, Cr) are signatures in levels of full range. `change` is the mean absolute difference of luma to the frame
    before at analysis size, `residual` what is left of it after motion is compensated, `peak` the largest mean difference
    of a block of 8 x 8 pixels, all in levels; for the first frame 0. `nearer` is the scale by which the frame
    enlarges part of the one before (`camera.cut_in`), NaN where it does not or the change is too small for a cut.
    `content` is PySceneDetect's content score against the frame before, NaN where its detectors were not asked for.
    """

    time_base: Fraction
    pts_N: NDArray[np.int64]
    passed_over_N: NDArray[np.int32]
    luma_NHW: NDArray[np.uint8]
    chroma_N2hw: NDArray[np.uint8]
    change_N: NDArray[np.float32]
    residual_N: NDArray[np.float32]
    peak_N: NDArray[np.float32]
    nearer_N: NDArray[np.float32]
    content_N: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pts_N)

    @staticmethod
    def joined(parts: Iterable[Series], n_frames: int) -> Series:
        """Series one after another as one of `n_frames` frames; the same time base and signature size in all of them.

        Each part is let go of when it has been copied: a film takes its own size in memory, not twice.
        """
        whole: Series | None = None
        at = 0
        for part in parts:
            if whole is None:
                whole = Series(
                    part.time_base, *(np.empty((n_frames, *array.shape[1:]), array.dtype) for array in part._arrays())
                )
            for to, array in zip(whole._arrays(), part._arrays(), strict=True):
                to[at : at + len(part)] = array
            at += len(part)
        assert whole is not None, "nothing to join"
        assert at == n_frames, f"{at} frames were joined, not {n_frames}"
        return whole

    def rows(self, which: slice) -> Series:
        """Some rows, without a copy."""
        return Series(self.time_base, *(array[which] for array in self._arrays()))

    def between(self, start_pts: int, end_pts: int) -> Series:
        """The frames of a span, `end_pts` exclusive."""
        first, end = np.searchsorted(self.pts_N, [start_pts, end_pts])
        return self.rows(slice(int(first), int(end)))

    def distance(self, i: int, j: int) -> float:
        """Mean absolute difference of luma between two signatures, in levels."""
        return float(np.abs(self.luma_NHW[i].astype(np.int16) - self.luma_NHW[j]).mean())

    def with_windows(self, windows: Sequence[Series]) -> Series:
        """With every frame of some windows, in order, that may touch: each begins and ends with a frame that is here and has all between.

        The row of a window's first frame stays as it is, for the window does not know the frame before it; that of its last one
        is now compared with its neighbour.
        """
        parts, done = [], 0
        for window in windows:
            first, end = np.searchsorted(self.pts_N, [window.pts_N[0], window.pts_N[-1]], side="right")
            parts += [self.rows(slice(done, int(first))), window.rows(slice(1, None))]
            done = int(end)
        parts.append(self.rows(slice(done, None)))
        return Series.joined(parts, sum(map(len, parts)))

    @property
    def n_frames(self) -> int:
        """Frames of the source, with those that were passed over."""
        return len(self) + int(self.passed_over_N.sum())

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, field.name) for field in fields(self)[1:]]
