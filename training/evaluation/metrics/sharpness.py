"""sharpness: how much fine detail frames have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.optical_flow import luma


class Sharpness(MetricSettings):
    """Measures the standard deviation of the luma's Laplacian, whose variance is the focus measure of Pech-Pacheco.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a comparative study". It depends on what
    is shown, so compare it with real clips of the same size.
    """

    name: str = "sharpness"
    unit: ClassVar[str] = "levels of 255"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        deviations = [cv2.Laplacian(luma(frame), cv2.CV_32F).std() for frame in clip.frames_THWC]
        return (Case(float(np.mean(deviations))),)
