"""Dense optical flow between frames by Farnebäck's method (2003), which needs no weights.

Shape suffixes: H rows, W columns, C colours.
"""

from __future__ import annotations

import cv2
import numpy as np

from cluster.arrays import Float32Array, Pixels


def luma(frame_HWC: Pixels) -> Pixels:
    """Return the luma `[H, W]` of an RGB frame."""
    return np.asarray(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY), np.uint8)


def flow(before_HWC: Pixels, after_HWC: Pixels) -> Float32Array:
    """Return the motion `[H, W, 2]` in pixels (x, y) from one RGB frame to the next."""
    start = np.zeros((*before_HWC.shape[:2], 2), np.float32)
    found = cv2.calcOpticalFlowFarneback(luma(before_HWC), luma(after_HWC), start, 0.5, 3, 15, 3, 5, 1.2, 0)
    return np.asarray(found, np.float32)


def moved(frame_HWC: Pixels, motion_HW2: Float32Array) -> Pixels:
    """Return a frame whose pixels are taken from where this motion points, bilinear, with repeated edges."""
    height, width = motion_HW2.shape[:2]
    x_HW, y_HW = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    source = x_HW + motion_HW2[..., 0], y_HW + motion_HW2[..., 1]
    return np.asarray(cv2.remap(frame_HWC, *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
