"""flicker: how much frames differ from the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings


class Flicker(MetricSettings):
    """Measures (255 - mean absolute difference of consecutive frames) / 255, as VBench's temporal flickering does.

    Huang et al. 2024, "VBench: Comprehensive Benchmark Suite for Video Generative Models". It is for clips of still
    scenes; where things move, compare it with real clips.
    """

    name: str = "flicker"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if len(clip.frames_THWC) < 2:
            return ()
        frames = clip.frames_THWC.astype(np.float32)
        return (Case(float(1 - np.abs(np.diff(frames, axis=0)).mean() / 255)),)
