"""Where text is in a picture: a network's probability map turned into boxes, and which of them stay where they are.

The network is PP-OCR's detector with differentiable binarisation (Liao et al., 'Real-time Scene Text Detection with
Differentiable Binarization', 2020). It draws text regions shrunk, and the boxes found are grown back.

Shape legend: H, W the network's input, multiples of 32; h, w the picture; K boxes; T pictures of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.video.scale import Pixels

MULTIPLE = 32
"""The network halves the picture five times."""

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
"""Of the channels in [0, 1], in the order they go in: PP-OCR's own. With 0.5 and 0.5, which rapidocr takes, two of 33 clips of film
without text come out as text from edge to edge; with these none of them does."""

INK = 0.3
"""Probability from which a pixel belongs to text: PP-OCR's `thresh`."""

GROW = 1.6
"""Boxes are grown on each side by area / perimeter times this, which undoes the shrinking: PP-OCR's `unclip_ratio`."""

SMALLEST = 3
"""Short side, in pixels of the input, of the smallest region that is taken for text: PP-OCR's `min_size`."""

LARGEST = 0.6
"""Boxes whose short side is more than this share of the picture's are none of text: blurred or blocky pictures come out as one box from
edge to edge, of a score up to 0.87 and so no less sure than subtitles."""

LINE = 2.5
"""A region is long, as a line of text is, from this ratio of its sides. On clips without text, regions of a score of 0.5 and more (faces, hands)
have 1.1 to 2.1, and subtitles 10 to 30."""

STAYS = 0.5
"""A box stays where text covers this share of it in the picture before or after as well."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Text:
    """Text in one picture: `boxes` `[K, 4, 2]` corners in pixels of the network's input, `scores` `[K]` in [0, 1], `shape` (H, W).

    `lengths` `[K]` is the long side of each region to its short one, before growing.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    lengths: NDArray[np.float32]
    shape: tuple[int, int]

    def over(self, line: float, square: float) -> Text:
        """The boxes of at least these scores: long ones as lines of text are, and others."""
        chosen = self.scores >= np.where(self.lengths >= LINE, line, square)
        return Text(self.boxes[chosen], self.scores[chosen], self.lengths[chosen], self.shape)

    def masks(self) -> list[Mask]:
        """`[H, W]` for each box: the pixels in it."""
        return [_filled(box, self.shape) for box in self.boxes]


def input_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(H, W) at which a picture goes in: its long side at most `long_side`, both rounded to multiples of 32."""
    scale = min(1.0, long_side / max(height, width))
    return max(1, round(height * scale / MULTIPLE)) * MULTIPLE, max(1, round(width * scale / MULTIPLE)) * MULTIPLE


def to_input(picture: Pixels, size: tuple[int, int]) -> NDArray[np.float32]:
    """`[3, H, W]` blue, green, red, normalised as PP-OCR was trained."""
    resized = cv2.resize(
        picture, (size[1], size[0]), interpolation=cv2.INTER_AREA if size[1] <= picture.shape[1] else cv2.INTER_LINEAR
    )
    scaled = (resized[..., ::-1].astype(np.float32) / np.float32(255) - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def boxes_of(probability_HW: NDArray[np.float32]) -> Text:
    """Every region of text in a probability map, with the mean probability inside its box before growing."""
    ink = (probability_HW > INK).astype(np.uint8)
    # A dilation by 2 x 2 joins what is one pixel apart, as PP-OCR does.
    contours, _ = cv2.findContours(cv2.dilate(ink, np.ones((2, 2), np.uint8)), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes, scores, lengths = [], [], []
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < SMALLEST:
            continue
        inside = _filled(cv2.boxPoints((centre, (width, height), angle)), ink.shape)
        grow = GROW * width * height / (width + height)
        if min(width, height) + grow > LARGEST * min(ink.shape):
            continue
        boxes.append(cv2.boxPoints((centre, (width + grow, height + grow), angle)))
        scores.append(float(probability_HW[inside].mean()))
        lengths.append(max(width, height) / min(width, height))
    shape = (ink.shape[0], ink.shape[1])
    return Text(
        np.array(boxes, np.float32).reshape(-1, 4, 2),
        np.array(scores, np.float32),
        np.array(lengths, np.float32),
        shape,
    )


def area(masks: Sequence[Mask], shape: tuple[int, int]) -> float:
    """Share of the picture under the union of masks."""
    return float(np.mean(_union(masks, shape)))


def staying(pictures: Sequence[Text]) -> list[list[bool]]:
    """For each picture of a clip and each box in it, whether text is at its place in the picture before or after as well."""
    masks = [text.masks() for text in pictures]
    unions = [_union(found, text.shape) for found, text in zip(masks, pictures, strict=True)]

    def stays(mask: Mask, t: int) -> bool:
        beside = [unions[i] for i in (t - 1, t + 1) if 0 <= i < len(pictures)]
        return any(np.count_nonzero(mask & union) >= STAYS * np.count_nonzero(mask) for union in beside)

    return [[stays(mask, t) for mask in found] for t, found in enumerate(masks)]


def _union(masks: Sequence[Mask], shape: tuple[int, int]) -> Mask:
    union = np.zeros(shape, np.bool_)
    for mask in masks:
        union |= mask
    return union


def _filled(box: NDArray[np.float32], shape: Sequence[int]) -> Mask:
    mask = np.zeros(tuple(shape), np.uint8)
    cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    return mask.astype(np.bool_)
