"""Plain statistics of luma pictures of 8 bits, by OpenCV: its uint8 functions take a few microseconds where numpy takes tens.

Shape legend: H height, W width, I x J blocks.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels

Floats = NDArray[np.float32]

BLOCK = 8
"""Side of a block of the analysis picture (128 x 72 in area), in pixels: 16 x 9 blocks, each a sixteenth of the width."""


def block_means(values_HW: Pixels | Floats, side: int = BLOCK) -> Floats:
    """Mean of each block of `side` x `side` pixels, float32; the picture's sides are multiples of it. 5 us for 128 x 72."""
    height, width = values_HW.shape
    # As float32, for uint8 would round the means to whole levels.
    return np.asarray(
        cv2.resize(np.asarray(values_HW, np.float32), (width // side, height // side), interpolation=cv2.INTER_AREA),
        np.float32,
    )


def sharpness(luma_HW: Pixels) -> float:
    """Variance of the Laplacian of luma (Pech-Pacheco et al., 'Diatom autofocusing in brightfield microscopy', 2000), 4 neighbours, luma in [0, 1].

    Comparable only between pictures of one size. A gradient gives 0, a blurred picture around 1e-4, a crisp one 1e-3 to 1e-1.
    """
    if min(luma_HW.shape) < 3:
        return 0.0
    laplacian = cv2.Laplacian(luma_HW, cv2.CV_16S)[1:-1, 1:-1]
    deviation = float(cv2.meanStdDev(laplacian)[1][0, 0]) / 255
    return deviation**2
