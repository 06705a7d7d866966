"""Detection of the invisible watermark, without the unmarked file.

What is in the frames hides the mark. So the mean of the frames of a slot is taken, its coarse structure is removed, and
also the mean of the slots around, which have other signs of the mark and the same background. What is left is divided
by its local variance. Its sum over the pilot's cells, times their signs, is large where the mark is.

**False positives.** Let `v` be the values of the pilot's cells and `s` their signs. Signs are drawn independently of
all footage, so by Hoeffding's inequality `P(sum(s v) / sqrt(sum(v^2)) > z) <= exp(-z^2 / 2)` for footage without the
mark, whatever it shows. The mark is looked for at many offsets and sizes; the bound on the probability of a false
positive is that of one place times their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from training.sampling import watermark_code
from training.sampling.watermark import CELLS, LUMA, PUBLIC_KEY, SLOT_S, SLOTS, Floats, layout

FALSE_POSITIVES = 1e-5
"""Bound on the probability that a file without the mark is said to have it."""
MAX_SIDE = 960
"""Larger frames are reduced by a whole factor before the search."""
MAX_S = 8.0
"""Seconds of a video in which the mark is looked for."""
PHASES = 4
"""Steps of a slot's length in which the beginning of a slot is looked for."""
CENTRE_PX = 256
"""Side of the part of a frame in which sizes are looked for; the most likely ones are then tried on all of it."""
LIKELY = 8
"""Number of likely sizes that are tried on the whole frame."""
MIN_CELL_PX, MAX_CELL_PX = 1.9, 16.5
"""Sides of a cell that are looked for: those of files of half to twice the size."""
KINDS_OF_PLACES = 4
"""Kinds of places that the probability of a false positive is shared among: as written, moved, scaled, and both."""
CHANGE_WEIGHT = np.float32(2)
"""Weight of what is left without the slots around, beside what is left of a slot by itself."""
_WINDOWS = ((3.0, 5), (6.0, 9), (12.0, 17), (math.inf, 33))
"""Window of the local means in pixels, by the largest side of a cell that it is taken for."""
_SIDE = 2 * CELLS
_IS_ODD = np.indices((CELLS, CELLS)).sum(0) % 2
"""In slot 0, 0 for cells of the pilot and 1 for those of the payload; in the next slot it is the other way."""
OFFSETS = SLOTS * _SIDE**2
"""Offsets at which the mark is looked for: slots, and half cells in both directions."""

Indices = NDArray[np.int64]
Maps = list[tuple[int, Floats]]
"""Residuals by slot."""


@dataclass(frozen=True)
class Detection:
    """The finding about the mark in one file."""

    log_p: float
    """Natural logarithm of the bound on the probability that a file without the mark gives this; 0 for none."""
    word: int
    """The most likely payload."""
    checksum_holds: bool
    """Whether its checksum holds."""
    cell_px: float | None = None
    """Side of the mark's cells in pixels, where it is most likely."""

    @property
    def found(self) -> bool:
        """Whether the mark is there."""
        return self.log_p <= math.log(FALSE_POSITIVES)

    @property
    def payload(self) -> int | None:
        """The payload, None if the mark is not there or the payload's checksum does not hold."""
        return self.word if self.found and self.checksum_holds else None


NOTHING = Detection(0.0, 0, False)


class _Place(NamedTuple):
    """The mark at one place: how large its sum is, and where."""

    z: float
    cell: float
    phase: int
    offset: tuple[int, int, int] = (0, 0, 0)
    """Slots, and half cells down and to the right."""


def detect(frames: Iterable[tuple[float, Pixels]], key: bytes = PUBLIC_KEY) -> Detection:
    """Look for the mark in frames, each a time in seconds and RGB values `[H, W, 3]`; an image is one frame at 0.

    Places that are likely come first, and the search ends when a payload is found.
    """
    means, factor = _bin_means(frames)
    if not means or min(next(iter(means.values())).shape) < 2 * MIN_CELL_PX:
        return NOTHING
    search = _Search(means, key)
    usual = [cell / factor for cell in (4, 8)]
    best = NOTHING
    for stage in (search.as_written, search.moved, search.scaled):
        for tried, places in stage(usual):
            place = max(places, key=lambda one: one.z)
            log_p = math.log(KINDS_OF_PLACES * tried) - max(place.z, 0.0) ** 2 / 2
            if log_p < best.log_p:
                best = Detection(log_p, *search.payload(place), place.cell * factor)
        if best.payload is not None:
            break
    return best


def _bin_means(frames: Iterable[tuple[float, Pixels]]) -> tuple[dict[int, Floats], int]:
    """Return the mean luma `[H, W]` of the frames of each quarter of a slot, and the factor by which it is reduced."""
    sums: dict[int, tuple[Floats, int]] = {}
    factor, start_s = 1, None
    for time_s, frame_HWC in frames:
        start_s = time_s if start_s is None else start_s
        if time_s - start_s >= MAX_S:
            break
        luma = frame_HWC.astype(np.float32) @ LUMA
        factor = -(-max(luma.shape) // MAX_SIDE)
        if factor > 1:
            height, width = (side // factor for side in luma.shape)
            luma = cv2.resize(luma[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
        index = int((time_s - start_s) / SLOT_S * PHASES + 1e-6)
        total, count = sums.get(index, (np.float32(0), 0))
        sums[index] = total + luma, count + 1
    return {index: total / np.float32(count) for index, (total, count) in sums.items()}, factor


class _Search:
    """The search for the mark in the means of a file."""

    def __init__(self, means: dict[int, Floats], key: bytes) -> None:
        self._means, self._layout = means, layout(key)
        self.shape = next(iter(means.values())).shape
        anchors = np.zeros((SLOTS, _SIDE, _SIDE), np.float32)
        anchors[:, ::2, ::2] = np.where(self._layout.bits < 0, self._layout.signs, 0)
        self._spectra = np.conj(np.fft.rfft2(anchors))
        self._maps = lru_cache(2)(self._residuals)

    def as_written(self, usual: list[float]) -> Iterator[tuple[int, list[_Place]]]:
        """Yield the places, and their number, of a file that is as it was written."""
        yield len(usual), [self._at(cell, 0)[0] for cell in usual]

    def moved(self, usual: list[float]) -> Iterator[tuple[int, list[_Place]]]:
        """Yield the likeliest places, and the number of all, of a file that was cropped or cut."""
        phases = range(PHASES) if len(self._means) > 1 else range(1)
        places = [self._at(cell, phase)[1] for phase in phases for cell in usual]
        yield len(places) * OFFSETS, places

    def scaled(self, usual: list[float]) -> Iterator[tuple[int, list[_Place]]]:
        """Yield the likeliest places, and the number of all, of a file of another size: as a whole, and cropped or cut.

        Of large frames, sizes are first looked for in the centre.
        """
        side = max(self.shape)
        sizes = list(_sizes(side))
        phases = (0, PHASES // 2) if len(self._means) > PHASES else (0,)
        if side > CENTRE_PX:
            coarse = [self._at(cell, phase, centre=True)[1] for phase in phases for cell in _sizes(CENTRE_PX)]
            likely = sorted(coarse, key=lambda place: -place.z)[:LIKELY]
            tried = [
                (cell, place.phase)
                for place in likely
                for cell in sizes
                if abs(math.log(cell / place.cell)) < place.cell / CENTRE_PX
            ]
        else:
            tried = [(cell, phase) for phase in phases for cell in sizes]
        found = [self._at(cell, phase) for cell, phase in tried]
        yield len(sizes) * len(phases), [whole for whole, _ in found]
        yield len(sizes) * len(phases) * OFFSETS, [moved for _, moved in found]

    def _at(self, cell: float, phase: int, centre: bool = False) -> tuple[_Place, _Place]:
        """Return the mark at no offset, and at the offset where it is largest."""
        slots, values = self._folded(cell, phase, centre)
        # At an offset of o slots, slot s of the mark is in slot s + o of the file.
        spectra = self._spectra[(slots[:, None] - np.arange(SLOTS)) % SLOTS]
        total = np.fft.irfft2((np.fft.rfft2(values)[:, None] * spectra).sum(0), values.shape[1:], axes=(1, 2))
        z = total / np.sqrt(_pilot_energy(slots, values))
        slot, row, column = map(int, np.unravel_index(int(z.argmax()), z.shape))
        whole = _Place(float(z[0, 0, 0]), cell, phase)
        return whole, _Place(float(z[slot, row, column]), cell, phase, (slot, row, column))

    def payload(self, place: _Place) -> tuple[int, bool]:
        """Return the most likely payload of a mark, and whether its checksum holds."""
        slots, parts = self._folded(place.cell, place.phase)
        values = np.zeros((SLOTS, _SIDE, _SIDE), np.float32)
        values[slots] = parts
        cells = np.roll(values, [-offset for offset in place.offset], (0, 1, 2))[:, ::2, ::2]
        soft = np.zeros(watermark_code.CODED_BITS)
        carries = self._layout.bits >= 0
        np.add.at(soft, self._layout.bits[carries], (cells * self._layout.signs)[carries])
        return watermark_code.decode(soft)

    def _folded(self, cell: float, phase: int, centre: bool = False) -> tuple[Indices, Floats]:
        """Return the slots `[K]` of the mark's period that the file has, and their values `[K, 2 * CELLS, 2 * CELLS]`.

        These are sums over all periods, of the values of cells that begin at each half cell.
        """
        window = next(window for largest, window in _WINDOWS if cell <= largest)
        sums: dict[int, Floats] = {}
        for slot, residual in self._maps(window, phase):
            part = _fold(_centre(residual) if centre else residual, cell)
            sums[slot % SLOTS] = part if (before := sums.get(slot % SLOTS)) is None else before + part
        folded = np.stack(list(sums.values()))
        folded = folded + np.roll(folded, -1, 1)
        return np.array(list(sums)), folded + np.roll(folded, -1, 2)

    def _residuals(self, window: int, phase: int) -> Maps:
        """Return by slot what is left of its mean without coarse structure, and without the slots around."""
        slots: dict[int, list[Floats]] = {}
        for index, mean in self._means.items():
            slots.setdefault((index + phase) // PHASES, []).append(mean)
        means = {slot: np.mean(parts, axis=0) for slot, parts in slots.items()}
        maps = []
        for slot, mean in means.items():
            residual = _normalised(mean, window, noise=2.5)
            others = [other for number, other in means.items() if abs(number - slot) == 1]
            if others:
                change = _normalised(mean - np.mean(others, axis=0), window, noise=1.5)
                residual = residual + CHANGE_WEIGHT * change
            maps.append((slot, residual))
        return maps


def _normalised(mean: Floats, window: int, noise: float) -> Floats:
    """Return fine structure over its local variance, to which that of `noise` in 8-bit values is added."""
    fine = mean - cv2.blur(mean, (window, window))
    deviation = np.sqrt(np.maximum(cv2.blur(fine * fine, (window, window)), 0))
    normalised: Floats = np.clip(fine, -2.5 * deviation, 2.5 * deviation) / np.square(deviation + noise)
    return normalised


def _fold(residual: Floats, cell: float) -> Floats:
    """Return the sums over all periods `[2 * CELLS, 2 * CELLS]` of a residual, sampled at half cells."""
    step = cell / 2
    rows, columns = (int(side / step) for side in residual.shape)
    blurred = cv2.blur(residual, (max(1, round(step)),) * 2)
    shift = step / 2 - 0.5
    grid = cv2.warpAffine(
        blurred,
        np.array([[step, 0, shift], [0, step, shift]], np.float32),
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    padded = np.zeros((-(-rows // _SIDE) * _SIDE, -(-columns // _SIDE) * _SIDE), np.float32)
    padded[:rows, :columns] = grid
    folded: Floats = padded.reshape(-1, _SIDE, padded.shape[1] // _SIDE, _SIDE).sum((0, 2))
    return folded


def _pilot_energy(slots: Indices, values: Floats) -> Floats:
    """Return the sum of the squares of the pilot's cells at each offset, `[SLOTS, 2 * CELLS, 2 * CELLS]`.

    Every other cell is of the pilot, so there are two sums for each of the four positions inside a cell.
    """
    squares = np.square(values).reshape(-1, CELLS, 2, CELLS, 2).transpose(0, 2, 4, 1, 3).reshape(len(values), 4, -1)
    weights = np.stack([_IS_ODD == 0, _IS_ODD == 1], axis=-1).reshape(-1, 2).astype(np.float32)
    sums_K22P = (squares @ weights).reshape(-1, 2, 2, 2)
    energy = np.zeros((2, 2, 2, 2), np.float32)
    for slot, sums in zip(slots, sums_K22P, strict=True):
        for offset, odd in np.ndindex(2, 2):
            energy[offset, odd] += sums[..., (odd + slot + offset) % 2]
    at_offsets = energy[:, _IS_ODD].transpose(0, 1, 3, 2, 4).reshape(2, _SIDE, _SIDE)
    return np.maximum(np.tile(at_offsets, (SLOTS // 2, 1, 1)), np.float32(1e-12))


def _centre(residual: Floats) -> Floats:
    top, left = (max(0, (side - CENTRE_PX) // 2) for side in residual.shape)
    return np.ascontiguousarray(residual[top : top + CENTRE_PX, left : left + CENTRE_PX])


def _sizes(side: int) -> Iterator[float]:
    """Yield sides of cells, so close that cells at the rim of a frame of this many pixels are met to half a cell."""
    cell = MIN_CELL_PX
    while cell <= MAX_CELL_PX:
        yield cell
        cell *= 1 + 1.5 / max(3.0, side / cell)
