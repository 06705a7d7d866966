"""walls: whether shapes stay within the walls and above the floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluation.camera import FLOOR_HEIGHT
from training.evaluation.metric import Case, Clip, MetricSettings

TOLERANCE = 0.06
"""World units by which a shape may pass a wall: frames are cropped by up to 0.03, and a bounce falls between frames."""


class Walls(MetricSettings):
    """Compares positions with the walls, the edges of the frame at zoom 1: 1 for each shape that stays within.

    Where the caption says that shapes fall, the floor counts too. The side walls are not judged in a pan, whose start
    is unknown; clips whose camera or scale cannot be seen are not judged.
    """

    name: str = "walls"

    def cases(self, clip: Clip) -> Sequence[Case]:
        tracks = clip.tracks
        if tracks is None or tracks.n_frames < 2 or not (tracks.camera.is_seen and tracks.camera.scale_is_seen):
            return ()
        half_x, half_y = tracks.width / tracks.unit_px / 2, tracks.height / tracks.unit_px / 2
        floor = FLOOR_HEIGHT if clip.expected and clip.expected.action == "bounce" else 0.0
        results = []
        for body in tracks.bodies:
            if not body.is_whole.any():
                continue
            radius = float(np.nanmedian(tracks.world_radius(body)))
            x_T, y_T = tracks.world_xy(body)[body.is_placed].T
            kept = (y_T - radius >= -half_y - TOLERANCE).all() and (y_T + radius <= half_y - floor + TOLERANCE).all()
            if tracks.camera.move in ("still", "zoom_in", "zoom_out"):
                kept = kept and (np.abs(x_T) + radius <= half_x + TOLERANCE).all()
            results.append(Case(float(kept)))
        return results
