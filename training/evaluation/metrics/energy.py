"""energy: the share of their energy that two shapes keep when they collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from training.evaluation.kinematics import judged_collisions
from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.truth import World


class Energy(MetricSettings):
    """Divides the energy of two shapes after a collision by that before; mass is area, and spin does not count.

    Each collision counts with its energy before, so the mean is the sum of energies after over the sum before. Drawn
    collisions are elastic. Falling shapes are not judged.
    """

    name: str = "energy"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        results = []
        for one in judged_collisions(clip):
            masses = np.array(one.masses)
            before, after = (float(masses @ (speeds**2).sum(1)) for speeds in (one.before, one.after))
            if before > 0:
                results.append(Case(after / before, before))
        return results

    def target(self, world: World) -> float | None:
        return 1.0
