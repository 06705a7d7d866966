"""Still images through Pillow: upright, in RGB, at the size they are needed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from cluster import storage
from pipelines.video.content import content_hash
from pipelines.video.errors import decode_error
from pipelines.video.scale import Box, Pixels, scaled_size

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow's readers raise for damaged files."""


def read_image(uri: str) -> Image.Image:
    """Decode an image to RGB, turned as its EXIF says, transparent parts over white. Raises `DecodeError`.

    Its `info` has the `codec` and the `content_hash` of the file.
    """
    data = storage.read_bytes(uri)
    try:
        with Image.open(io.BytesIO(data)) as image:
            codec = (image.format or "").lower()
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise decode_error(uri, error) from error
    upright.info["codec"], upright.info["content_hash"] = codec, content_hash([data])
    return upright


def resize_image(image: Image.Image, box: Box, width: int, height: int) -> Pixels:
    """A box of an image as uint8 `[height, width, 3]`, antialiased (Lanczos). Raises `ValueError` for a box outside of it."""
    scaled_size(image.width, image.height, box, width, height)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box), np.uint8)


def with_long_side(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) with this long side and the same aspect."""
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """A uint8 `[H, W, 3]` RGB picture as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow itself would clip to 255.
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
