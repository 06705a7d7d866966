"""colour_constancy: how much the colours of shapes change during a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.metric import Better, Case, Clip, MetricSettings

MIN_FRAMES = 3


class ColourConstancy(MetricSettings):
    """Measures the root mean square distance in RGB of the colour of a whole shape from its mean over the clip."""

    name: str = "colour_constancy"
    unit: ClassVar[str] = "levels of 255"
    better: ClassVar[Better] = "low"

    def cases(self, clip: Clip) -> Sequence[Case]:
        results = []
        for body in clip.tracks.bodies if clip.tracks else ():
            rgb_T3 = body.rgb_T3[body.is_whole]
            if len(rgb_T3) >= MIN_FRAMES:
                results.append(Case(float(np.sqrt(((rgb_T3 - rgb_T3.mean(0)) ** 2).sum(1).mean()))))
        return results
