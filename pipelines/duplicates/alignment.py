"""Alignment of two clips: the best run of frames that both show, by their hashes on one time grid.

Shape legend: K pairs of clips of A and of B frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.arrays import BoolArray, Float64Array, UInt64Array
from pipelines.video.phash import is_informative, mirrored

NEUTRAL_DISTANCE = 16.0
"""Bits at which two frames count neither for nor against a run: half way between 0, of copies, and 32, of unrelated
frames. Nearer frames raise the sum of a run, others lower it."""

MIN_INFORMATIVE_SHARE = 0.5
"""Smallest share of a run's frames that are informative in both clips."""


MIN_STEADY_BITS = 48
"""Smallest number of bits that do not change from one frame of the grid to the next for the changing ones to be
ignored. On footage and drawn scenes, fewer make unrelated clips alike (24: a drawn star and a triangle on one path
are 6 bits apart, with 48 they are 11) and find no more copies."""


@dataclass(frozen=True)
class Alignment:
    """A run of `length` frames that two clips share, from frame `start_a` of one and frame `start_b` of the other."""

    start_a: int
    start_b: int
    length: int
    distance: float
    """Mean bits by which the hashes of frame pairs differ, over pairs in which at least one frame is informative."""


def align(a: UInt64Array, b: UInt64Array, mirror: bool = False) -> Alignment | None:
    """Return the run of frames, equally long in both clips, with the greatest sum of `NEUTRAL_DISTANCE` less distance.

    Returns None where no frames are alike. This is a local alignment without gaps, as in sequence search (Altschul et
    al., BLAST, 1990): the run of the greatest sum is found for all offsets together (Kadane). With `mirror`, b is
    mirrored first. Pairs of frames that are flat in both clips count for nothing, so black alone matches nothing.
    """
    n_a, n_b = len(a), len(b)
    if not n_a or not n_b:
        return None
    informative_a, informative_b = is_informative(a), is_informative(b)
    b = mirrored(b) if mirror else b
    distance = frame_distances(a, b)
    either = informative_a[:, None] | informative_b[None, :]
    # In whole 64ths, whose sums are exact: the choice of the best run must not depend on rounding.
    gain = np.where(either, np.rint((NEUTRAL_DISTANCE - distance) * 64), 0.0)
    # Column k of the skewed table is the diagonal where b is k - (n_a - 1) frames ahead of a, from its last frame to
    # its first.
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
    # Of equal offsets the one nearest to 0.
    offset = min((int(k) - (n_a - 1) for k in np.flatnonzero(best == top)), key=lambda k: (abs(k), k))
    start = max(0, -offset)
    diagonal = np.arange(start, min(n_a, n_b - offset))
    first, end = best_run(gain[diagonal, diagonal + offset])
    run = diagonal[first:end]
    counted = either[run, run + offset]
    if (informative_a[run] & informative_b[run + offset]).mean() < MIN_INFORMATIVE_SHARE:
        return None
    return Alignment(int(run[0]), int(run[0]) + offset, len(run), float(distance[run, run + offset][counted].mean()))


def may_align(
    a_KA: UInt64Array, b_KB: UInt64Array, mirror_K: BoolArray, max_distance_K: Float64Array, min_length: float
) -> BoolArray:
    """Return for K pairs of clips whether `align` may find a run of at least `min_length` frames, which is above 0, and
    of at most a distance.

    It says yes wherever such a run is found, and no to nearly all pairs of unrelated clips, for a fiftieth of the time
    of `align`. The sum of the best run is bounded from above by leaving out the two factors, of at least 1, of
    `frame_distances`. A wanted run has at least `NEUTRAL_DISTANCE` less the distance for each frame that counts.
    """
    informative_a, informative_b = is_informative(a_KA), is_informative(b_KB)
    b_KB = np.where(mirror_K[:, None], mirrored(b_KB), b_KB)
    differing = a_KA[:, :, None] ^ b_KB[:, None, :]
    twice_distance = np.bitwise_count(differing & ~_changing_bits(b_KB, _next(b_KB))[:, None, :]).astype(np.int32)
    twice_distance += np.bitwise_count(differing & ~_changing_bits(a_KA, _previous(a_KA))[:, :, None])
    either = informative_a[:, :, None] | informative_b[:, None, :]
    gain = np.where(either, 64 * int(NEUTRAL_DISTANCE) - 32 * twice_distance, 0)
    sums_KB, best_K = np.zeros_like(gain[:, 0]), np.zeros(len(gain), np.int32)
    for gain_KB in np.moveaxis(gain, 1, 0):
        gain_KB[:, 1:] += np.maximum(sums_KB[:, :-1], 0)
        sums_KB = gain_KB
        best_K = np.maximum(best_K, sums_KB.max(axis=1))
    # Pairs of frames that are flat in both clips do not count; at least MIN_INFORMATIVE_SHARE of the run does.
    flat_K = np.minimum((~informative_a).sum(axis=1), (~informative_b).sum(axis=1))
    counted_K = np.maximum(min_length - flat_K, min_length * MIN_INFORMATIVE_SHARE)
    # Half a 64th for the rounding of each frame's gain, and one for that of the mean.
    may_K: BoolArray = best_K >= counted_K * (64 * (NEUTRAL_DISTANCE - max_distance_K) - 0.5) - 1
    return may_K


def frame_distances(a: UInt64Array, b: UInt64Array) -> Float64Array:
    """Return `[A, B]`: bits of 64 by which frames of a differ from those of b, where b is up to one step of the grid
    late.

    The grids of two copies do not fall on the same times, and bits change between two of them where something moves:
    11 of 64 for a talking head against itself, half a step later. So frame i of a is compared with b between its
    frames j and j + 1, in the bits that these two share, scaled to 64. Frame j of b is compared with a between i - 1
    and i, and the mean of both is taken. Unrelated frames stay 32 apart, and still images are compared without any
    change.
    """
    next_b, previous_a = _next(b), _previous(a)
    mean = (_steady_distances(a, b, next_b) + _steady_distances(b, a, previous_a).T) / 2
    return mean * _weights(a, b)


def _next(hashes: UInt64Array) -> UInt64Array:
    """Return the hash after each one along the last axis; that of the last is itself."""
    return np.concatenate([hashes[..., 1:], hashes[..., -1:]], axis=-1)


def _previous(hashes: UInt64Array) -> UInt64Array:
    """Return the hash before each one along the last axis; that of the first is itself."""
    return np.concatenate([hashes[..., :1], hashes[..., :-1]], axis=-1)


def _weights(a: UInt64Array, b: UInt64Array) -> Float64Array:
    """Return `[A, B]`: 32 divided by the bits in which unrelated hashes with as many bits set would differ, at least 1.

    A title card sets 16 bits of 64, and two of them are near each other for this reason alone.
    """
    set_a, set_b = (np.bitwise_count(hashes) / 64.0 for hashes in (a, b))
    expected = 64 * (set_a[:, None] * (1 - set_b[None, :]) + set_b[None, :] * (1 - set_a[:, None]))
    return np.maximum(1.0, 32 / np.maximum(expected, 1.0))


def _steady_distances(a: UInt64Array, b: UInt64Array, neighbour_b: UInt64Array) -> Float64Array:
    """Return `[A, B]`: bits in which a differs from b, counted over the bits that b shares with its neighbour."""
    differing = a[:, None] ^ b[None, :]
    ignored = _changing_bits(b, neighbour_b)
    scale = 64 / (64 - np.bitwise_count(ignored).astype(np.float64))
    return np.asarray(np.bitwise_count(differing & ~ignored[None, :]) * scale[None, :], np.float64)


def _changing_bits(hashes: UInt64Array, neighbours: UInt64Array) -> UInt64Array:
    """Return the bits that hashes do not share with their neighbours, none where these are most of the bits.

    The few that are left would agree at random.
    """
    changed = hashes ^ neighbours
    return np.where(64 - np.bitwise_count(changed).astype(np.int64) >= MIN_STEADY_BITS, changed, np.uint64(0))


def best_run(gain: Float64Array) -> tuple[int, int]:
    """Return start and end (exclusive) of the run of the greatest sum; of equal ones the longest, then the first."""
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    lowest = np.minimum.accumulate(sums[:-1])
    rise = sums[1:] - lowest
    ends = np.flatnonzero(rise == rise.max()) + 1
    starts = [int(np.argmax(sums[:end] == lowest[end - 1])) for end in ends]
    return max(zip(starts, ends.tolist(), strict=True), key=lambda run: (run[1] - run[0], -run[0]))
