"""The contract of a kind of invisible watermark: how frames are marked, and how the mark is found."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Protocol

from cluster.arrays import Pixels
from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Every command reads settings, and importing OpenCV takes 0.1 s.
    from training.sampling.watermark_detection import Detection

FOLDER = "training.sampling.watermarks"


class FrameMarker(Protocol):
    """The mark of one file: its key and its payload."""

    def mark(self, frame_HWC: Pixels, index: int, fps: float) -> Pixels:
        """Return an RGB frame, uint8 `[H, W, 3]`, with the mark; it is frame `index` of a video of `fps`."""


class WatermarkMethod(Plugin):
    """Settings of a kind of watermark, chosen by `name`. Each file in `training/sampling/watermarks/` has one subclass.

    A kind that needs a package or weights names in `missing` what is not there, so that a command ends before it loads
    a model.
    """

    has_payload: ClassVar[bool] = True
    """Whether the mark carries the payload of 32 bits, and not only shows that it is there."""
    min_pixels: ClassVar[int] = 1
    """Frames of fewer pixels cannot be marked."""

    def missing(self) -> str | None:
        """Return what is missing on this machine and how to add it, None if nothing is."""
        return None

    @abc.abstractmethod
    def marker(self, payload: int, key: bytes) -> FrameMarker:
        """Return what marks the frames of one file. Raises `ValueError` for weights that cannot be read."""

    @abc.abstractmethod
    def detect(self, frames: Iterable[tuple[float, Pixels]], key: bytes) -> Detection:
        """Look for the mark in frames, each a time in seconds and RGB values `[H, W, 3]`; an image is one frame at 0.

        The probability that files without the mark are said to have it is at most `FALSE_POSITIVES`. Raises
        `ValueError` for weights that cannot be read.
        """

    def check_size(self, width: int, height: int) -> None:
        """Raise `ValueError` for a size in pixels that cannot be marked."""
        if width * height < self.min_pixels:
            raise ValueError(
                f"watermark_method {self.name}: frames of {width}x{height} are too small; it needs {self.min_pixels} "
                f"pixels, as {math.isqrt(self.min_pixels)}x{math.isqrt(self.min_pixels)} has; take spread_spectrum or "
                "a larger size"
            )
