"""Faces and uncovered parts of bodies in a picture: the outputs of NudeNet's detector, a YOLOv8 network.

Shape legend: A places the network looks at (2,100 for an input of 320 x 320), C classes, K detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.scale import Pixels

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
"""What the network tells apart, in the order of its outputs; the file's own metadata lists them."""

NSFW = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
"""The classes that count as nudity. Bare feet, armpits, bellies and men's chests do not: a beach is full of them."""

FACES = ("FACE_FEMALE", "FACE_MALE")

SIDE = 320
"""Side of the square input, in pixels, that the network was trained at."""

OVERLAP = 0.45
"""Of two boxes whose intersection is more than this share of their union, the less sure one is dropped: NudeNet's own value."""

Floats = NDArray[np.floating[Any]]

_NSFW = [CLASSES.index(name) for name in NSFW]
_FACES = [CLASSES.index(name) for name in FACES]


@dataclass(frozen=True)
class People:
    """What is in a picture: the highest score of nudity in [0, 1], and each face's share of the picture's area."""

    nsfw: float
    faces: tuple[float, ...]


def to_input(picture: Pixels) -> NDArray[np.float32]:
    """`[3, SIDE, SIDE]` RGB in [0, 1]: the picture in the upper left of a black square."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(picture, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
    resized = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32) / np.float32(255)


def people_of(output: NDArray[np.float32], height: int, width: int, confidence: float) -> People:
    """From the network's output `[4 + C, A]` for a picture of this size; faces are those of at least this confidence."""
    boxes_A4, scores_AC = output[:4].T, output[4:].T
    best = scores_AC.argmax(axis=1)
    sure = np.flatnonzero(np.isin(best, _FACES) & (scores_AC.max(axis=1) >= confidence))
    centre, size = boxes_A4[sure, :2], boxes_A4[sure, 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * (max(height, width) / SIDE)
    corners = corners.clip(0, (width, height, width, height))
    kept = apart(corners, scores_AC[sure].max(axis=1))
    shares = (corners[kept, 2:] - corners[kept, :2]).prod(axis=1) / (height * width)
    return People(float(scores_AC[:, _NSFW].max()), tuple(float(share) for share in shares))


def apart(corners_K4: Floats, scores_K: Floats) -> list[int]:
    """The boxes (x0, y0, x1, y1) that overlap no surer one that is kept by more than `OVERLAP`, the surest first."""
    kept: list[int] = []
    for i in np.argsort(-scores_K, kind="stable").tolist():
        if all(_overlap(corners_K4[i], corners_K4[j]) <= OVERLAP for j in kept):
            kept.append(i)
    return kept


def _overlap(a: Floats, b: Floats) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))
