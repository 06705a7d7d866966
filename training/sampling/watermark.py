"""The invisible watermark: a keyed spread-spectrum mark over space and time, in the brightness of frames.

The mark is a periodic pattern of cells that are a little brighter or darker: `CELLS` by `CELLS` cells, and another such
square every `SLOT_S` seconds, `SLOTS` of them. The key decides the sign of every cell. Half of the cells are the pilot,
by which the mark is found; each of the others is multiplied by a bit of the payload. The mark is stronger where the
frame is rough and hides it, and frames are marked one by one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from training.sampling import watermark_code

SLOTS, CELLS = 8, 32
SLOT_S = 0.25
PUBLIC_KEY = b"worldloom watermark 1"
"""Key without a secret, so that everybody can find the mark."""
SMALL_SIDE = 256
"""Frames whose shorter side is below this number of pixels have cells of 4 pixels, others of 8."""
FLAT, MAX_STRENGTH = 1.0, 5.0
"""Strength of the mark in 8-bit values where a frame is flat, and the largest one; it grows with roughness."""
MAX_RMS = 2.15
"""Largest root mean square of the change of a frame in 8-bit values, a PSNR of 41.5 dB."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Floats = NDArray[np.float32]
Signs = NDArray[np.int8]


class Layout(NamedTuple):
    """The signs and the use of all cells, which the key decides."""

    signs: Signs
    """Sign of each cell, `[SLOTS, CELLS, CELLS]`."""
    bits: NDArray[np.int64]
    """Index of the coded bit that each cell carries, -1 for the pilot, `[SLOTS, CELLS, CELLS]`."""


@lru_cache(4)
def layout(key: bytes) -> Layout:
    """Return the signs and the use of all cells."""
    size = SLOTS * CELLS * CELLS
    stream = hashlib.shake_256(b"signs" + key).digest(size // 8)
    signs = np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.int8) * 2 - 1
    slot, row, column = np.indices((SLOTS, CELLS, CELLS))
    # Every other cell, and steps by which each part of a frame carries all bits about equally often.
    carried = (83 * (column // 2) + 40 * row + 2 * slot) % watermark_code.CODED_BITS
    return Layout(signs.reshape(SLOTS, CELLS, CELLS), np.where((row + column + slot) % 2 == 0, -1, carried))


def cell_px(height: int, width: int) -> int:
    """Return the side of a cell in pixels."""
    return 4 if min(height, width) < SMALL_SIDE else 8


class Watermark:
    """The mark of one file: its key, and the payload that it carries, of 32 bits."""

    def __init__(self, payload: int, key: bytes = PUBLIC_KEY) -> None:
        signs, bits = layout(key)
        coded = watermark_code.encode(payload)
        self._cells = np.where(bits < 0, signs, signs * coded[bits]).astype(np.float32)
        self._patterns = lru_cache(2)(self._pattern)

    def mark(self, frame_HWC: Pixels, index: int, fps: float) -> Pixels:
        """Return an RGB frame, uint8 `[H, W, 3]`, with the mark; it is frame `index` of a video of `fps`."""
        height, width = frame_HWC.shape[:2]
        slot = index / fps / SLOT_S
        pattern = self._patterns(int(slot) % SLOTS, height, width)
        luma = frame_HWC.astype(np.float32) @ LUMA
        change = strength(luma) * pattern
        rms = float(np.sqrt(np.square(change).mean()))
        change *= min(1.0, MAX_RMS / max(rms, 1e-6))
        marked = np.rint(frame_HWC + change[..., None])
        return np.clip(marked, 0, 255, out=marked).astype(np.uint8)

    def _pattern(self, slot: int, height: int, width: int) -> Floats:
        """Return the pattern of a slot `[height, width]`: cells, of about -1 or 1, with soft edges."""
        cell = cell_px(height, width)
        rows, columns = (np.arange(-1, -(-side // cell) + 1) % CELLS for side in (height, width))
        grid = self._cells[slot][np.ix_(rows, columns)]
        enlarged = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(enlarged[cell : cell + height, cell : cell + width])


def strength(luma: Floats) -> Floats:
    """Return by how much a frame's luma `[H, W]` may change without being seen: more where all around is rough."""
    rough = np.abs(luma - cv2.blur(luma, (3, 3)))
    # Near an edge only one side is rough, and the flat one shows a change.
    rough = cv2.erode(cv2.blur(rough, (5, 5)), np.ones((7, 7), np.uint8))
    found: Floats = np.minimum(FLAT + rough, MAX_STRENGTH).astype(np.float32)
    return found
