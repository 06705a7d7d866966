"""Footage that was generated: by what a file says of itself, and by the invisible watermark of worldloom."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageSequence

from cluster import storage
from cluster.arrays import Pixels
from cluster.unreadable import unreadable_errors
from pipelines.video.decode import DecodeError, open_video
from pipelines.video.still_images import MAX_IMAGE_BYTES, is_still_image, read_image
from training.sampling.source_type import says_generated
from training.sampling.watermark_detection import MAX_S, detect

ANIMATIONS = (".gif", ".webp")


def is_generated(uri: str, watermark: bool = False) -> bool:
    """Return whether a file says, by credentials or XMP, that a model generated it or a part of it.

    With `watermark`, its first seconds are decoded and searched for the public watermark too. Raises `OSError` for a
    file that cannot be read and, with `watermark`, `DecodeError` for one that cannot be decoded.
    """
    with unreadable_errors(uri), storage.open_input(uri) as file:
        if says_generated(file):
            return True
    return watermark and detect(leading_frames(uri)).found


def leading_frames(uri: str) -> Iterator[tuple[float, Pixels]]:
    """Yield the frames `[H, W, 3]` of a video, animation or image with their times in seconds, up to `MAX_S`."""
    if is_still_image(uri):
        yield 0.0, np.asarray(read_image(uri))
    elif uri.lower().endswith(ANIMATIONS):
        yield from _animation_frames(uri)
    else:
        with open_video(uri) as video:
            info = video.info
            for decoded in video.decoded_frames():
                time_s = float((decoded.pts - info.start_pts) * info.time_base)
                if time_s >= MAX_S:
                    return
                yield time_s, video.to_array(decoded.frame, info.width, info.height)


def _animation_frames(uri: str) -> Iterator[tuple[float, Pixels]]:
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri, MAX_IMAGE_BYTES)), formats=("GIF", "WEBP")) as animation:
            time_s = 0.0
            for frame in ImageSequence.Iterator(animation):
                yield time_s, np.asarray(frame.convert("RGB"))
                time_s += frame.info.get("duration", 0) / 1000
    except (SyntaxError, ValueError, EOFError) as error:
        raise DecodeError(f"{uri}: {type(error).__name__}: {error}") from error
