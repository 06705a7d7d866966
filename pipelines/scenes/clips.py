"""Read clips of drawn footage as a model sees them, each with the state of every shape in its frames.

Shape suffixes: T frames, B bodies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster import storage
from cluster.arrays import Float32Array, Pixels
from pipelines.video.decode import open_video
from pipelines.video.scale import centre_crop
from pipelines.video.spans import FrameGrid, read_span
from training.evaluation.camera import Room
from training.evaluation.truth import FileTruth, ShotTruth, fitting_shape
from training.sampling.settings import VideoShape


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """A clip at a model's size and frame rate, with its truth."""

    file: FileTruth
    shot: ShotTruth
    frames_THWC: Pixels
    fps: float
    room: Room
    """The room that the file shows, in pixels of the clip."""
    states_TB3: Float32Array
    """x, y and angle of each body in each frame."""
    cameras_T3: Float32Array
    """x, y and zoom of the camera in each frame."""


def fitting_grid(file: FileTruth, shot: ShotTruth, grids: Sequence[FrameGrid]) -> FrameGrid | None:
    """Return the grid of the shape that `fitting_shape` finds; None if the shot fits none of them."""
    shapes = {VideoShape(grid.frames, grid.height, grid.width, grid.fps): grid for grid in grids}
    shape = fitting_shape(file, shot, tuple(shapes))
    return None if shape is None else shapes[shape]


def read_clips(folder_uri: str, files: Sequence[FileTruth], grids: Sequence[FrameGrid]) -> Iterator[DrawnClip]:
    """Yield the first clip of every shot that a grid fits, in the order of the files.

    Raises `DecodeError` for a file that cannot be decoded.
    """
    for file in files:
        for shot in file.shots:
            if (grid := fitting_grid(file, shot, grids)) is not None:
                yield read_clip(folder_uri, file, shot, grid)


def read_clip(folder_uri: str, file: FileTruth, shot: ShotTruth, grid: FrameGrid) -> DrawnClip:
    """Return the start of a shot, decoded, scaled and cropped as `encode` does. Raises `DecodeError`."""
    uri = storage.join(folder_uri, file.file)
    _, top, _, bottom = centre_crop(file.width, file.height, grid.width, grid.height)
    room = Room.of_frame(file.width, file.height)
    room = room._replace(unit_px=room.unit_px * grid.height / (bottom - top))
    if grid.frames == 1 and len(shot.states_FB3) == 1:
        span, indices = read_span(uri, 0, 1, grid, kind="image"), [0]
    else:
        with open_video(uri) as video:
            start_pts, time_base = video.info.start_pts, video.info.time_base
        first, last = (start_pts + round(frame / file.fps / time_base) for frame in (shot.start_frame, shot.end_frame))
        span = read_span(uri, first, last, grid)
        indices = [math.floor(k * file.fps / grid.fps + 1e-6) for k in range(grid.frames)]
    return DrawnClip(file, shot, span.frames, grid.fps, room, shot.states_FB3[indices], shot.cameras_F3[indices])
