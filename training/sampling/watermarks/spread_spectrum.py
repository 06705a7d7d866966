"""Our own watermark, which needs no network and works from 64x48 pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.arrays import Pixels
from training.sampling.watermark_method import FrameMarker, WatermarkMethod

if TYPE_CHECKING:
    from training.sampling.watermark_detection import Detection


class SpreadSpectrum(WatermarkMethod):
    """Settings of the spread-spectrum mark over space and time of `training/sampling/watermark.py`."""

    name: str = "spread_spectrum"

    def marker(self, payload: int, key: bytes) -> FrameMarker:
        from training.sampling.watermark import Watermark

        return Watermark(payload, key)

    def detect(self, frames: Iterable[tuple[float, Pixels]], key: bytes) -> Detection:
        from training.sampling.watermark_detection import detect

        return detect(frames, key)
