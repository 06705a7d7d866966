"""permanence: whether shapes stay there, and neither vanish nor appear inside the frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.arrays import Float64Array
from training.evaluation.metric import Case, Clip, MetricSettings
from training.evaluation.tracker import BodyTrack, ClipTracks

HIDDEN = 0.8
"""A shape may be hidden by another whose centre is nearer than this many of its radii."""


class Permanence(MetricSettings):
    """Looks for each tracked shape in every frame: 1 if it is there throughout, else 0.

    A frame is excused where the shape would be outside, or behind another one, by its path before and after.
    """

    name: str = "permanence"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or tracks.n_frames < 2:
            return ()
        return [Case(float(_stays(tracks, body))) for body in tracks.bodies if body.is_placed.sum() >= 2]


def _stays(tracks: ClipTracks, body: BodyTrack) -> bool:
    missing_T = body.visible_T == 0
    if not missing_T.any():
        return True
    x_T, y_T = _path(body.x_T), _path(body.y_T)
    outside_T = (x_T < 0) | (x_T > tracks.width) | (y_T < 0) | (y_T > tracks.height)
    hidden_T = np.zeros(tracks.n_frames, bool)
    for other in tracks.bodies:
        if other is not body and other.is_whole.any():
            reach = HIDDEN * float(np.nanmedian(other.radius_T))
            hidden_T |= np.hypot(x_T - _path(other.x_T), y_T - _path(other.y_T)) < reach
    return not (missing_T & ~outside_T & ~hidden_T).any()


def _path(values_T: Float64Array) -> Float64Array:
    """Return positions in all frames: linear between known ones, and at constant speed before and after them."""
    known = np.flatnonzero(np.isfinite(values_T))
    frames = np.arange(len(values_T))
    path_T = np.interp(frames, known, values_T[known])
    if len(known) >= 2:
        first, second, before_last, last = known[0], known[1], known[-2], known[-1]
        start_speed = (values_T[second] - values_T[first]) / (second - first)
        end_speed = (values_T[last] - values_T[before_last]) / (last - before_last)
        path_T = np.where(frames < first, values_T[first] + start_speed * (frames - first), path_T)
        path_T = np.where(frames > last, values_T[last] + end_speed * (frames - last), path_T)
    return path_T
