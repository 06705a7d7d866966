"""number: whether a clip shows as many shapes as its caption names."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class Number(MetricSettings):
    """Counts shapes: 1 if there are as many as the caption names, else 0."""

    name: str = "number"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None:
            return ()
        return (Case(float(len(clip.tracks.bodies) == len(clip.expected.bodies))),)
