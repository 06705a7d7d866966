"""spin: how steadily shapes turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.shapes import SYMMETRY

MIN_FRAMES = 5


class Spin(MetricSettings):
    """Measures the root mean square deviation of a shape's angle from a turn at constant speed, in symmetry periods.

    0 is perfectly steady, 0.29 random. Circles, whose angle cannot be seen, are not judged.
    """

    name: str = "spin"
    better: ClassVar[Better] = "low"

    def cases(self, clip: Clip) -> Sequence[Case]:
        results = []
        for body in clip.tracks.bodies if clip.tracks else ():
            known_T = body.is_whole & np.isfinite(body.angle_T)
            if body.kind is None or not np.isfinite(body.spin) or known_T.sum() < MIN_FRAMES:
                continue
            assert clip.tracks is not None
            time_T = np.flatnonzero(known_T) / clip.tracks.fps
            turns_T = (body.angle_T[known_T] - body.spin * time_T) * SYMMETRY[body.kind] / (2 * np.pi)
            centre = np.angle(np.exp(2j * np.pi * turns_T).mean()) / (2 * np.pi)
            deviation_T = (turns_T - centre + 0.5) % 1 - 0.5
            results.append(Case(float(np.sqrt((deviation_T**2).mean()))))
        return results
