"""Read, resize and write still images with Pillow: upright, in RGB, at the requested size."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from cluster import storage
from cluster.arrays import Pixels
from pipelines.video.content_hash import content_hash
from pipelines.video.decode import decode_error
from pipelines.video.scale import Box, scaled_size

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions that Pillow's readers raise for damaged files."""


def read_image(uri: str) -> Image.Image:
    """Decode an image to RGB, rotated as its EXIF orientation asks, transparent parts over white. Raises `DecodeError`.

    The `info` of the image has the `codec` and the `content_hash` of the file.
    """
    data = storage.read_bytes(uri)
    try:
        with Image.open(io.BytesIO(data)) as image:
            codec = (image.format or "").lower()
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except _READ_ERRORS as error:
        raise decode_error(uri, error) from error
    upright.info["codec"], upright.info["content_hash"] = codec, content_hash([data])
    return upright


def resize_image(image: Image.Image, box: Box, width: int, height: int) -> Pixels:
    """Return a box of an image as uint8 `[height, width, 3]`, antialiased (Lanczos).

    Raises `ValueError` for a box outside the image.
    """
    scaled_size(image.width, image.height, box, width, height)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box), np.uint8)


def fit_long_side(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Return the (width, height) of the same aspect whose longer side is `long_side`."""
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode_jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """Encode a uint8 `[H, W, 3]` RGB image as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip to 255.
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
