"""motion_amount: how fast things move across the frame."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.optical_flow import flow

FASTEST_SHARE = 0.05
"""Share of pixels, the fastest of each pair of frames, whose speed is averaged, as in VBench's dynamic degree."""


class MotionAmount(MetricSettings):
    """Measures the mean speed of the fastest pixels by optical flow, in short sides of the frame per second."""

    name: str = "motion_amount"
    unit: ClassVar[str] = "short sides / s"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        frames = clip.frames_THWC
        if len(frames) < 2:
            return ()
        speeds = []
        for before, after in itertools.pairwise(frames):
            speed = np.sort(np.linalg.norm(flow(before, after), axis=-1), axis=None)
            speeds.append(speed[-max(1, round(FASTEST_SHARE * speed.size)) :].mean())
        return (Case(float(np.mean(speeds)) * clip.fps / min(frames.shape[1:3])),)
