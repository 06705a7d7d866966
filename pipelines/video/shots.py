"""Where one shot ends and the next begins: PySceneDetect's detectors, fed frame by frame from the one decode pass."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import FlashFilter, SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

DetectorName = Literal["adaptive", "content"]

LATENCY = 2
"""A cut is reported at most this many frames late: the adaptive detector looks at two frames on either side."""


class ShotDetector:
    """Finds hard cuts. Gradual transitions are found where their frames differ enough, and belong to the shot before.

    `threshold` None is PySceneDetect's default: 3.0 times the change of the frames around (adaptive), or a change of 27 in
    mean HSV distance (content). No shot is shorter than `min_shot_s`, measured in real time, whatever the frame rate.
    """

    def __init__(self, name: DetectorName, threshold: float | None, min_shot_s: float, time_base: Fraction, fps: float | None) -> None:
        self._detector = _detector(name, threshold, min_shot_s)
        self._time_base = time_base
        # PySceneDetect needs some rate for frame numbers; all that is compared here are times.
        self._rate = Fraction(fps or 25.0).limit_denominator(1001)
        self._start_pts: int | None = None

    def push(self, pts: int, bgr: NDArray[np.uint8]) -> list[int]:
        """Take the next frame, uint8 `[H, W, 3]` blue-green-red: the PTS of first frames of new shots that are certain now."""
        if self._start_pts is None:
            self._start_pts = pts
        # From zero: a negative PTS is legal in a file and refused as a timecode.
        code = FrameTimecode(Timecode(pts - self._start_pts, self._time_base), self._rate)
        return [cut.pts + self._start_pts for cut in self._detector.process_frame(code, bgr)]


def _detector(name: DetectorName, threshold: float | None, min_shot_s: float) -> SceneDetector:
    if name == "adaptive":
        return AdaptiveDetector(**({} if threshold is None else {"adaptive_threshold": threshold}), min_scene_len=float(min_shot_s))
    # SUPPRESS decides at once; MERGE moves cuts after the fact, when the frames beside them are gone.
    options = {"min_scene_len": float(min_shot_s), "filter_mode": FlashFilter.Mode.SUPPRESS}
    return ContentDetector(**options) if threshold is None else ContentDetector(threshold=threshold, **options)
