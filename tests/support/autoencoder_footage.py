"""Footage for training an autoencoder: four videos, an image and a file that cannot be decoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from PIL import Image

from cluster.arrays import Pixels
from tests.support.videos import encode, sliding


def video_frames(number: int) -> Pixels:
    """Return the frames `[40, 64, 96, 3]` of a video, before they are encoded."""
    return sliding(40, 1.0 + number, 96, 64, seed=number)


def write_footage(folder: Path) -> Path:
    """Write `0.mp4` to `3.mp4` at 24 fps, `a.png` and `broken.mp4`, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        encode(folder / f"{number}.mp4", video_frames(number), time_base=Fraction(1, 24))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    Image.fromarray(sliding(1, 0, 64, 64, seed=9)[0]).save(folder / "a.png")
    return folder
