"""Pairs of clips worth comparing: of different origins, with a key in common and hashes alike under it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cluster.arrays import BoolArray, Int64Array, UInt64Array
from pipelines.duplicates.keys import hamming_distances

MAX_NEIGHBOURS = 32
"""Number of following clips that each clip with a key is compared with. The sorting puts clips of different origins
next to each other, and of those the ones with like hashes. So the cost grows linearly with the number of copies, not
with its square."""

CANDIDATES = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("mirrored", pa.bool_()), ("shared_keys", pa.int64())])
"""Numbers a < b of two clips, whether one of them has to be mirrored to look like the other, and how many keys they
share that way."""


def candidates(keys: pa.Table, frame_distance: int, still_distance: int) -> pa.Table:
    """Return rows of `CANDIDATES` from rows of `KEYS`, each pair once. Clips of one `origin` are not paired.

    Hashes that share a key have to be within `frame_distance` bits of each other, those of images within
    `still_distance`. All rows of a key have to be in the table.
    """
    key, clip, origin, bits = (
        np.asarray(keys[name].to_numpy(), np.int64) for name in ("key", "clip", "origin", "hash")
    )
    is_mirrored, still = (np.asarray(keys[name].to_numpy(zero_copy_only=False), bool) for name in ("mirrored", "still"))
    hashes = bits.view(np.uint64)
    max_distance = np.where(still, still_distance, frame_distance)
    chosen = _interleaved(_worth_comparing(key, origin, hashes, max_distance), key, clip, origin, bits)
    key, clip, origin, max_distance = (column[chosen] for column in (key, clip, origin, max_distance))
    hashes, is_mirrored = hashes[chosen], is_mirrored[chosen]
    found = []
    for first, second in _neighbours(key):
        near = hamming_distances(hashes[first], hashes[second]) <= max_distance[first]
        near &= origin[first] != origin[second]
        i, j = first[near], second[near]
        a, b = np.minimum(clip[i], clip[j]), np.maximum(clip[i], clip[j])
        found.append(count_pairs(a, b, is_mirrored[i] != is_mirrored[j], np.ones(len(i), np.int64)))
    if not found:
        return CANDIDATES.empty_table()
    a, b, mirror, shared_keys = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pa.table(list(count_pairs(a, b, mirror, shared_keys)), schema=CANDIDATES)


def count_pairs(
    a: Int64Array, b: Int64Array, mirror: BoolArray, shared_keys: Int64Array
) -> tuple[Int64Array, Int64Array, BoolArray, Int64Array]:
    """Return each distinct row of the first three columns once, sorted by them, with the sum of its shared keys."""
    order = np.lexsort((mirror, b, a))
    a, b, mirror, shared_keys = a[order], b[order], mirror[order], shared_keys[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1]) | (mirror[1:] != mirror[:-1])
    starts = np.flatnonzero(new)
    return a[new], b[new], mirror[new], np.add.reduceat(shared_keys, starts) if len(starts) else shared_keys


def _neighbours(key: Int64Array) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield positions of rows of one key that are 1 apart, then those 2 apart, up to `MAX_NEIGHBOURS`."""
    first = np.arange(len(key))
    for step in range(1, MAX_NEIGHBOURS + 1):
        first = first[: np.searchsorted(first, len(key) - step)]
        first = first[key[first + step] == key[first]]
        if not len(first):
            return
        yield first, first + step


def _interleaved(
    order: Int64Array, key: Int64Array, clip: Int64Array, origin: Int64Array, bits: Int64Array
) -> Int64Array:
    """Return those positions in `order` whose key occurs in several origins, sorted by key.

    Within a key, the first row of each origin comes first, then the second of each, and so on.
    """
    order = order[np.lexsort((bits[order], clip[order], origin[order], key[order]))]
    # Exact copies have one number, and are one clip here.
    fresh = np.ones(len(order), bool)
    fresh[1:] = (key[order[1:]] != key[order[:-1]]) | (clip[order[1:]] != clip[order[:-1]])
    order = order[fresh]
    if not len(order):
        return order
    starts_key, starts_origin = np.ones(len(order), bool), np.ones(len(order), bool)
    starts_key[1:] = key[order[1:]] != key[order[:-1]]
    starts_origin[1:] = starts_key[1:] | (origin[order[1:]] != origin[order[:-1]])
    key_index = np.cumsum(starts_key) - 1
    n_origins = np.bincount(key_index, weights=starts_origin)
    in_several = n_origins[key_index] > 1
    origin_start = np.maximum.accumulate(np.where(starts_origin, np.arange(len(order)), 0))
    rank = np.arange(len(order)) - origin_start
    order, rank = order[in_several], rank[in_several]
    # The low bytes of a hash are compared first: they hold the steadiest bits.
    like = bits[order].byteswap().view(np.uint64)
    return np.asarray(order[np.lexsort((clip[order], like, rank, key[order]))], np.int64)


def _worth_comparing(key: Int64Array, origin: Int64Array, hashes: UInt64Array, max_distance: Int64Array) -> Int64Array:
    """Return positions of the rows of every key under which a pair of rows can be found.

    Among a million clips of 16 hashes, unrelated clips share about a third of the keys. Nearly all such keys have two
    or three rows, which are compared here before anything is sorted by more than the key. A key of so many rows that
    not all pairs of them are compared stays.
    """
    row, group = _rows_with_shared_keys(key)
    stays = np.bincount(group) > MAX_NEIGHBOURS + 1
    few = ~stays[group]
    row_few, group_few = row[few], group[few]
    for first, second in _neighbours(group_few):
        i, j = row_few[first], row_few[second]
        near = hamming_distances(hashes[i], hashes[j]) <= max_distance[i]
        near &= (origin[i] != origin[j]) & (key[i] == key[j])
        stays[group_few[first[near]]] = True
    return row[stays[group]]


def _rows_with_shared_keys(key: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return positions of the rows whose key, or nearly all of its bits, another row has, and a number for these bits.

    Rows of one number follow each other, in the order of the numbers. Numpy sorts numbers six times as fast as it
    finds their order: 8 million keys in 0.1 s. So the position is stored in the lowest bits of the sorted numbers.
    """
    bits = np.uint64(max(1, (len(key) - 1).bit_length()))
    packed = (key.view(np.uint64) >> bits << bits) | np.arange(len(key), dtype=np.uint64)
    packed.sort()
    like_next = (packed[1:] >> bits) == (packed[:-1] >> bits)
    shared = np.zeros(len(key), bool)
    shared[1:] = like_next
    shared[:-1] |= like_next
    packed = packed[shared]
    new = np.zeros(len(packed), bool)
    new[1:] = packed[1:] >> bits != packed[:-1] >> bits
    return (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), np.cumsum(new)
