"""The shape of a sample: its number of frames, and whether it is one of those that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from training.data.buckets import parse_bucket_name
from training.sampling.settings import VideoShape


def outside_training(shape: VideoShape, buckets: Sequence[str]) -> str:
    """Return a sentence if a sample is longer, larger, smaller, wider or taller than all training samples; else ''.

    `buckets` are those of a model's card. Areas and aspects may differ from the nearest by a twentieth.
    """
    trained = [parse_bucket_name(bucket) for bucket in buckets]
    width, height, frames = shape.width, shape.height, shape.frames
    ranges: dict[str, tuple[float, list[float]]] = {
        "frames": (frames, [bucket_frames for _, _, bucket_frames in trained]),
        "pixels per frame": (width * height, [side * other for side, other, _ in trained]),
        "width by height": (width / height, [side / other for side, other, _ in trained]),
    }
    faults = [
        f"{name} {round(value, 2)}, trained on {round(min(found), 2)} to {round(max(found), 2)}"
        for name, (value, found) in ranges.items()
        if found and not min(found) / 1.05 <= value <= max(found) * 1.05
    ]
    if not faults:
        return ""
    return f"a sample of {width}x{height}x{frames} is outside what the model was trained on and may look worse: " + (
        "; ".join(faults)
    )


def n_frames(seconds: float, fps: float, time_factor: int) -> int:
    """Return the number of frames nearest to a length: 1 + k * time_factor with k >= 1; 1 for 0 seconds, an image."""
    if seconds == 0:
        return 1
    # T frames last until the last one begins, (T - 1) / fps, as for buckets.
    return 1 + time_factor * max(1, round(seconds * fps / time_factor))
