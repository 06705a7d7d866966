"""Orientation of a stream's frames: how a decoded frame becomes upright, read from the display matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from cluster.arrays import UInt8Array


@dataclass(frozen=True)
class Orientation:
    """A rotation counter-clockwise, then perhaps a flip from left to right, which make a decoded frame upright.

    Frames are rotated by the nearest multiple of 90 degrees: the eight orientations of QuickTime and of EXIF.
    """

    rotation_deg: int = 0
    mirrored: bool = False

    @property
    def sideways(self) -> bool:
        """Whether width and height of an upright frame are those of the decoded frame exchanged."""
        return self.quarter_turns % 2 == 1

    @cached_property
    def quarter_turns(self) -> int:
        """Number of rotations by 90 degrees counter-clockwise, 0 to 3."""
        return round(self.rotation_deg / 90) % 4

    def upright(self, image: UInt8Array) -> UInt8Array:
        """Return an image `[H, W]` or `[H, W, 3]` as displayed. One that is upright already is not copied."""
        turned = np.rot90(image, self.quarter_turns) if self.quarter_turns else image
        turned = turned[:, ::-1] if self.mirrored else turned
        return image if turned is image else np.ascontiguousarray(turned)


UPRIGHT = Orientation()


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation in a frame's display matrix; that of an upright frame if it has none, or a singular one.

    PyAV's `frame.rotation` is the angle alone, which shows matrices with a flip (determinant < 0) the wrong way round.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    # libavutil/display.h: (x, y), y downwards, is displayed at (a x + c y, b x + d y); rows of three in 16.16 bits.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if not (scale_x := math.hypot(a, c)) or not (scale_y := math.hypot(b, d)):
        return UPRIGHT
    mirrored = a * d - b * c < 0
    return Orientation(-round(math.degrees(math.atan2(b / scale_y, (-a if mirrored else a) / scale_x))), mirrored)
