"""JPEG pictures of a question as an engine takes them. A picture is RGB, an array of them uint8 `[n, H, W, 3]`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TICKS_PER_S = 1000
"""Times are told as frame numbers of a video of this many frames a second, so that they are exact to a millisecond however uneven."""


def size(jpeg: bytes) -> tuple[int, int]:
    """Width and height, from the file's header. Raises `ValueError` where it is none."""
    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            return picture.size
    except Exception as error:
        raise ValueError(f"a picture cannot be read: {type(error).__name__}: {error}") from error


def decode(jpeg: bytes, max_pixels: int | None = None) -> Image.Image:
    """The picture, scaled down to at most `max_pixels` pixels in its own aspect. Raises `ValueError` where it is damaged."""
    try:
        with Image.open(io.BytesIO(jpeg)) as file:
            picture = file.convert("RGB")
    except Exception as error:
        raise ValueError(f"a picture cannot be decoded: {type(error).__name__}: {error}") from error
    width, height = picture.size
    if max_pixels is None or width * height <= max_pixels:
        return picture
    scale = math.sqrt(max_pixels / (width * height))
    return picture.resize(
        (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BICUBIC, reducing_gap=3.0
    )


def video(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Pictures as one array. Raises `ValueError` where they differ in size."""
    sizes = {picture.size for picture in images}
    if len(sizes) > 1:
        raise ValueError(f"pictures of one video differ in size: {sorted(sizes)}")
    return np.stack([np.asarray(picture) for picture in images])


def video_metadata(image_times_s: Sequence[float], n: int) -> dict[str, Any]:
    """What `transformers.video_utils.VideoMetadata` holds, of `n` pictures shown at `image_times_s`.

    Each picture stands for the mean interval between two, so that `n / duration` is the rate at which they were taken. Raises
    `ValueError` where there is not a time for each picture, in order.
    """
    if len(image_times_s) != n or any(late < early for early, late in pairwise(image_times_s)) or min(image_times_s) < 0:
        raise ValueError(f"{n} pictures of a video need as many times from 0 on, in order; got {list(at_s)}")
    interval_s = (image_times_s[-1] - image_times_s[0]) / max(n - 1, 1) or 1 / TICKS_PER_S
    duration_s = interval_s * n
    return {
        "fps": float(TICKS_PER_S),
        "frames_indices": [round(moment_s * TICKS_PER_S) for moment_s in image_times_s],
        "total_num_frames": max(1, round(duration_s * TICKS_PER_S)),
        "duration": duration_s,
    }
