"""Faces and uncovered parts of bodies in an image: the outputs of NudeNet's detector, a YOLOv8 network.

Shape legend: A anchors of the network (2,100 for an input of 320 x 320), C classes, K detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Float32Array, Pixels

CLASSES = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
"""The network's classes, in the order of its outputs; the file's own metadata lists them."""

NSFW = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
"""The classes that count as nudity. Bare feet, armpits, bellies and men's chests do not: footage of beaches is full
of them."""

FACES = ("FACE_FEMALE", "FACE_MALE")

INPUT_PX = 320
"""Side of the square input, in pixels, that the network was trained at."""

MAX_OVERLAP = 0.45
"""Largest intersection over union of two boxes that are both kept: NudeNet's own value. Above it, the one of the
lower score is dropped."""

Floats = NDArray[np.floating[Any]]

_NSFW = [CLASSES.index(name) for name in NSFW]
_FACES = [CLASSES.index(name) for name in FACES]


@dataclass(frozen=True)
class Detections:
    """The highest score of nudity in an image, in [0, 1], and each face's share of the image's area."""

    nsfw: float
    face_areas: tuple[float, ...]


def to_input(image: Pixels) -> Float32Array:
    """Return the network's input `[3, INPUT_PX, INPUT_PX]`, RGB in [0, 1].

    The image is in the upper left corner of a black square.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
    resized = cv2.resize(square, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32) / np.float32(255)


def detections_of(output: Float32Array, height: int, width: int, confidence: float) -> Detections:
    """Return the detections in the network's output `[4 + C, A]` for an image of this size in pixels.

    Faces with a score below `confidence` do not count.
    """
    boxes_A4, scores_AC = output[:4].T, output[4:].T
    best = scores_AC.argmax(axis=1)
    faces = np.flatnonzero(np.isin(best, _FACES) & (scores_AC.max(axis=1) >= confidence))
    centre, size = boxes_A4[faces, :2], boxes_A4[faces, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * (max(height, width) / INPUT_PX)
    corners = corners.clip(0, (width, height, width, height))
    kept = suppress_overlaps(corners, scores_AC[faces].max(axis=1))
    shares = (corners[kept, 2:] - corners[kept, :2]).prod(axis=1) / (height * width)
    return Detections(float(scores_AC[:, _NSFW].max()), tuple(float(share) for share in shares))


def suppress_overlaps(corners_K4: Floats, scores_K: Floats) -> list[int]:
    """Return the indices of the boxes (x0, y0, x1, y1) that are left by non-maximum suppression, highest score first.

    A box is dropped if it overlaps a kept one of a higher score by more than `MAX_OVERLAP`.
    """
    kept: list[int] = []
    for i in np.argsort(-scores_K, kind="stable").tolist():
        if all(_overlap(corners_K4[i], corners_K4[j]) <= MAX_OVERLAP for j in kept):
            kept.append(i)
    return kept


def _overlap(a: Floats, b: Floats) -> float:
    """Return the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))
