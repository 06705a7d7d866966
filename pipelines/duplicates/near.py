"""Near-copies among clips that need not fit in memory: candidates by shared keys, then whole sequences of hashes laid on each other.

What travels: about eight keys a hash, once; each clip's sequence once, to where its candidates are; and the sequences of candidates once
more for each pair. What comes back is one row a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from cluster.config import Settings
from pipelines.duplicates.alignment import align
from pipelines.duplicates.candidates import candidates, counted
from pipelines.duplicates.clip_hashes import CLIPS, RANKED, Ints, numbers, sequences
from pipelines.duplicates.keys import key_rows, mixed
from pipelines.engine.shuffle import Rows

FRAME_SLACK = 2
"""A frame by which two clips become candidates may differ by this many bits more than the mean of all frames may."""


class Nearness(Settings):
    """What makes two clips near-copies."""

    max_distance: float = Field(9.0, ge=0, lt=16)
    image_max_distance: int = Field(4, ge=0, le=12)
    min_share: float = Field(0.5, gt=0, le=1)
    mirrored: bool = True


PARTNERS, SENT = 32, 256
"""A pair is compared if it is among the first 32 of one of its clips, by how many keys they share, and among the first 256 of the other. Of thousands
of copies each needs only some others to be found with: `pipelines.steps.dedup` then compares those with the best."""

MEMBER = tuple(CLIPS.field(name) for name in (*RANKED, "origin"))
PAIRS = pa.schema(
    [
        *(field.with_name(f"{side}_{field.name}") for side in "ab" for field in MEMBER),
        ("mirrored", pa.bool_()),
        ("distance", pa.float64()),
        ("share_a", pa.float64()),
        ("share_b", pa.float64()),
    ]
)
"""Two clips, how far they are apart in mean bits of 64, and which share of each the frames that both show are."""

_SIDES = pa.schema([*CLIPS, ("other", pa.int64()), ("mirrored", pa.bool_()), ("votes", pa.int64())])
"""A clip, or, with `other`, a clip asked for by a candidate pair."""

_SEQUENCES = pa.schema(
    [("pair", pa.int64()), *CLIPS, ("other", pa.int64()), ("mirrored", pa.bool_()), ("place", pa.int64())]
)
"""A clip as one of a pair, which is in this place among all its pairs."""


def near_pairs(clips: Rows, nearness: Nearness) -> pa.Table:
    """Rows of `PAIRS`, each pair of near-copies among rows of `CLIPS` once, of clips of different files."""
    found = verified(clips, nearness, int(nearness.max_distance + FRAME_SLACK), nearness.image_max_distance)
    return nearest(found.collect())


def again(clips: Rows, asked: Sequence[tuple[str, str]], nearness: Nearness) -> pa.Table:
    """As `near_pairs`, of the pairs of clips asked for by their uids, few enough to be sent to every worker."""
    a, b = zip(*asked, strict=True) if asked else ((), ())
    turns = (False, True) if nearness.mirrored else (False,)
    ways = pa.table(
        {
            "uid": pa.array((a + b) * len(turns), pa.string()),
            "other": pa.array((b + a) * len(turns), pa.string()),
            "mirrored": pa.array([turn for turn in turns for _ in (*a, *b)], pa.bool_()),
        }
    )
    return nearest(
        clips.map(partial(brought, ways=ways)).grouped("pair", partial(compared, nearness=nearness)).collect()
    )


def verified(clips: Rows, nearness: Nearness, frame_distance: int, still_distance: int) -> Rows:
    """Rows of `PAIRS`; a pair that is one mirrored as well as not mirrored is there twice."""
    keys = clips.map(partial(key_rows, mirror=nearness.mirrored))
    met = keys.grouped("key", partial(candidates, frame_distance=frame_distance, still_distance=still_distance))
    asked = met.map(asking)
    sides = clips.map(telling).union(asked).grouped("clip", answered)
    return sides.grouped("pair", partial(compared, nearness=nearness))


def asking(met: pa.Table) -> pa.Table:
    """For each candidate pair two rows without a sequence: one asks for the clip a, one for b."""
    a, b = met["a"], met["b"]
    rows = pa.table(
        {
            "clip": pa.chunked_array([*a.chunks, *b.chunks], pa.int64()),
            "other": pa.chunked_array([*b.chunks, *a.chunks], pa.int64()),
            "mirrored": pa.chunked_array([*met["mirrored"].chunks] * 2, pa.bool_()),
            "votes": pa.chunked_array([*met["votes"].chunks] * 2, pa.int64()),
        }
    )
    return _conform(rows, _SIDES)


def telling(clips: pa.Table) -> pa.Table:
    """The clips' own rows, which asking ones meet."""
    return _conform(clips, _SIDES)


def answered(sides: pa.Table) -> pa.Table:
    """The first `SENT` asking rows of each clip, each once, with the clip's sequence; of exact copies, which share a number, that of the best."""
    asks = sides.filter(pc.is_valid(sides["other"]))
    names, others, votes = (np.asarray(asks[name].to_numpy(), np.int64) for name in ("clip", "other", "votes"))
    mirror = np.asarray(asks["mirrored"].to_numpy(zero_copy_only=False), bool)
    names, others, mirror, votes = counted(names, others, mirror, votes)
    pairs = _pair_numbers(names, others, mirror)
    # Of as many votes by the pair's number, which both its clips see.
    order = np.lexsort((pairs, -votes, names))
    names, others, mirror, pairs = names[order], others[order], mirror[order], pairs[order]
    place = np.arange(len(names)) - np.searchsorted(names, names)
    sent = place < SENT
    names, others, mirror, pairs, place = names[sent], others[sent], mirror[sent], pairs[sent], place[sent]
    wanted = pa.array(np.unique(names))
    tells = sides.filter(pc.and_(pc.is_null(sides["other"]), pc.is_in(sides["clip"], wanted)))
    tells = tells.sort_by([("clip", "ascending"), *BEST_FIRST])
    told, at = np.unique(np.asarray(tells["clip"].to_numpy(), np.int64), return_index=True)
    assert len(told) == len(wanted), "a candidate's own row is missing"
    rows = tells.take(pa.array(at[np.searchsorted(told, names)]))
    return _asked_with(rows.select(CLIPS.names), pairs, others, mirror, place)


def _asked_with(clips: pa.Table, pairs: Ints, others: Ints, mirror: NDArray[np.bool_], place: Ints) -> pa.Table:
    """Rows of `_SEQUENCES`."""
    return pa.table(
        [pa.array(pairs), *clips.columns, pa.array(others), pa.array(mirror), pa.array(place)], schema=_SEQUENCES
    )


BEST_FIRST: list[tuple[str, str]] = [
    ("pixels", "descending"),
    ("duration_s", "descending"),
    ("sharpness", "descending"),
    ("source", "ascending"),
    ("uid", "ascending"),
]


def _pair_numbers(names: Ints, others: Ints, mirror: NDArray[np.bool_]) -> Ints:
    low, high = np.minimum(names, others).view(np.uint64), np.maximum(names, others).view(np.uint64)
    return mixed(mixed(low, 1) ^ high, 2).view(np.int64) ^ np.asarray(mirror, np.int64)


def compared(sides: pa.Table, nearness: Nearness) -> pa.Table:
    """Rows of `PAIRS` for the candidates that are near-copies. Both rows of a pair have to be there."""
    sides = sides.sort_by([("pair", "ascending"), ("mirrored", "ascending"), ("clip", "ascending")])
    hashes, counts = sequences(sides["phash"], sides["uid"].to_pylist())
    edges = np.concatenate([[0], np.cumsum(counts)])
    clip, other = (np.asarray(sides[name].to_numpy(), np.int64) for name in ("clip", "other"))
    pair = np.asarray(sides["pair"].to_numpy(), np.int64)
    place = np.asarray(sides["place"].to_numpy(), np.int64)
    turn, still = (sides[name].to_pylist() for name in ("mirrored", "still"))
    sources, origins = sides["source"].to_pylist(), sides["origin"].to_pylist()
    first: list[int] = []
    values: list[tuple[bool, float, float, float]] = []
    meets = (pair[1:] == pair[:-1]) & (clip[1:] == other[:-1]) & (clip[:-1] == other[1:])
    for i in np.flatnonzero(meets & (np.minimum(place[1:], place[:-1]) < PARTNERS)).tolist():
        j = i + 1
        if turn[i] != turn[j] or sources[i] == sources[j] or origins[i] == origins[j] or still[i] != still[j]:
            continue
        a, b = (hashes[edges[k] : edges[k + 1]] for k in (i, j))
        laid = align(a, b, turn[i])
        if laid is None or laid.distance > (nearness.image_max_distance if still[i] else nearness.max_distance):
            continue
        if laid.length < nearness.min_share * min(len(a), len(b)):
            continue
        first.append(i)
        values.append((turn[i], laid.distance, laid.length / len(a), laid.length / len(b)))
    return _pairs(sides, first, values)


def brought(clips: pa.Table, ways: pa.Table) -> pa.Table:
    """For each `uid` in `ways` that is among these clips its sequence, to meet that of the `other` one."""
    ways = ways.filter(pc.is_in(ways["uid"], value_set=clips["uid"].combine_chunks()))
    taken = clips.take(pc.index_in(ways["uid"].combine_chunks(), clips["uid"].combine_chunks()))
    # Here a clip goes by its uid: copies that share a number are not to be taken for each other.
    names, others = numbers(ways["uid"].to_pylist()), numbers(ways["other"].to_pylist())
    mirror = np.asarray(ways["mirrored"].to_numpy(), bool)
    return _asked_with(
        taken.set_column(0, "clip", pa.array(names)),
        _pair_numbers(names, others, mirror),
        others,
        mirror,
        np.zeros_like(names),
    )


def nearest(pairs: pa.Table) -> pa.Table:
    """Rows of `PAIRS`, ordered by the clips' uids, and of those for one pair the nearest."""
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


def _pairs(sides: pa.Table, first: Sequence[int], values: Sequence[tuple[bool, float, float, float]]) -> pa.Table:
    """Rows of `PAIRS` of rows of sides and those after them, the clip of the smaller uid as a."""
    uids = sides["uid"].to_pylist()
    swap = [uids[i] > uids[i + 1] for i in first]
    positions = [[i + (side != turned) for i, turned in zip(first, swap, strict=True)] for side in (False, True)]
    columns = [sides[field.name].take(pa.array(rows, pa.int64())) for rows in positions for field in MEMBER]
    ordered = [
        (way, distance, b, a) if turned else (way, distance, a, b)
        for (way, distance, a, b), turned in zip(values, swap, strict=True)
    ]
    found = [[value[k] for value in ordered] for k in range(4)]
    return pa.table(
        [*columns, *(pa.array(column, field.type) for column, field in zip(found, list(PAIRS)[-4:], strict=True))],
        schema=PAIRS,
    )


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, null where the rows have none."""
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)
