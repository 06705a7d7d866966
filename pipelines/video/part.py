"""A part of a video, and the size and frame rate at which it is read."""

from __future__ import annotations

from pydantic import Field

from cluster.config import Settings


class VideoPart(Settings):
    """Which part of a video is read, and at which size and frame rate; None is the video's own."""

    start_s: float = Field(0.0, ge=0, allow_inf_nan=False, description="Start in seconds.")
    frames: int | None = Field(
        None, ge=1, description="Exactly this many frames, which the autoencoder must take; by default all full groups."
    )
    size: int | None = Field(None, ge=1, description="Shorter side in pixels; the video's own by default.")
    fps: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Frames per second; the video's own by default."
    )
