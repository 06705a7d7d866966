"""The closest pairs of clips of groups that should have nothing in common, such as training and validation."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates.clip_hashes import READ_COLUMNS, as_clips, numbers_of
from pipelines.duplicates.near import NearThresholds, nearest, verified_pairs
from pipelines.engine.shuffle import Rows

LOOSE = NearThresholds(max_distance=15.0, image_max_distance=12, min_share=0.5)
"""The largest distances at which clips can still be aligned: about half way to unrelated clips."""
FRAME_DISTANCE = 18
"""Largest distance in bits of the two frames by which clips become candidates."""

CLOSEST = pa.schema(
    [("uid_a", pa.string()), ("uid_b", pa.string()), ("distance", pa.float64()), ("share", pa.float64())]
)
"""Two clips, the smaller uid first, the mean bits of 64 by which the frames that both show differ, and the share of
the shorter clip that these frames are."""


def closest_across(rows: Rows, column: str, limit: int = 10) -> pa.Table:
    """Return the closest pairs of clips whose values of a string column differ, as rows of `CLOSEST`, nearest first.

    There are at most `limit` pairs, exact copies among them. `rows` have `READ_COLUMNS` and `column`; rows in which
    it is null take no part. Distances are below 16 (unrelated clips have 32): pairs farther apart are not searched
    for, so there may be fewer or none. Raises `ValueError` if `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: it must be at least 1")
    clips = rows.map(partial(clips_of_groups, column=column)).stored()
    verified = verified_pairs(clips, LOOSE, FRAME_DISTANCE, LOOSE.image_max_distance)
    found = verified.map(partial(_closest, limit=2 * limit))
    # Of a pair that is alike both as it is and mirrored there are two rows up to here.
    pairs = _closest(nearest(found.collect()), limit)
    share = pc.max_element_wise(pairs["share_a"], pairs["share_b"])
    return pa.table([pairs["a_uid"], pairs["b_uid"], pairs["distance"], share], schema=CLOSEST)


def clips_of_groups(rows: pa.Table, column: str) -> pa.Table:
    """Return rows of `CLIPS` whose origin is the group in a string column, so that only clips of two are compared.

    Exact copies get numbers of their own, because they may be in different groups.
    """
    rows = rows.filter(pc.is_valid(rows[column]))
    clips = as_clips(rows.select(list(READ_COLUMNS)))
    groups = numbers_of(rows[column].cast(pa.string()).to_pylist())
    clips = clips.set_column(clips.column_names.index("origin"), "origin", pa.array(groups))
    return clips.set_column(0, "clip", pa.array(numbers_of(rows["uid"].to_pylist())))


def _closest(pairs: pa.Table, limit: int) -> pa.Table:
    return pairs.sort_by(
        [("distance", "ascending"), ("a_uid", "ascending"), ("b_uid", "ascending"), ("mirrored", "ascending")]
    )[:limit]
