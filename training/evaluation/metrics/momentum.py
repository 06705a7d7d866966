"""momentum: how much momentum is lost or gained when two shapes collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.kinematics import judged_collisions
from training.evaluation.metric import Better, Case, Clip, MetricSettings


class Momentum(MetricSettings):
    """Measures the change of momentum of two shapes that collide, over the sum of both momenta before; mass is area.

    Falling shapes are not judged, because gravity and the floor change their momentum.
    """

    name: str = "momentum"
    better: ClassVar[Better] = "low"

    def cases(self, clip: Clip) -> Sequence[Case]:
        results = []
        for one in judged_collisions(clip):
            masses = np.array(one.masses)
            change = masses @ (one.after - one.before)
            total = float(masses @ np.hypot(*one.before.T))
            if total > 0:
                results.append(Case(float(np.hypot(*change)) / total))
        return results
