"""Aliases of the numpy array types that signatures use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BytesArray = NDArray[np.bytes_]

Pixels = UInt8Array
"""8-bit RGB values of an image `[H, W, 3]` or of a video `[T, H, W, 3]`."""
