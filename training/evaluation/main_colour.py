"""The main colour of a clip, as one of a few names that groups of clips are counted by."""

from __future__ import annotations

import cv2
import numpy as np

from cluster.arrays import Pixels

HUES = {"red": 15, "orange": 45, "yellow": 70, "green": 160, "cyan": 200, "blue": 260, "purple": 300, "pink": 340}
"""Upper bounds of hues in degrees; red goes on above the last."""
MIN_SATURATION = 0.15
"""Mean saturation below which a clip counts as grey, black or white."""
GREYS = {"black": 0.2, "grey": 0.8, "white": 1.01}
"""Upper bounds of the mean value of clips without a colour."""
MAX_FRAMES, MAX_PX = 8, 128
"""A clip is thinned out to at most twice as many frames, rows and columns before its colour is told."""
COLOURS = (*HUES, *GREYS)


def main_colour(frames_THWC: Pixels) -> str:
    """Return the name of the hue with most colour over the pixels of a clip, or black, grey or white.

    A few frames and pixels of a large clip stand for all.
    """
    n_frames, height, width, _ = frames_THWC.shape
    strides = [max(1, size // bound) for size, bound in ((n_frames, MAX_FRAMES), (height, MAX_PX), (width, MAX_PX))]
    few_THWC = frames_THWC[:: strides[0], :: strides[1], :: strides[2]]
    rows_HWC = few_THWC.reshape(-1, *few_THWC.shape[-2:]).astype(np.float32) / 255
    hue, saturation, value = cv2.split(cv2.cvtColor(rows_HWC, cv2.COLOR_RGB2HSV))
    if float((saturation * value).mean()) < MIN_SATURATION:
        mean = float(value.mean())
        return next(name for name, bound in GREYS.items() if mean < bound)
    index = np.searchsorted(list(HUES.values()), hue.ravel(), side="right") % len(HUES)
    weights = np.bincount(index, (saturation * value).ravel(), minlength=len(HUES))
    return list(HUES)[int(weights.argmax())]
