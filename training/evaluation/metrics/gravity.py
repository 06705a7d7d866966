"""gravity: the acceleration of falling shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from training.evaluation.kinematics import flights
from training.evaluation.metric import Better, Case, Clip, MetricSettings
from training.evaluation.truth import World


class Gravity(MetricSettings):
    """Fits the acceleration of free flights between bounces, where the caption says that shapes fall.

    Each flight counts with the inverse variance of its fit, so the mean is the fit over all falls.
    """

    name: str = "gravity"
    unit: ClassVar[str] = "short sides / s²"
    better: ClassVar[Better] = "real"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or clip.expected is None or clip.expected.action != "bounce":
            return ()
        if not (tracks.camera.is_seen and tracks.camera.scale_is_seen):
            return ()
        return [
            Case(flight.acceleration, flight.information) for body in tracks.bodies for flight in flights(tracks, body)
        ]

    def target(self, world: World) -> float | None:
        return world.gravity
