"""background: whether the background has the colour that the caption names."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class BackgroundColour(MetricSettings):
    """Compares the background with the caption's: 1 if it is the same, else 0."""

    name: str = "background"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None:
            return ()
        return (Case(float(clip.tracks.background == clip.expected.background)),)
