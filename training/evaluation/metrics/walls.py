"""walls: whether shapes stay within the walls and above the floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluation.camera import FLOOR_HEIGHT
from training.evaluation.metric import Case, Clip, MetricSettings

TOLERANCE = 0.06
CROPPED = 0.05
"""World units by which a shape may pass a wall: a bounce falls between two frames. Walls along the longer side may be
`CROPPED` outside: in 16:9 they are 0.89 from the middle, and a model's frames of 80x48 pixels end at 0.83."""


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
        _, half_x, half_y = tracks.room
        # The side walls of wide frames, and floor and ceiling of tall ones, may be outside.
        half_x, half_y = half_x + CROPPED * (half_x > half_y), half_y + CROPPED * (half_y > half_x)
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
