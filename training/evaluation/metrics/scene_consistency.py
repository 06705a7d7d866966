"""scene_consistency: how much the whole image stays the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings

SIDE = 8
"""Pixels along each side of the thumbnails that are compared."""


class SceneConsistency(MetricSettings):
    """Measures the mean cosine of each frame's features with those of the first frame and of the frame before.

    VBench's subject and background consistency (Huang et al. 2024) have this form, with features of DINO and CLIP. Here
    the features are the colours of a thumbnail relative to middle grey, which need no weights
    and see cuts, fades and drifts of colour, but no identities.
    """

    name: str = "scene_consistency"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if len(clip.frames_THWC) < 2:
            return ()
        thumbnails = [cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in clip.frames_THWC]
        features = np.stack(thumbnails).reshape(len(thumbnails), -1).astype(np.float64) - 127.5
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        first, before = features[1:] @ features[0], (features[1:] * features[:-1]).sum(1)
        return (Case(float(((first + before) / 2).mean())),)
