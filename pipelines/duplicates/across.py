"""The closest pairs of clips across groups that should have nothing in common, as training and validation."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates.clip_hashes import READS, as_clips, numbers
from pipelines.duplicates.near import Nearness, nearest, verified
from pipelines.engine.shuffle import Rows

LOOSE = Nearness(max_distance=15.0, image_max_distance=12, min_share=0.5)
"""As far apart as two clips can be and still be laid on each other: half way to strangers."""
FRAME_DISTANCE = 18

CLOSEST = pa.schema(
    [("uid_a", pa.string()), ("uid_b", pa.string()), ("distance", pa.float64()), ("share", pa.float64())]
)


def closest_across(rows: Rows, column: str, limit: int = 10) -> pa.Table:
    """The closest pairs of clips, exact copies included, whose values of a string column differ; nearest first, at most `limit`.

    `rows` have the columns of `pipelines.duplicates.clip_hashes.READS` and `column`; rows in which it is null take no part. Gives `uid_a` and
    `uid_b` (of which the first is the smaller), `distance` (mean bits of 64 over the frames both show, below 16; 32 is of strangers) and
    `share` (of the shorter clip that the other shows). Pairs farther apart are not looked for, so there may be fewer or none.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: at least one pair has to be asked for")
    clips = rows.map(partial(_of_groups, column=column))
    found = verified(clips, LOOSE, FRAME_DISTANCE, LOOSE.image_max_distance).map(partial(_first, limit=limit))
    pairs = _first(nearest(found.collect()), limit)
    share = pc.max_element_wise(pairs["share_a"], pairs["share_b"])
    return pa.table([pairs["a_uid"], pairs["b_uid"], pairs["distance"], share], schema=CLOSEST)


def _of_groups(rows: pa.Table, column: str) -> pa.Table:
    """Clips of which only those of different groups are compared. A copy is a clip of its own here: it may be in the other group."""
    rows = rows.filter(pc.is_valid(rows[column]))
    clips = as_clips(rows.select(list(READS)))
    groups = numbers(rows[column].cast(pa.string()).to_pylist())
    clips = clips.set_column(clips.column_names.index("origin"), "origin", pa.array(groups))
    return clips.set_column(0, "clip", pa.array(numbers(rows["uid"].to_pylist())))


def _first(pairs: pa.Table, limit: int) -> pa.Table:
    return pairs.sort_by(
        [("distance", "ascending"), ("a_uid", "ascending"), ("b_uid", "ascending"), ("mirrored", "ascending")]
    )[:limit]
