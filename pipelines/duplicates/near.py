"""Near-copies among clips that need not fit in memory: candidates by shared keys, then alignment of their hash
sequences.

What is sent between workers: about eight keys per hash; each clip's hash sequence, to where its candidates are; and
the sequences of candidates once more for each pair. The result is one row per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster.arrays import BoolArray, Float64Array, Int64Array, UInt64Array
from cluster.config import Settings
from cluster.large_tables import byte_strings
from pipelines.duplicates.alignment import align, may_align
from pipelines.duplicates.candidates import candidates, count_pairs
from pipelines.duplicates.clip_hashes import CLIPS, RANK_COLUMNS, numbers_of, unpack_hashes
from pipelines.duplicates.keys import key_rows, splitmix64
from pipelines.engine.shuffle import Rows

FRAME_SLACK_BITS = 2
"""Bits by which the distance of the two frames that make clips candidates may exceed the largest mean distance of all
frames."""

MAX_RANK, MAX_REQUESTS = 32, 256
"""A pair is compared if it is among the first 32 of one of its clips, by the number of shared keys, and among the
first 256 of the other. Of thousands of copies, each has to be paired with only some others to be found:
`pipelines.steps.dedup` then compares those with the best."""

MAX_CELLS = 1 << 18
"""Frames of one clip times those of the other, over the pairs that are looked at together: arrays of 2 MB, which fit in
a core's cache."""


class NearThresholds(Settings):
    """Bounds on the distance and the overlap of two clips within which they are near-copies."""

    max_distance: float = Field(9.0, ge=0, lt=16, description="Largest mean bits of 64 by which frames differ.")
    image_max_distance: int = Field(4, ge=0, le=12, description="Largest number of bits by which images differ.")
    min_share: float = Field(0.5, gt=0, le=1, description="Smallest share of the shorter clip that both show.")
    mirrored: bool = Field(True, description="Whether mirrored copies are found.")


_MEMBER = tuple(CLIPS.field(name) for name in (*RANK_COLUMNS, "origin"))
PAIRS = pa.schema(
    [
        *(field.with_name(f"{side}_{field.name}") for side in "ab" for field in _MEMBER),
        ("mirrored", pa.bool_()),
        ("distance", pa.float64()),
        ("share_a", pa.float64()),
        ("share_b", pa.float64()),
    ]
)
"""Two clips, the mean bits of 64 by which the frames that both show differ, and the share of each clip that these
frames are."""

_SIDES = pa.schema([*CLIPS, ("other", pa.int64()), ("mirrored", pa.bool_()), ("shared_keys", pa.int64())])
"""A clip; or, where `other` is not null, the request of the clip `other` for the hashes of the clip `clip`."""

_SEQUENCES = pa.schema(
    [("pair", pa.int64()), *CLIPS, ("other", pa.int64()), ("mirrored", pa.bool_()), ("rank", pa.int64())]
)
"""One clip of a pair with its hashes; `rank` is the pair's rank among all pairs of the clip."""

BEST_FIRST: list[tuple[str, str]] = [
    ("pixels", "descending"),
    ("duration_s", "descending"),
    ("sharpness", "descending"),
    ("source", "ascending"),
    ("uid", "ascending"),
]


@dataclass(frozen=True)
class _Match:
    """A near-copy in a table of `_SEQUENCES`: its clips are in rows `row` and `row + 1`."""

    row: int
    mirrored: bool
    distance: float
    first_share: float
    second_share: float


def near_pairs(clips: Rows, thresholds: NearThresholds) -> pa.Table:
    """Return rows of `PAIRS` for rows of `CLIPS`: each pair of near-copies once, of clips of different origins."""
    frame_distance = int(thresholds.max_distance + FRAME_SLACK_BITS)
    found = verified_pairs(clips, thresholds, frame_distance, thresholds.image_max_distance)
    return nearest(found.collect())


def compare_pairs(clips: Rows, pairs: Sequence[tuple[str, str]], thresholds: NearThresholds) -> pa.Table:
    """Return rows of `PAIRS` for those of the given pairs of uids that are near-copies.

    The pairs have to be few enough to be sent to every worker.
    """
    a, b = zip(*pairs, strict=True) if pairs else ((), ())
    mirror = (False, True) if thresholds.mirrored else (False,)
    requests = pa.table(
        {
            "uid": pa.array((a + b) * len(mirror), pa.string()),
            "other": pa.array((b + a) * len(mirror), pa.string()),
            "mirrored": pa.array([value for value in mirror for _ in (*a, *b)], pa.bool_()),
        }
    )
    sequences = clips.map(partial(_sequences_by_uid, requests=requests.sort_by("uid").combine_chunks()))
    return nearest(sequences.grouped("pair", partial(_compare, thresholds=thresholds)).collect())


def verified_pairs(clips: Rows, thresholds: NearThresholds, frame_distance: int, still_distance: int) -> Rows:
    """Return rows of `PAIRS`, not collected. A pair that matches both mirrored and not mirrored is in them twice."""
    keys = clips.map(partial(key_rows, mirror=thresholds.mirrored))
    found = keys.grouped("key", partial(candidates, frame_distance=frame_distance, still_distance=still_distance))
    sides = clips.map(_own_sides).union(found.map(_requests))
    return sides.grouped("clip", _answer_requests).grouped("pair", partial(_compare, thresholds=thresholds))


def nearest(pairs: pa.Table) -> pa.Table:
    """Return rows of `PAIRS` sorted by the clips' uids, and of several rows of one pair only the nearest."""
    pairs = pairs.sort_by(
        [
            ("a_uid", "ascending"),
            ("b_uid", "ascending"),
            ("distance", "ascending"),
            ("share_a", "descending"),
            ("mirrored", "ascending"),
        ]
    )
    a, b = pairs["a_uid"].to_pylist(), pairs["b_uid"].to_pylist()
    return pairs.filter(pa.array([i == 0 or (a[i], b[i]) != (a[i - 1], b[i - 1]) for i in range(len(a))], pa.bool_()))


def _own_sides(clips: pa.Table) -> pa.Table:
    """Return rows of `_SIDES` for the clips themselves."""
    return _conform(clips, _SIDES)


def _requests(found: pa.Table) -> pa.Table:
    """Return two rows of `_SIDES` per candidate pair, without hashes: one requests the clip a, one the clip b."""
    a, b = found["a"], found["b"]
    rows = pa.table(
        {
            "clip": pa.chunked_array([*a.chunks, *b.chunks], pa.int64()),
            "other": pa.chunked_array([*b.chunks, *a.chunks], pa.int64()),
            "mirrored": pa.chunked_array([*found["mirrored"].chunks] * 2, pa.bool_()),
            "shared_keys": pa.chunked_array([*found["shared_keys"].chunks] * 2, pa.int64()),
        }
    )
    return _conform(rows, _SIDES)


def _answer_requests(sides: pa.Table) -> pa.Table:
    """Return rows of `_SEQUENCES` for the first `MAX_REQUESTS` requests of each clip.

    Exact copies share a clip number; the hashes are those of the best of them.
    """
    requests = sides.filter(pc.is_valid(sides["other"]))
    clip, other, shared_keys = (
        np.asarray(requests[name].to_numpy(), np.int64) for name in ("clip", "other", "shared_keys")
    )
    mirror = np.asarray(requests["mirrored"].to_numpy(zero_copy_only=False), bool)
    clip, other, mirror, shared_keys = count_pairs(clip, other, mirror, shared_keys)
    pair = _pair_numbers(clip, other, mirror)
    # With equally many shared keys, by the number of the pair, which is the same for both its clips.
    order = np.lexsort((pair, -shared_keys, clip))
    clip, other, mirror, pair = clip[order], other[order], mirror[order], pair[order]
    rank = np.arange(len(clip)) - np.searchsorted(clip, clip)
    first = rank < MAX_REQUESTS
    clip, other, mirror, pair, rank = clip[first], other[first], mirror[first], pair[first], rank[first]
    wanted = pa.array(np.unique(clip))
    own = sides.filter(pc.and_(pc.is_null(sides["other"]), pc.is_in(sides["clip"], wanted)))
    own = own.sort_by([("clip", "ascending"), *BEST_FIRST])
    numbers, positions = np.unique(np.asarray(own["clip"].to_numpy(), np.int64), return_index=True)
    assert len(numbers) == len(wanted), "a candidate's own row is missing"
    rows = own.take(pa.array(positions[np.searchsorted(numbers, clip)]))
    return _sequence_rows(rows.select(CLIPS.names), pair, other, mirror, rank)


def _sequences_by_uid(clips: pa.Table, requests: pa.Table) -> pa.Table:
    """Return rows of `_SEQUENCES` for those requests whose `uid` is among these clips.

    Requests (`uid`, `other`, `mirrored`) are sorted by uid, so that few are looked at where there are few clips.
    """
    uids, requested = byte_strings(clips["uid"]), byte_strings(requests["uid"])
    start, end = (np.searchsorted(requested, uids, side) for side in ("left", "right"))
    counts = end - start
    row = np.repeat(np.arange(len(counts)), counts)
    # The requests of a row follow each other.
    requests = requests.take(pa.array(np.arange(len(row)) + (start - np.cumsum(counts) + counts)[row]))
    rows = clips.take(pa.array(row))
    # Here the number of a clip is that of its uid, because exact copies, which share the other number, must not be
    # mixed up.
    clip, other = numbers_of(requests["uid"].to_pylist()), numbers_of(requests["other"].to_pylist())
    mirror = np.asarray(requests["mirrored"].to_numpy(zero_copy_only=False), bool)
    pair = _pair_numbers(clip, other, mirror)
    return _sequence_rows(rows.set_column(0, "clip", pa.array(clip)), pair, other, mirror, np.zeros_like(clip))


def _sequence_rows(
    clips: pa.Table, pair: Int64Array, other: Int64Array, mirror: BoolArray, rank: Int64Array
) -> pa.Table:
    columns = [pa.array(pair), *clips.columns, pa.array(other), pa.array(mirror), pa.array(rank)]
    return pa.table(columns, schema=_SEQUENCES)


def _pair_numbers(clip: Int64Array, other: Int64Array, mirror: BoolArray) -> Int64Array:
    """Return a number per pair of clips, the same whichever of the two comes first."""
    low, high = np.minimum(clip, other).view(np.uint64), np.maximum(clip, other).view(np.uint64)
    return splitmix64(splitmix64(low, 1) ^ high, 2).view(np.int64) ^ np.asarray(mirror, np.int64)


def _compare(sides: pa.Table, thresholds: NearThresholds) -> pa.Table:
    """Return rows of `PAIRS` for the pairs in rows of `_SEQUENCES` that are near-copies.

    Both rows of a pair have to be in the table.
    """
    sides = sides.sort_by([("pair", "ascending"), ("mirrored", "ascending"), ("clip", "ascending")])
    hashes, counts = unpack_hashes(sides["phash"], sides["uid"].to_pylist())
    edges = np.concatenate([[0], np.cumsum(counts)])
    clip, other, pair, rank = (
        np.asarray(sides[name].to_numpy(), np.int64) for name in ("clip", "other", "pair", "rank")
    )
    mirror, still = (np.asarray(sides[name].to_numpy(zero_copy_only=False), bool) for name in ("mirrored", "still"))
    origin = np.asarray(sides["origin"].to_numpy(), np.int64)
    is_pair = (pair[1:] == pair[:-1]) & (clip[1:] == other[:-1]) & (clip[:-1] == other[1:])
    is_pair &= np.minimum(rank[1:], rank[:-1]) < MAX_RANK
    is_pair &= (mirror[1:] == mirror[:-1]) & (origin[1:] != origin[:-1]) & (still[1:] == still[:-1])
    rows = np.flatnonzero(is_pair)
    sources = sides["source"].combine_chunks()
    differ = pc.not_equal(sources.take(pa.array(rows)), sources.take(pa.array(rows + 1)))
    rows = rows[np.asarray(pc.fill_null(differ, False))]
    max_distance = np.where(still, float(thresholds.image_max_distance), thresholds.max_distance)
    matches: list[_Match] = []
    for i in _that_may_align(rows, hashes, edges, mirror, max_distance, thresholds.min_share).tolist():
        a, b = (hashes[edges[k] : edges[k + 1]] for k in (i, i + 1))
        is_mirrored = bool(mirror[i])
        aligned = align(a, b, is_mirrored)
        if aligned is None or aligned.distance > max_distance[i]:
            continue
        if aligned.length < thresholds.min_share * min(len(a), len(b)):
            continue
        matches.append(_Match(i, is_mirrored, aligned.distance, aligned.length / len(a), aligned.length / len(b)))
    return _pair_rows(sides, matches)


def _that_may_align(
    rows: Int64Array,
    hashes: UInt64Array,
    edges: Int64Array,
    mirror: BoolArray,
    max_distance: Float64Array,
    min_share: float,
) -> Int64Array:
    """Return those rows whose clip may be aligned with that of the next row, in order.

    The hashes of a row are those between its edge and the next. Pairs of clips of the same lengths are looked at
    together.
    """
    counts = np.diff(edges)
    rows = rows[np.lexsort((counts[rows + 1], counts[rows]))]
    new_lengths = (np.diff(counts[rows]) != 0) | (np.diff(counts[rows + 1]) != 0)
    found = [np.zeros(0, np.int64)]
    for alike in np.split(rows, np.flatnonzero(new_lengths) + 1):
        n_a, n_b = (int(counts[alike + side].max(initial=0)) for side in (0, 1))
        size = max(1, MAX_CELLS // max(1, n_a * n_b))
        for start in range(0, len(alike) if n_a and n_b else 0, size):
            some = alike[start : start + size]
            a, b = (hashes[edges[some + side][:, None] + np.arange(n)] for side, n in ((0, n_a), (1, n_b)))
            found.append(some[may_align(a, b, mirror[some], max_distance[some], min_share * min(n_a, n_b))])
    return np.sort(np.concatenate(found))


def _pair_rows(sides: pa.Table, matches: Sequence[_Match]) -> pa.Table:
    """Return rows of `PAIRS` for matches in rows of `_SEQUENCES`; the clip of the smaller uid is a."""
    uids = sides["uid"].to_pylist()
    swapped = [uids[match.row] > uids[match.row + 1] for match in matches]
    rows_a = [match.row + swap for match, swap in zip(matches, swapped, strict=True)]
    rows_b = [match.row + (not swap) for match, swap in zip(matches, swapped, strict=True)]
    members = [sides[field.name].take(pa.array(rows, pa.int64())) for rows in (rows_a, rows_b) for field in _MEMBER]
    shares = [
        (match.second_share, match.first_share) if swap else (match.first_share, match.second_share)
        for match, swap in zip(matches, swapped, strict=True)
    ]
    measured = [
        [match.mirrored for match in matches],
        [match.distance for match in matches],
        [share_a for share_a, _ in shares],
        [share_b for _, share_b in shares],
    ]
    fields = list(PAIRS)[len(members) :]
    columns = [pa.array(values, field.type) for values, field in zip(measured, fields, strict=True)]
    return pa.table([*members, *columns], schema=PAIRS)


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema; those that the rows do not have are null."""
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)
