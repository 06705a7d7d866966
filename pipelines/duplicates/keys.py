"""Keys of perceptual hashes: only clips that share a key are ever compared.

This is locality-sensitive hashing by bit sampling (Indyk and Motwani, 'Approximate nearest neighbors', 1998): each of
`N_MASKS` masks keeps `MASK_BITS` of a hash's 64 bits. Two hashes whose bits differ independently with probability p
agree under one mask with (1 - p)^MASK_BITS.

Shape legend: N informative hashes of all clips, each clip's distinct ones once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Int64Array, UInt64Array
from pipelines.duplicates.clip_hashes import unpack_hashes
from pipelines.video.phash import ODD_COLUMNS, is_informative, mirrored

N_MASKS = 24
MASK_BITS = 26
"""Number of bits a mask keeps: more than log2 of the number of hashes, or unrelated clips would share every key. 2^26
is 67 million."""
SAMPLED_BITS = 52
"""Masks take their bits from this many lowest frequencies, which change least when an image is scaled and
compressed."""

N_BLOCKS, BLOCKS_PER_MASK = 7, 3
"""Masks of images keep all choices of 3 of 7 blocks of the 64 bits, 27 bits each (Manku, Jain and Das Sarma,
'Detecting near-duplicates for web crawling', 2007). Four bits that differ leave three blocks untouched, so no image
within 4 bits is missed."""

KEYS_PER_CLIP, KEYS_PER_HASH = 16, 8
"""A clip of u distinct hashes emits about 16 + 8 u keys, and at most `N_MASKS` u. A still clip, which has one hash,
emits all of them (an image those of its own masks), a moving one about eight per hash. The keys alone decide which:
of two copies that share a key, both emit it, or its probability is that of the copy that emits fewer."""

KEYS = pa.schema(
    [
        ("key", pa.int64()),
        ("clip", pa.int64()),
        ("origin", pa.int64()),
        ("hash", pa.int64()),
        ("mirrored", pa.bool_()),
        ("still", pa.bool_()),
    ]
)
"""One of the keys of a hash; `mirrored` where `hash` is that of the mirrored frame."""


@dataclass(frozen=True)
class _ClipHashes:
    """Hashes `[N]` of all clips, the row of each one's clip, and the highest key that the clip emits."""

    hash_N: UInt64Array
    row_N: Int64Array
    max_key_N: UInt64Array


@cache
def masks() -> tuple[int, ...]:
    """Return `N_MASKS` masks of `MASK_BITS` bits, the same on every machine."""
    rng = np.random.default_rng(20260101)
    chosen: list[int] = []
    while len(chosen) < N_MASKS:
        mask = sum(1 << int(bit) for bit in rng.choice(SAMPLED_BITS, MASK_BITS, replace=False))
        # `_keys_of_mask` decides by such a bit whether to mirror a hash.
        if mask & int(ODD_COLUMNS):
            chosen.append(mask)
    return tuple(chosen)


@cache
def block_masks() -> tuple[int, ...]:
    """Return the masks of images: every bit is in one block, and each block has bits of all frequencies."""
    blocks = [sum(1 << bit for bit in range(number, 64, N_BLOCKS)) for number in range(N_BLOCKS)]
    return tuple(sum(chosen) for chosen in itertools.combinations(blocks, BLOCKS_PER_MASK))


def key_rows(clips: pa.Table, mirror: bool) -> pa.Table:
    """Return rows of `KEYS` for rows of `CLIPS`. With `mirror`, a frame and its mirrored copy have the same keys."""
    hash_N, counts = unpack_hashes(clips["phash"], clips["uid"].to_pylist())
    row_N = np.repeat(np.arange(len(counts)), counts)
    informative = is_informative(hash_N)
    hash_N, row_N = hash_N[informative], row_N[informative]
    # The distinct hashes of each clip, once.
    order = np.lexsort((hash_N, row_N))
    hash_N, row_N = hash_N[order], row_N[order]
    new = np.ones(len(hash_N), bool)
    new[1:] = (hash_N[1:] != hash_N[:-1]) | (row_N[1:] != row_N[:-1])
    hash_N, row_N = hash_N[new], row_N[new]
    distinct = np.maximum(np.bincount(row_N, minlength=len(counts)), 1)
    share = np.minimum(1.0, (KEYS_PER_CLIP + KEYS_PER_HASH * distinct) / (N_MASKS * distinct))
    max_key_N = (share * float(2**64 - 2**12)).astype(np.uint64)[row_N]
    clip_hashes = _ClipHashes(hash_N, row_N, max_key_N)
    still = clips["still"].to_numpy().astype(bool)
    of_videos, of_images = np.flatnonzero(~still[row_N]), np.flatnonzero(still[row_N])
    tables = [(mask, of_videos) for mask in masks()] + [(mask, of_images) for mask in block_masks()]
    found = [
        _keys_of_mask(clip_hashes, chosen, mask, salt=2 * number + 1, mirror=mirror)
        for number, (mask, chosen) in enumerate(tables)
    ]
    keys, positions, is_mirrored = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows = row_N[positions]
    hashes = np.where(is_mirrored, mirrored(hash_N[positions]), hash_N[positions])
    clip, origin = (np.asarray(clips[name].to_numpy(), np.int64) for name in ("clip", "origin"))
    columns = [keys.view(np.int64), clip[rows], origin[rows], hashes.view(np.int64), is_mirrored, still[rows]]
    return pa.table(columns, schema=KEYS)


def _keys_of_mask(
    clip_hashes: _ClipHashes, chosen: Int64Array, mask: int, *, salt: int, mirror: bool
) -> tuple[UInt64Array, Int64Array, BoolArray]:
    """Return the keys under a mask of the hashes at `chosen` positions, up to the highest that each clip emits.

    The other two arrays are the position of each key's hash, and whether that hash was mirrored. With `mirror`, each
    hash is mirrored if that is needed for the lowest bit of the mask that mirroring changes to be 0.
    """
    hashes = clip_hashes.hash_N[chosen]
    is_mirrored = np.zeros(len(hashes), bool)
    if mirror:
        odd = mask & int(ODD_COLUMNS)
        is_mirrored = (hashes & np.uint64(odd & -odd)) != 0
        hashes = np.where(is_mirrored, mirrored(hashes), hashes)
    keys = splitmix64(hashes & np.uint64(mask), salt)
    low = np.flatnonzero(keys <= clip_hashes.max_key_N[chosen])
    # Hashes of a clip that differ only outside the mask have the same key; the first of them by value is taken.
    clip_keys = splitmix64(clip_hashes.row_N.view(np.uint64)[chosen[low]], 0) ^ keys[low]
    _, first = np.unique(clip_keys, return_index=True)
    low = low[np.sort(first)]
    return keys[low], chosen[low], is_mirrored[low]


def splitmix64(values: UInt64Array, salt: int) -> UInt64Array:
    """Map values one to one to pseudo-random ones: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: UInt64Array = mixed ^ (mixed >> np.uint64(31))
    return result


def hamming_distances(a: UInt64Array, b: UInt64Array | np.uint64) -> Int64Array:
    """Return the number of bits in which hashes differ."""
    return np.asarray(np.bitwise_count(a ^ b), np.int64)


def unique_rows(columns: Sequence[NDArray[np.generic]]) -> Int64Array:
    """Return positions of the first of each distinct row of several columns, in the rows' sorting order."""
    order = np.lexsort(tuple(columns[::-1]))
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order[1:]] != column[order[:-1]]
    return np.asarray(order[new], np.int64)
