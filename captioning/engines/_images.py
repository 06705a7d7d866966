"""Convert the JPEG files of a question to what engines take: RGB images, a video, or items of a chat message."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from cluster.arrays import Pixels

TICKS_PER_S = 1000
"""Nominal frame rate of the videos that models see. An image at time s is frame s * TICKS_PER_S of its video, so uneven
times are exact to a millisecond."""


def size(jpeg: bytes) -> tuple[int, int]:
    """Return width and height from the header of a file. Raises `ValueError` if it cannot be read."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return image.size
    except Exception as error:
        raise ValueError(f"an image cannot be read: {type(error).__name__}: {error}") from error


def decode(jpeg: bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image to RGB, and scale it down to at most `max_pixels` pixels in its own aspect ratio.

    Raises `ValueError` if the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as file:
            image = file.convert("RGB")
    except Exception as error:
        raise ValueError(f"an image cannot be decoded: {type(error).__name__}: {error}") from error
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    return image.resize(
        (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BICUBIC, reducing_gap=3.0
    )


def stack_frames(images: Sequence[Image.Image]) -> Pixels:
    """Return images as a video `[n, H, W, 3]`. Raises `ValueError` if they differ in size."""
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"images of one video differ in size: {sorted(sizes)}")
    return np.stack([np.asarray(image) for image in images])


def video_metadata(image_times_s: Sequence[float], n: int) -> dict[str, Any]:
    """Return the fields of `transformers.video_utils.VideoMetadata` for `n` images at these times.

    The duration is `n` times the mean interval between two images, so that `n / duration` is their frame rate. Raises
    `ValueError` if there is not one time per image, or if the times are negative or not in order.
    """
    if (
        len(image_times_s) != n
        or any(later < earlier for earlier, later in pairwise(image_times_s))
        or min(image_times_s) < 0
    ):
        raise ValueError(f"{n} images of a video need as many times from 0 on, in order; got {list(image_times_s)}")
    interval_s = (image_times_s[-1] - image_times_s[0]) / max(n - 1, 1) or 1 / TICKS_PER_S
    duration_s = interval_s * n
    return {
        "fps": float(TICKS_PER_S),
        "frames_indices": [round(time_s * TICKS_PER_S) for time_s in image_times_s],
        "total_num_frames": max(1, round(duration_s * TICKS_PER_S)),
        "duration": duration_s,
    }


def chat_items(images: Sequence[bytes], as_video: bool, detail: str | None = None) -> list[dict[str, Any]]:
    """Return JPEG files as content items of a message of OpenAI's chat completions.

    With `as_video`, several images are one item of type video/jpeg, which vLLM accepts. Each image has `detail`.
    """
    encoded = [base64.b64encode(image).decode() for image in images]
    if as_video and len(encoded) > 1:
        return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(encoded)}"}}]
    options = {"detail": detail} if detail else {}
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}", **options}} for image in encoded
    ]
