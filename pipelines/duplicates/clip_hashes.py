"""Clip rows for the search for duplicates: what clips are compared and ranked by, and their perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import Int64Array, UInt64Array

READ_COLUMNS = (
    *("uid", "source", "content_hash", "kind", "width", "height", "duration_s", "sharpness"),
    *("start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den", "phash"),
)
"""Columns of clips that `as_clips` needs, `uid` among them."""

RANK_COLUMNS = ("uid", "source", "pixels", "duration_s", "sharpness", "still")
"""Columns that decide which of several clips is kept, and whether a clip is an image."""

CLIPS = pa.schema(
    [
        ("clip", pa.int64()),
        ("origin", pa.int64()),
        ("identity", pa.string()),
        ("uid", pa.string()),
        ("source", pa.string()),
        ("pixels", pa.int64()),
        ("duration_s", pa.float64()),
        ("sharpness", pa.float64()),
        ("still", pa.bool_()),
        ("phash", pa.binary()),
    ]
)
"""`clip` is a number for the content, which exact copies share. `origin` is a number for the file: clips of one
origin are never compared. `identity` is null where the hash of the content is not known."""


def as_clips(rows: pa.Table) -> pa.Table:
    """Convert rows of `READ_COLUMNS` to rows of `CLIPS`."""
    identities = identities_of(rows)
    contents = [uid if own is None else own for own, uid in zip(identities, rows["uid"].to_pylist(), strict=True)]
    origins = pc.coalesce(rows["content_hash"].cast(pa.string()), rows["source"]).to_pylist()
    pixels = pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
    columns = [
        numbers_of(contents),
        numbers_of(origins),
        pa.array(identities, pa.string()),
        rows["uid"],
        rows["source"],
        pc.fill_null(pixels, 0),
        pc.fill_null(rows["duration_s"].cast(pa.float64()), 0.0),
        pc.fill_null(rows["sharpness"].cast(pa.float64()), 0.0),
        pc.fill_null(pc.equal(rows["kind"], "image"), False),
        rows["phash"].cast(pa.binary()),
    ]
    return pa.table(columns, schema=CLIPS)


def identities_of(rows: pa.Table) -> list[str | None]:
    """Return a string per clip that identifies its content, None where the content has no hash.

    It holds the hash of the file's packets and the span from the first frame in seconds, as reduced fractions. The
    span is exact, so that copies of a file in containers with other time bases agree.
    """

    def ints(name: str) -> Int64Array:
        return np.asarray(pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy(), np.int64)

    numerator, denominator, first = ints("time_base_num"), np.maximum(ints("time_base_den"), 1), ints("first_pts")
    parts: list[list[int]] = []
    for name in ("start_pts", "end_pts"):
        pts = (ints(name) - first) * numerator
        divisor = np.gcd(pts, denominator)
        parts += [(pts // divisor).tolist(), (denominator // divisor).tolist()]
    contents, kinds = rows["content_hash"].to_pylist(), rows["kind"].to_pylist()
    return [
        None if content is None else f"{kind}:{content}:{start_num}/{start_den}:{end_num}/{end_den}"
        for content, kind, start_num, start_den, end_num, end_den in zip(contents, kinds, *parts, strict=True)
    ]


def numbers_of(strings: Sequence[str]) -> Int64Array:
    """Return a 64-bit hash per string, the same on every machine.

    Two of n strings share one with a probability of n^2 / 2^65: 3e-8 for a million. No clip is dropped by its number
    alone: exact copies are compared by their whole identity, near ones by their hashes.
    """
    data = b"".join(blake2b(string.encode(), digest_size=8).digest() for string in strings)
    return np.frombuffer(data, "<i8").astype(np.int64)


def unpack_hashes(phash: pa.ChunkedArray | pa.Array, uids: Sequence[str]) -> tuple[UInt64Array, Int64Array]:
    """Return all hashes of the column `phash` in one array, and their number per row.

    Raises `ValueError` with the uid of a row whose bytes are not a whole number of hashes.
    """
    values = [value or b"" for value in phash.to_pylist()]
    lengths = np.array([len(value) for value in values], np.int64)
    wrong = np.flatnonzero(lengths % 8)
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"clip {uids[i]}: phash has {lengths[i]} bytes, which is no whole number of 64-bit hashes; "
            "run scan and cut again"
        )
    return np.frombuffer(b"".join(values), "<u8").astype(np.uint64), lengths // 8
