"""Drawn images for tests of the video package: textures, what a camera sees of them, and short clips of soft
patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
from PIL import Image

from cluster.arrays import Pixels, UInt8Array
from pipelines.video.motion import MotionMeter, PairMotion
from tests.support.videos import sliding


def blots(seed: int = 0, width: int = 1280, height: int = 720) -> UInt8Array:
    """Draw blots of all sizes in grey, `[height, width]`; as in photographs, smaller ones have less contrast."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for size in (8, 16, 32, 64, 128, 256):
        coarse = rng.normal(0, 1, (size * height // width + 1, size)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (8 / size) ** 0.6
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def camera_view(
    image: UInt8Array, x: float = 0.0, y: float = 0.0, zoom: float = 1.0, rotation: float = 0.0
) -> UInt8Array:
    """Return an image of 128 x 72 that a camera sees which has moved.

    It has moved by (x, y) long sides to the right and up, is `zoom` times closer, and rotated clockwise by `rotation`
    rad.
    """
    height, width = image.shape
    scale = width * 0.7 / 128 / zoom
    c, s = scale * math.cos(rotation), scale * math.sin(rotation)
    centre = np.array([width / 2 + x * 128 * width * 0.7 / 128, height / 2 - y * 128 * width * 0.7 / 128])
    matrix = np.array([[c, -s, 0], [s, c, 0]])
    # Four samples a side for each pixel, then averaged, so that there are no aliases.
    matrix[:, :2] /= 8
    matrix[:, 2] = centre - matrix[:, :2] @ np.array([128 * 8 / 2, 72 * 8 / 2])
    large = cv2.warpAffine(
        image, matrix, (128 * 8, 72 * 8), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(cv2.resize(large, (128, 72), interpolation=cv2.INTER_AREA), np.uint8)


def soft_patches(n: int, seed: int) -> Pixels:
    """Draw n frames of soft random colours that move right, `[n, 96, 160, 3]`: mostly low frequencies, as photographs
    are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 13, 3)).astype(np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((208, 96), Image.Resampling.BICUBIC))
    return np.stack([wide[:, k : k + 160] for k in range(n)])


def tinted(n: int, colour: tuple[int, int, int], seed: int = 0) -> Pixels:
    """Draw n frames of a texture in one colour that slides by a pixel per frame, `[n, 96, 160, 3]`."""
    return (sliding(n, 1.0, 160, 96, seed) * (np.array(colour) / 255)).astype(np.uint8)


def motions_of(images: Sequence[UInt8Array], fps: int) -> list[PairMotion]:
    """Measure the motion of luma images `[H, W]` shown at a frame rate; PTS count frames."""
    meter = MotionMeter(Fraction(1, fps))
    motions = [meter.push(pts, image) for pts, image in enumerate(images)]
    return [motion for motion in motions if motion is not None]


def quarters(width: int = 64, height: int = 48) -> Pixels:
    """Draw an image with a red, a green, a blue and a black quarter, in reading order."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (240, 20, 20)
    image[: height // 2, width // 2 :] = (20, 240, 20)
    image[height // 2 :, : width // 2] = (20, 20, 240)
    return image
