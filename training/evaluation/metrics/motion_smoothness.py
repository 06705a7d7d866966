"""motion_smoothness: how well each second frame follows from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.optical_flow import flow, moved


class MotionSmoothness(MetricSettings):
    """Leaves out every second frame, interpolates it along the optical flow, and measures (255 - mean error) / 255.

    VBench's motion smoothness (Huang et al. 2024) with another interpolation: neither needs weights here. Compare it
    with real clips of the same frame rate.
    """

    name: str = "motion_smoothness"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        frames = clip.frames_THWC
        errors = []
        for index in range(1, len(frames) - 1, 2):
            before, after = frames[index - 1], frames[index + 1]
            half_HW2 = np.asarray(flow(before, after) / 2, np.float32)
            halfway = (moved(before, -half_HW2).astype(np.float32) + moved(after, half_HW2)) / 2
            errors.append(np.abs(halfway - frames[index]).mean())
        return (Case(float(1 - np.mean(errors) / 255)),) if errors else ()
