"""Read, resize and write still images with Pillow: upright, in sRGB, at the requested size."""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from cluster import storage
from cluster.arrays import Pixels
from pipelines.video.colour_profiles import to_srgb
from pipelines.video.content_hash import content_hash
from pipelines.video.decode import MAX_PIXELS, DecodeError, decode_error
from pipelines.video.scale import Box, scaled_size

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "QOI", "TGA")
"""Formats that are read, whatever the file's name. Others are refused: PostScript would be run by Ghostscript, and
metafiles by Windows."""

MAX_IMAGE_BYTES = 8 * MAX_PIXELS
"""Largest file of an image that is read, 512 MiB: `MAX_PIXELS` of 4 channels of 16 bits, without compression."""

MAX_METADATA_BYTES = 4 << 20
"""Largest block of metadata beside the pixels, such as a colour profile (ICC) or EXIF. Profiles of printers are the
largest that are used, about 3 MB; in JPEG a block of EXIF has at most 64 kB."""

ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
"""Formats in which several images are an animation; in others they are pages or previews."""

GREY_MAXIMA = (255, 2**16 - 1, 2**32 - 1)
"""White of grey images of 8, 16 and 32 bits."""

SAMPLE_FORMAT, SIGNED = 339, 2
"""TIFF tag of the kind of numbers, and its value for signed integers."""

_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions that Pillow's readers raise for damaged files."""


def read_image(uri: str) -> Image.Image:
    """Decode an image to sRGB, rotated as its EXIF orientation asks, transparent parts over white.

    It is the first image of a file with several. The only `info` of the image is the `codec` and the `content_hash` of
    the file. Raises `DecodeError`, which a file or an image over the bounds above gets before it is read or decoded.
    """
    try:
        data = storage.read_bytes(uri, MAX_IMAGE_BYTES)
    except storage.TooLargeError as error:
        raise DecodeError(str(error)) from error
    try:
        with _open_image(io.BytesIO(data)) as image:
            codec = (image.format or "").lower()
            upright = _to_rgb(ImageOps.exif_transpose(_to_eight_bits(image)))
    except _READ_ERRORS as error:
        raise decode_error(uri, error) from error
    # Whoever writes the image must not add the profile that it was converted from.
    upright.info = {"codec": codec, "content_hash": content_hash([data])}
    return upright


def is_still_image(uri: str) -> bool:
    """Return whether a file can be read and its content, whatever its name, is an image that is not animated."""
    try:
        with storage.open_input(uri) as handle, _open_image(handle) as image:
            return not (image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False))
    except _READ_ERRORS:
        return False


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


def _open_image(file: IO[bytes]) -> Image.Image:
    """Read the header of an image of one of `FORMATS`.

    Raises `UnidentifiedImageError` for any other file, and `ValueError` for an image over the bounds.
    """
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"none of the formats that are read: {', '.join(FORMATS)}; convert it") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"the image is {image.width}x{image.height}, more than {MAX_PIXELS} pixels; scale it down")
    for name, value in image.info.items():
        if isinstance(value, bytes | str) and len(value) > MAX_METADATA_BYTES:
            raise ValueError(f"{name} has {len(value):,} bytes, more than {MAX_METADATA_BYTES:,}; remove it")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        *colours, alpha = image.convert("LA" if image.mode in ("L", "LA") else "RGBA").split()
        layer = to_srgb(Image.merge("RGB" if len(colours) == 3 else "L", colours), profile)
        layer.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return to_srgb(image, profile)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return an opened image, in 8 bits if it is grey with 16 or 32, which Pillow would clip to 255.

    White is 65535 in 16 bits. A file does not tell what white is in 32 bits: integers are taken for 8, 16 or 32 bits,
    the fewest that hold them, and floats that are not larger than 1 for 0 to 1. Negative values, and those that are not
    finite, are black.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values: NDArray[np.float64] = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
    if isinstance(image, TiffImageFile) and image.mode == "I" and SIGNED not in image.tag_v2.get(SAMPLE_FORMAT, ()):
        values = np.where(values < 0, values + 2**32, values)
    if image.mode.startswith("I;16") or image.format == "PPM":
        white = GREY_MAXIMA[1]
    else:
        maxima = (1, *GREY_MAXIMA) if image.mode == "F" else GREY_MAXIMA
        white = next((white for white in maxima if values.max(initial=0) <= white), GREY_MAXIMA[-1])
    grey = Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey
