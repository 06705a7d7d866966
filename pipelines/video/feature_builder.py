"""Measure the features of frames, many per call, so that a frame costs little more than its decoding and scaling.

Shape legend: N frames of a block, H height, W width of the analysis image, lower-case letters for its chroma, half of
them.
"""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np

from cluster.arrays import Float32Array, UInt8Array
from pipelines.video.camera import cut_in
from pipelines.video.frame_features import SIGNATURE_SHRINK, FrameFeatures
from pipelines.video.motion import BLOCK_PX, block_means, motion_residual
from pipelines.video.scale import YuvPlanes
from pipelines.video.shot_boundaries import ContentScore

ANALYSIS_AREA = 128 * 72
"""Pixels of the image that every decoded frame is scaled to: scaling 480p to it costs 0.05 ms, and optical flow on it
another 0.05 ms."""

MIN_WARPED_CHANGE = 3.0
"""Smallest mean change, in 8-bit values, of which the part that motion does not explain is measured; with less, no shot
begins."""

MIN_CUT_RESIDUAL = 12.0
MIN_CUT_RESIDUAL_RATIO = 2
"""Change that motion does not explain, in 8-bit values and relative to the frames beside it, from which a cut is
checked for being a cut-in; the check takes 1 ms."""

BLOCK_FRAMES = 256
"""Frames measured per call: 3.5 MB of analysis images."""


class FeatureBuilder:
    """A builder that takes frames in order and returns their features."""

    def __init__(self, time_base: Fraction, content_scores: bool) -> None:
        """Start without a frame; `content_scores` records PySceneDetect's score of each image pushed in colour."""
        self._time_base = time_base
        self._content_score = ContentScore() if content_scores else None
        self._blocks: list[FrameFeatures] = []
        self._pts: list[int] = []
        self._skipped: list[int] = []
        self._scores: list[float] = []
        self._stacks: list[UInt8Array] = []

    def push(self, pts: int, n_skipped: int, planes: YuvPlanes, bgr_HW3: UInt8Array | None) -> UInt8Array:
        """Take a frame and return a copy of its luma, which is not written to again."""
        if not self._stacks:
            self._stacks = [np.empty((BLOCK_FRAMES + 1, *plane.shape), np.uint8) for plane in planes]
            # Row 0 is the frame before the block, with which the first frame of the block is compared.
            self._stacks[0][0] = planes.luma_HW
        elif len(self._pts) == BLOCK_FRAMES:
            self._measure_block()
            # New arrays, since callers hold rows of the old ones.
            fresh = [np.empty_like(stack) for stack in self._stacks]
            fresh[0][0] = self._stacks[0][BLOCK_FRAMES]
            self._stacks = fresh
        self._pts.append(pts)
        self._skipped.append(n_skipped)
        score = float("nan")
        if self._content_score is not None and bgr_HW3 is not None:
            score = self._content_score.push(bgr_HW3)
        self._scores.append(score)
        row = len(self._pts)
        for stack, plane in zip(self._stacks, planes, strict=True):
            stack[row] = plane
        luma_HW: UInt8Array = self._stacks[0][row]
        return luma_HW

    def features(self) -> FrameFeatures:
        """Return the features of all frames that were pushed, at least one."""
        self._measure_block()
        return FrameFeatures.concatenate(self._blocks, sum(map(len, self._blocks)))

    def _measure_block(self) -> None:
        assert self._pts, "no frame was pushed"
        luma_NHW, cb_Nhw, cr_Nhw = (stack[: len(self._pts) + 1] for stack in self._stacks)
        chroma_N2hw = np.stack([_signatures(cb_Nhw[1:]), _signatures(cr_Nhw[1:])], axis=1)
        changes = frame_changes(luma_NHW)
        self._blocks.append(
            FrameFeatures(
                self._time_base,
                np.array(self._pts, np.int64),
                np.array(self._skipped, np.int32),
                _signatures(luma_NHW[1:]),
                chroma_N2hw,
                *changes,
                np.array(self._scores, np.float32),
            )
        )
        self._pts, self._skipped, self._scores = [], [], []


def frame_changes(luma_NHW: UInt8Array) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
    """Return (change, residual, peak, cut-in scale) of all images but the first; see `FrameFeatures`."""
    n, height, width = luma_NHW.shape
    # As one tall image: OpenCV takes as long for 300 frames in one call as for 30 in a call each.
    flat = luma_NHW.reshape(n * height, width)
    means = block_means(cv2.absdiff(flat[height:], flat[:-height]))
    blocks_NIJ = means.reshape(n - 1, height // BLOCK_PX, width // BLOCK_PX)
    change_N, peak_N = blocks_NIJ.mean(axis=(1, 2)), blocks_NIJ.max(axis=(1, 2))
    residual_N = change_N.copy()
    for i in np.flatnonzero(change_N >= MIN_WARPED_CHANGE):
        residual_N[i] = min(change_N[i], motion_residual(luma_NHW[i], luma_NHW[i + 1]))
    cut_in_scale_N = np.full(n - 1, np.nan, np.float32)
    beside_N = np.maximum(np.append(residual_N[1:], 0), np.insert(residual_N[:-1], 0, 0))
    may_be_cut_N = (residual_N >= MIN_CUT_RESIDUAL) & (residual_N >= MIN_CUT_RESIDUAL_RATIO * beside_N)
    for i in np.flatnonzero(may_be_cut_N):
        cut_in_scale_N[i] = cut_in(luma_NHW[i], luma_NHW[i + 1]) or np.nan
    return change_N, residual_N, peak_N, cut_in_scale_N


def _signatures(stack_NHW: UInt8Array) -> UInt8Array:
    """Return each image of a stack averaged over the squares of a signature, which divide its sides."""
    n, height, width = stack_NHW.shape
    size = width // SIGNATURE_SHRINK, n * height // SIGNATURE_SHRINK
    flat = cv2.resize(stack_NHW.reshape(n * height, width), size, interpolation=cv2.INTER_AREA)
    return np.asarray(flat, np.uint8).reshape(n, height // SIGNATURE_SHRINK, width // SIGNATURE_SHRINK)
