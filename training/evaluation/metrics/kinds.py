"""kinds: whether each shape that the caption names is there with its colour and its form."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class Kinds(MetricSettings):
    """Looks for each named shape: 1 if a shape has its colour and form, else 0.

    A shape of the right colour whose form the tracker cannot tell is not judged.
    """

    name: str = "kinds"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None:
            return ()
        found = [(body.colour, body.kind) for body in clip.tracks.bodies]
        return [
            Case(float((colour, kind) in found)) for colour, kind in clip.expected.bodies if (colour, None) not in found
        ]
