"""Colour profiles (ICC) of still images: conversion to sRGB with littleCMS."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Pillow's mode of an image in a profile's colour space; profiles of other spaces are ignored."""

CONVERTIBLE = frozenset({("L", "RGB")})
"""Pairs of an image's mode and a profile's that differ and still fit: grey images are often saved with the profile of
their RGB original."""

SAME_LEVELS = 1
"""Largest change of any 8-bit value by a profile that is taken for sRGB, whose many variants differ by rounding. Pixels
then stay as they are, which saves the conversion of most images."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB from its profile to sRGB, in RGB, as littleCMS does by default.

    A profile that is damaged, or of another colour space than the image, is ignored, as viewers do. LAB without a
    profile is CIELAB.
    """
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is None:
        return image.convert("RGB")
    mode, to_rgb = transform
    converted = to_rgb.apply(image if image.mode == mode else image.convert(mode))
    assert converted is not None
    return converted


@lru_cache(maxsize=64)
def _transform(profile: bytes | None, mode: str) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """Return the mode that images of `mode` are converted from, and the transform; None if there is none to apply.

    Images of one camera or program share a profile, and a transform takes longer to make than a small image to convert.
    """
    try:
        if mode == "LAB":
            # Lab as Pillow stores it; a profile could name no other space.
            source, profile_mode = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
            profile_mode = PROFILE_MODES.get(source.profile.xcolor_space.strip(), "")
        if profile_mode != mode and (mode, profile_mode) not in CONVERTIBLE:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), profile_mode, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    return (
        None
        if profile_mode in ("RGB", "L") and _changes_nothing(transform, profile_mode)
        else (profile_mode, transform)
    )


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform moves colours of a grid of all colours by rounding errors at most."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(9, 81, 3) if mode == "RGB" else steps[None]
    image = Image.fromarray(grid)
    converted = transform.apply(image)
    change = np.asarray(converted, np.int16) - np.asarray(image.convert("RGB"), np.int16)
    return bool(np.abs(change).max() <= SAME_LEVELS)
