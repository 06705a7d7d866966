"""Reading the files that sampling wrote: one frame of each for a contact sheet, all frames for a grid or a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
from PIL import Image, ImageSequence

from cluster import storage
from cluster.arrays import Pixels
from training.sampling.grid import video_grid
from training.sampling.media import Finish, write_png, write_video
from training.sampling.provenance import read_provenance

FORMATS = ("PNG", "GIF", "WEBP")
"""Formats of samples beside mp4, as Pillow names them."""


def middle_frame(uri: str) -> Image.Image:
    """Return the middle frame of a video or animation in RGB, or the image itself."""
    data = io.BytesIO(storage.read_bytes(uri))
    if not uri.endswith(".mp4"):
        with Image.open(data, formats=FORMATS) as image:
            image.seek(getattr(image, "n_frames", 1) // 2)
            return image.convert("RGB")
    with av.open(data, "r") as container:
        stream = container.streams.video[0]
        # The key frame before the middle is enough, and spares decoding half of a long video.
        if stream.duration:
            container.seek(stream.duration // 2, stream=stream)
        return Image.fromarray(next(container.decode(stream)).to_ndarray(format="rgb24"))


def read_frames(uri: str) -> Pixels:
    """Return all frames `[T, H, W, 3]` of a video, an animation or an image."""
    data = io.BytesIO(storage.read_bytes(uri))
    if not uri.endswith(".mp4"):
        with Image.open(data, formats=FORMATS) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    with av.open(data, "r") as container:
        return np.stack(
            [frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in container.decode(video=0)]
        )


def write_grid(uris: Sequence[str], grid_uri: str, finish: Finish | None = None) -> None:
    """Write samples side by side as one file, in the format of the URI's suffix; rates are those of their records.

    `finish` marks the file.
    """
    rates = [(read_provenance(uri) or {}).get("fps", 1.0) for uri in uris]
    grid_THWC, fps, _ = video_grid([read_frames(uri) for uri in uris], rates)
    if grid_uri.endswith(".png"):
        write_png(grid_uri, grid_THWC[0], finish)
    else:
        write_video(grid_uri, grid_THWC, fps, finish)
