"""solidity: whether shapes that meet bounce off each other rather than pass through."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.kinematics import near_approaches
from training.evaluation.metric import Case, Clip, MetricSettings

MIN_DISTANCE = 0.65
"""Smallest distance of two centres over the sum of their radii; drawn shapes turn back at 0.85 to 1."""


class Solidity(MetricSettings):
    """Judges each near approach of two shapes: 1 if they stay apart, 0 if one goes into the other.

    Shapes that circle each other are not judged, because drawn ones may overlap.
    """

    name: str = "solidity"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or clip.expected is None or clip.expected.action == "circle" or not tracks.camera.is_seen:
            return ()
        return [Case(float(distance >= MIN_DISTANCE)) for distance in near_approaches(tracks)]
