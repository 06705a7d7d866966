"""bounce: the share of its speed that a falling shape keeps when it bounces off the floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from training.evaluation.kinematics import bounces
from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.truth import World


class BounceSpeed(MetricSettings):
    """Fits the flights before and after each bounce, and divides the speeds at which they meet.

    Each bounce counts with its speed before, so the mean is the sum of speeds after over the sum of speeds before.
    """

    name: str = "bounce"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or clip.expected is None or clip.expected.action != "bounce" or not tracks.camera.is_seen:
            return ()
        return [
            Case(one.speed_after / one.speed_before, one.speed_before)
            for body in tracks.bodies
            for one in bounces(tracks, body)
        ]

    def target(self, world: World) -> float | None:
        return world.bounce
