"""colours: whether each shape that the caption names is there, by its colour."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class Colours(MetricSettings):
    """Looks for each named shape: 1 if a shape has its colour, else 0."""

    name: str = "colours"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None:
            return ()
        found = [body.colour for body in clip.tracks.bodies]
        results = []
        for colour, _ in clip.expected.bodies:
            results.append(Case(float(colour in found)))
            if colour in found:
                found.remove(colour)
        return results
