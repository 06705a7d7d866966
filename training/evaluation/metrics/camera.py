"""camera: whether the camera moves as the caption says."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metric import Case, Clip, MetricSettings


class CameraMoves(MetricSettings):
    """Compares the camera's move with the caption's: 1 if it is the same, else 0.

    Images, and clips in which the stripes of the background are too faint, are not judged.
    """

    name: str = "camera"

    def cases(self, clip: Clip) -> Sequence[Case]:
        if clip.tracks is None or clip.expected is None or clip.tracks.n_frames < 2 or not clip.tracks.camera.is_seen:
            return ()
        return (Case(float(clip.tracks.camera.move == clip.expected.camera)),)
