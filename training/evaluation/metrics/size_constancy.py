"""size_constancy: how much the sizes of shapes change during a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings

MIN_FRAMES = 3


class SizeConstancy(MetricSettings):
    """Measures the standard deviation of a whole shape's radius over its mean, corrected for the camera's zoom."""

    name: str = "size_constancy"
    better: ClassVar[Better] = "low"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or not tracks.camera.is_seen:
            return ()
        radii = [tracks.world_radius(body)[body.is_whole] for body in tracks.bodies]
        return [Case(float(np.std(radius_T) / np.mean(radius_T))) for radius_T in radii if len(radius_T) >= MIN_FRAMES]
