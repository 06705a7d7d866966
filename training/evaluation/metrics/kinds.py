"""kinds: whether each shape that the caption names is there with its colour and its form."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class Kinds(MetricSettings):
    """Looks for each named shape: 1 if a shape has its colour and form, else 0.

    A shape of the right colour that is never seen whole, so that its form cannot be told, is not judged.
    """

    name: str = "kinds"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None:
            return ()
        bodies = clip.tracks.bodies
        found = [(body.colour, body.kind) for body in bodies]
        unseen = [body.colour for body in bodies if body.kind is None and not body.is_whole.any()]
        return [Case(float((colour, kind) in found)) for colour, kind in clip.expected.bodies if colour not in unseen]
