"""Text in an image: a network's probability map turned into boxes, and which of these persist from image to image.

The network is PP-OCR's detector with differentiable binarisation (Liao et al., 'Real-time Scene Text Detection with
Differentiable Binarization', 2020). It draws text regions shrunk, and the boxes that are found are grown back.

Shape legend: H, W the network's input, multiples of 32; K boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cluster.arrays import BoolArray, Float32Array, Pixels

MULTIPLE = 32
"""Factor of the input's sides: the network halves the image five times."""

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
"""Mean and deviation of the channels in [0, 1], in the order of the input: PP-OCR's own. With 0.5 and 0.5, which
rapidocr takes, two of 33 clips of film without text come out as text from edge to edge; with these none of them
does."""

MIN_PROBABILITY = 0.3
"""Probability above which a pixel belongs to text: PP-OCR's `thresh`."""

UNCLIP_RATIO = 1.6
"""Boxes are grown on each side by area / perimeter times this, which undoes the shrinking: PP-OCR's `unclip_ratio`."""

MIN_REGION_PX = 3
"""Shortest side of a region that is taken for text, in pixels of the input: PP-OCR's `min_size`."""

MAX_SHORT_SIDE_SHARE = 0.6
"""Largest short side of a box, as a share of the image's short side. Blurred or blocky images come out as one box
from edge to edge, with a score of up to 0.87, which is as high as that of subtitles."""

LINE_ASPECT = 2.5
"""Ratio of the sides from which a region counts as a line of text. On clips without text, regions of a score of 0.5
and more (faces, hands) have 1.1 to 2.1, and subtitles have 10 to 30."""

MIN_STABLE_SHARE = 0.5
"""Share of a box that text has to cover in the image before or after, for the box to count as stable."""


@dataclass(frozen=True)
class Text:
    """Text in one image: `boxes` `[K, 4, 2]` corners in pixels of the input, `scores` `[K]` in [0, 1], `shape` (H, W).

    `aspects` `[K]` is the long side of each region divided by its short one, before growing.
    """

    boxes: Float32Array
    scores: Float32Array
    aspects: Float32Array
    shape: tuple[int, int]

    def over(self, min_line_score: float, min_square_score: float) -> Text:
        """Return the boxes of at least these scores: the first for lines of text, the second for other boxes."""
        chosen = self.scores >= np.where(self.aspects >= LINE_ASPECT, min_line_score, min_square_score)
        return Text(self.boxes[chosen], self.scores[chosen], self.aspects[chosen], self.shape)

    def masks(self) -> list[BoolArray]:
        """Return a mask `[H, W]` per box, true for the pixels in it."""
        return [_filled(box, self.shape) for box in self.boxes]


def input_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return (H, W) of the input for an image: its long side at most `long_side`, both rounded to multiples of 32."""
    scale = min(1.0, long_side / max(height, width))
    return max(1, round(height * scale / MULTIPLE)) * MULTIPLE, max(1, round(width * scale / MULTIPLE)) * MULTIPLE


def to_input(image: Pixels, size: tuple[int, int]) -> Float32Array:
    """Return the input `[3, H, W]` of this size (H, W): blue, green, red, normalised as PP-OCR was trained."""
    resized = cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA if size[1] <= image.shape[1] else cv2.INTER_LINEAR
    )
    scaled = (resized[..., ::-1].astype(np.float32) / np.float32(255) - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def boxes_of(probability_HW: Float32Array) -> Text:
    """Return every region of text in a probability map, scored by the mean probability in its box before growing."""
    is_text = (probability_HW > MIN_PROBABILITY).astype(np.uint8)
    # A dilation by 2 x 2 joins regions that are one pixel apart, as PP-OCR does.
    contours, _ = cv2.findContours(
        cv2.dilate(is_text, np.ones((2, 2), np.uint8)), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes, scores, aspects = [], [], []
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < MIN_REGION_PX:
            continue
        inside = _filled(cv2.boxPoints((centre, (width, height), angle)), is_text.shape)
        grow = UNCLIP_RATIO * width * height / (width + height)
        if min(width, height) + grow > MAX_SHORT_SIDE_SHARE * min(is_text.shape):
            continue
        boxes.append(cv2.boxPoints((centre, (width + grow, height + grow), angle)))
        scores.append(float(probability_HW[inside].mean()))
        aspects.append(max(width, height) / min(width, height))
    return Text(
        np.array(boxes, np.float32).reshape(-1, 4, 2),
        np.array(scores, np.float32),
        np.array(aspects, np.float32),
        (is_text.shape[0], is_text.shape[1]),
    )


def covered_share(masks: Sequence[BoolArray], shape: tuple[int, int]) -> float:
    """Return the share of the image under the union of masks."""
    return float(np.mean(_union(masks, shape)))


def stable_masks(texts: Sequence[Text]) -> list[list[BoolArray]]:
    """Return, per image of a clip, the masks of the boxes that text covers in the image before or after as well."""
    masks = [text.masks() for text in texts]
    unions = [_union(found, text.shape) for found, text in zip(masks, texts, strict=True)]

    def is_stable(mask: BoolArray, t: int) -> bool:
        neighbours = [unions[i] for i in (t - 1, t + 1) if 0 <= i < len(texts)]
        return any(np.count_nonzero(mask & union) >= MIN_STABLE_SHARE * np.count_nonzero(mask) for union in neighbours)

    return [[mask for mask in found if is_stable(mask, t)] for t, found in enumerate(masks)]


def _union(masks: Sequence[BoolArray], shape: tuple[int, int]) -> BoolArray:
    union = np.zeros(shape, np.bool_)
    for mask in masks:
        union |= mask
    return union


def _filled(box: Float32Array, shape: Sequence[int]) -> BoolArray:
    """Return a mask of this shape, true in the polygon of a box's corners."""
    mask = np.zeros(tuple(shape), np.uint8)
    cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    return mask.astype(np.bool_)
