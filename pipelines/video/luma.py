"""Plain statistics of luma pictures, in numpy.

Shape legend: H height, W width; lower-case letters for the size after shrinking.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@cache
def area_weights(n_in: int, n_out: int) -> Floats:
    """`[n_out, n_in]` matrix that averages n_in samples into n_out equal intervals; rows sum to 1, also where n_out > n_in."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    cells = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.maximum(overlap, 0) * (n_out / n_in), np.float32)


def shrink(luma_HW: Floats, factor: int) -> Floats:
    """Average squares of `factor` pixels a side; what is left over at the right and the bottom is cut off.

    No matrix product: for one of this size BLAS wakes threads, which cost nine times the processor time of a whole scan.
    """
    height, width = luma_HW.shape[0] // factor, luma_HW.shape[1] // factor
    rows = luma_HW[: height * factor, : width * factor].reshape(height, factor, width * factor).mean(axis=1)
    return np.asarray(rows.reshape(height, width, factor).mean(axis=2), np.float32)


def sharpness(luma_HW: Floats) -> float:
    """Variance of the Laplacian of luma (Pech-Pacheco et al. 2000), 4 neighbours, luma in [0, 1].

    Comparable only between pictures of one analysis size. A gradient gives 0, a blurred picture around 1e-4, a crisp
    one 1e-3 to 1e-1.
    """
    if min(luma_HW.shape) < 3:
        return 0.0
    inner = luma_HW[1:-1, 1:-1]
    laplacian = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:] - 4 * inner
    return float(laplacian.var())
