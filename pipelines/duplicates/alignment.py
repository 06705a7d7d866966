"""How two clips lie on each other: the best run of frames that both show, by their hashes on one grid of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.duplicates.clip_hashes import Hashes
from pipelines.video.phash import is_informative, mirrored

EVEN = 16.0
"""Bits at which it is even whether two frames are the same: half way between 0, of copies, and 32, of strangers. Nearer frames speak for a
run of frames, others against it."""

INFORMATIVE_SHARE = 0.5
"""Least share of a run's frames in which both clips show something."""


LEAST_STEADY = 48
"""Bits that have to stay from one moment of the grid to the next for the others to be left out. On footage and drawn scenes, fewer make
strangers alike (24: a drawn star and a triangle on one path are 6 bits apart, with 48 they are 11) and gain no copies."""


@dataclass(frozen=True)
class Alignment:
    """Frames `start_a` onwards of one clip and `start_b` onwards of another, `length` of them, show the same."""

    start_a: int
    start_b: int
    length: int
    distance: float
    """Mean bits by which their hashes differ, over the frames in which at least one shows something."""


def align(a: Hashes, b: Hashes, mirror: bool = False) -> Alignment | None:
    """The run of frames, the same long in both clips, of the greatest sum of `EVEN` less distance; None where no frame is alike.

    A local alignment without gaps, as in sequence search (Altschul et al., BLAST, 1990): at every offset the run of the greatest sum is
    found at once (Kadane). With `mirror`, b is mirrored first. Frames that are flat in both clips count for nothing, so black alone matches nothing.
    """
    n_a, n_b = len(a), len(b)
    if not n_a or not n_b:
        return None
    known_a, known_b = is_informative(a), is_informative(b)
    b = mirrored(b) if mirror else b
    distance = frame_distances(a, b)
    either = known_a[:, None] | known_b[None, :]
    # In whole 64ths, whose sums are exact: which run is best does not hang on rounding.
    gain = np.where(either, np.rint((EVEN - distance) * 64), 0.0)
    # Column k of the skewed table is the diagonal on which b is k - (n_a - 1) frames ahead of a, from its last frame to its first.
    width = n_a + n_b - 1
    skewed = np.zeros((n_a, width + 1))
    skewed[:, :n_b] = gain[::-1]
    skewed = skewed.ravel()[: n_a * width].reshape(n_a, width)
    sums = np.cumsum(skewed, axis=0)
    lowest = np.minimum.accumulate(np.vstack([np.zeros((1, width)), sums[:-1]]), axis=0)
    best = (sums - lowest).max(axis=0)
    top = best.max()
    if top <= 0:
        return None
    # Of equals the offset nearest to 0.
    ahead = min((int(k) - (n_a - 1) for k in np.flatnonzero(best == top)), key=lambda k: (abs(k), k))
    start = max(0, -ahead)
    diagonal = np.arange(start, min(n_a, n_b - ahead))
    first, last = best_run(gain[diagonal, diagonal + ahead])
    run = diagonal[first:last]
    counted = either[run, run + ahead]
    if (known_a[run] & known_b[run + ahead]).mean() < INFORMATIVE_SHARE:
        return None
    return Alignment(int(run[0]), int(run[0]) + ahead, len(run), float(distance[run, run + ahead][counted].mean()))


def frame_distances(a: Hashes, b: Hashes) -> NDArray[np.float64]:
    """`[A, B]`: bits of 64 by which frames of a differ from those of b, where b runs up to one step of the grid late.

    The grids of two copies do not fall on the same moments, and between two of them a picture in motion changes bits: 11 of 64 for a
    talking head against itself, half a step later. So frame i of a is compared with b between its frames j and j + 1, in the bits that
    these share, scaled to 64; frame j of b with a between i - 1 and i; and the mean of both is taken. Strangers stay 32 apart, and
    pictures that stand still are compared as they are.
    """
    between = (_between(a, b, np.append(b[1:], b[-1:])) + _between(b, a, np.append(a[:1], a[:-1])).T) / 2
    return between * _weights(a, b)


def _weights(a: Hashes, b: Hashes) -> NDArray[np.float64]:
    """`[A, B]`: 32 over the bits by which strangers with as many bits set would differ, at least 1.

    A title card sets 16 bits of 64, and two of them are near each other by that alone.
    """
    set_a, set_b = (np.bitwise_count(hashes) / 64.0 for hashes in (a, b))
    expected = 64 * (set_a[:, None] * (1 - set_b[None, :]) + set_b[None, :] * (1 - set_a[:, None]))
    return np.maximum(1.0, 32 / np.maximum(expected, 1.0))


def _between(a: Hashes, b: Hashes, beside: Hashes) -> NDArray[np.float64]:
    """`[A, B]`: bits in which a differs from what b has in common with the hash beside it."""
    alone = a[:, None] ^ b[None, :]
    changed = b ^ beside
    steady = 64 - np.bitwise_count(changed).astype(np.float64)
    # Where most changes, what is left would be alike by chance.
    ignored = np.where(steady >= LEAST_STEADY, changed, np.uint64(0))
    scale = np.where(steady >= LEAST_STEADY, 64 / np.maximum(steady, 1.0), 1.0)
    return np.asarray(np.bitwise_count(alone & ~ignored[None, :]) * scale[None, :], np.float64)


def best_run(gain: NDArray[np.float64]) -> tuple[int, int]:
    """Start and end (exclusive) of the run of the greatest sum; of equals the longest, then the first."""
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    lowest = np.minimum.accumulate(sums[:-1])
    rise = sums[1:] - lowest
    ends = np.flatnonzero(rise == rise.max()) + 1
    starts = [int(np.argmax(sums[:end] == lowest[end - 1])) for end in ends]
    return max(zip(starts, ends.tolist(), strict=True), key=lambda run: (run[1] - run[0], -run[0]))
