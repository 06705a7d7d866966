"""Keys under which near-copies meet: bits of their hashes, so that only clips that share a key are ever compared.

Locality-sensitive hashing by bit sampling (Indyk and Motwani, 'Approximate nearest neighbors', 1998): each of `TABLES` masks keeps `WIDTH` of
a hash's 64 bits. Two hashes whose bits differ independently with probability p agree under one mask with (1 - p)^WIDTH.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.duplicates.clip_hashes import Hashes, Ints, sequences
from pipelines.video.phash import is_informative, mirrored

TABLES = 24
WIDTH = 26
"""More bits than log2 of the number of hashes, or every key would be shared by strangers: 2^26 is 67 million."""
SAMPLED_BITS = 52
"""Masks take their bits from the lowest frequencies only, which change least when a picture is scaled and compressed."""

BLOCKS, CLEAN_BLOCKS = 7, 3
"""For images: masks of all choices of 3 of 7 blocks of the 64 bits, 27 bits each (Manku, Jain and Das Sarma, 'Detecting near-duplicates for
web crawling', 2007). Four bits that differ leave three blocks untouched, so no image within 4 bits is missed."""

KEYS_A_CLIP, KEYS_A_HASH = 16, 8
"""A clip of u different hashes emits about 16 + 8 u keys, and at most TABLES u: a still one, which has one hash to be found by, emits them
all (an image those of its own masks), a moving one about eight a hash. Which ones follows from the keys alone: a key that two copies share
is emitted by both, or its chance is that of the one which emits fewer."""

TURN = mirrored(np.zeros(1, np.uint64))[0]
"""The bits that mirroring turns over."""

KEYS = pa.schema(
    [
        ("key", pa.int64()),
        ("clip", pa.int64()),
        ("origin", pa.int64()),
        ("hash", pa.int64()),
        ("turned", pa.bool_()),
        ("still", pa.bool_()),
    ]
)
"""A hash and one of its keys; `turned` where the hash stands mirrored here."""


@cache
def masks() -> tuple[int, ...]:
    """`TABLES` masks of `WIDTH` bits, the same everywhere."""
    rng = np.random.default_rng(20260101)
    chosen: list[int] = []
    while len(chosen) < TABLES:
        mask = sum(1 << int(bit) for bit in rng.choice(SAMPLED_BITS, WIDTH, replace=False))
        # Turning a hash the one way round that a table wants takes a bit that tells the ways apart.
        if mask & int(TURN):
            chosen.append(mask)
    return tuple(chosen)


@cache
def block_masks() -> tuple[int, ...]:
    """The masks of images: every bit is in one block, and blocks hold bits of all frequencies, some of which mirroring turns over."""
    blocks = [sum(1 << bit for bit in range(number, 64, BLOCKS)) for number in range(BLOCKS)]
    return tuple(sum(chosen) for chosen in itertools.combinations(blocks, CLEAN_BLOCKS))


def key_rows(clips: pa.Table, mirror: bool) -> pa.Table:
    """Rows of `KEYS` for rows of `pipelines.duplicates.clip_hashes.CLIPS`."""
    hashes_N, counts = sequences(clips["phash"], clips["uid"].to_pylist())
    row_N = np.repeat(np.arange(len(counts)), counts)
    known = is_informative(hashes_N)
    hashes_N, row_N = hashes_N[known], row_N[known]
    # A clip says the same thing once.
    order = np.lexsort((hashes_N, row_N))
    hashes_N, row_N = hashes_N[order], row_N[order]
    new = np.ones(len(hashes_N), bool)
    new[1:] = (hashes_N[1:] != hashes_N[:-1]) | (row_N[1:] != row_N[:-1])
    hashes_N, row_N = hashes_N[new], row_N[new]
    distinct = np.maximum(np.bincount(row_N, minlength=len(counts)), 1)
    share = np.minimum(1.0, (KEYS_A_CLIP + KEYS_A_HASH * distinct) / (TABLES * distinct))
    highest_N = (share * float(2**64 - 2**12)).astype(np.uint64)[row_N]
    still = clips["still"].to_numpy().astype(bool)
    still_N = still[row_N]
    moving, resting = np.flatnonzero(~still_N), np.flatnonzero(still_N)
    tables = [(mask, moving) for mask in masks()] + [(mask, resting) for mask in block_masks()]
    found = [
        _table_keys(number, mask, hashes_N, row_N, highest_N, chosen, mirror)
        for number, (mask, chosen) in enumerate(tables)
    ]
    keys, positions, turned = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows = row_N[positions]
    hashes = np.where(turned, mirrored(hashes_N[positions]), hashes_N[positions])
    clip, origin = (np.asarray(clips[name].to_numpy(), np.int64) for name in ("clip", "origin"))
    columns = [keys.view(np.int64), clip[rows], origin[rows], hashes.view(np.int64), turned, still[rows]]
    return pa.table(columns, schema=KEYS)


def _table_keys(
    number: int, mask: int, hashes_N: Hashes, row_N: Ints, highest_N: Hashes, chosen: Ints, mirror: bool
) -> tuple[Hashes, Ints, NDArray[np.bool_]]:
    """Keys of the chosen hashes in one table, up to each clip's highest; of which hash each is, and whether that was mirrored first.

    A picture and its mirrored copy have one key: each is turned so that the first of the mask's bits that mirroring turns over is 0.
    """
    hashes = hashes_N[chosen]
    turned = np.zeros(len(hashes), bool)
    if mirror:
        odd = mask & int(TURN)
        turned = (hashes & np.uint64(odd & -odd)) != 0
        hashes = np.where(turned, mirrored(hashes), hashes)
    keys = mixed(hashes & np.uint64(mask), 2 * number + 1)
    low = np.flatnonzero(keys <= highest_N[chosen])
    # Hashes that differ outside the mask only have the same key; the first of them by value speaks for the clip.
    _, first = np.unique(mixed(row_N.view(np.uint64)[chosen[low]], 0) ^ keys[low], return_index=True)
    low = low[np.sort(first)]
    return keys[low], chosen[low], turned[low]


def mixed(values: Hashes, salt: int) -> Hashes:
    """Values spread over all of 64 bits, each to its own: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed_N = values + np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = mixed_N ^ (mixed_N >> np.uint64(31))
    return result


def distances(a: Hashes, b: Hashes | np.uint64) -> NDArray[np.int64]:
    """Bits in which hashes differ."""
    return np.asarray(np.bitwise_count(a ^ b), np.int64)


def unique_rows(columns: Sequence[NDArray[np.generic]]) -> Ints:
    """Positions of the first of each distinct row of several columns, in the rows' order."""
    order = np.lexsort(tuple(columns[::-1]))
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order[1:]] != column[order[:-1]]
    return np.asarray(order[new], np.int64)
