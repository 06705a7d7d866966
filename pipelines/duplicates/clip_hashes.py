"""What the search for duplicates knows of a clip: its number, the file it is of, what ranks it, and its hashes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

READS = (
    *("uid", "source", "content_hash", "kind", "width", "height", "duration_s", "sharpness"),
    *("start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den", "phash"),
)
"""Columns of clips that `as_clips` needs, `uid` among them."""

RANKED = ("uid", "source", "pixels", "duration_s", "sharpness", "still")
"""What decides which clip of several stays, and whether it is an image."""

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
"""`clip` numbers the content (exact copies share it), `origin` the file; `identity` is null where the content's hash is not known."""


def as_clips(rows: pa.Table) -> pa.Table:
    """Rows of `READS` as rows of `CLIPS`."""
    identities = identity(rows)
    names = [own if own is not None else uid for own, uid in zip(identities, rows["uid"].to_pylist(), strict=True)]
    origins = pc.coalesce(rows["content_hash"].cast(pa.string()), rows["source"]).to_pylist()
    pixels = pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
    columns = [
        numbers(names),
        numbers(origins),
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


def identity(rows: pa.Table) -> list[str | None]:
    """The content of each clip as a string: the hash of the file's packets and the span from the first frame, in seconds, as reduced fractions.

    The span is exact, so that the copies of a file in containers of other time bases agree. None where there is no hash of the content.
    """

    def ints(name: str) -> Ints:
        return np.asarray(pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy(), np.int64)

    numerator, denominator, first = ints("time_base_num"), np.maximum(ints("time_base_den"), 1), ints("first_pts")
    parts: list[list[int]] = []
    for name in ("start_pts", "end_pts"):
        pts = (ints(name) - first) * numerator
        divisor = np.gcd(pts, denominator)
        parts += [(pts // divisor).tolist(), (denominator // divisor).tolist()]
    contents, kinds = rows["content_hash"].to_pylist(), rows["kind"].to_pylist()
    return [
        None if content is None else f"{kind}:{content}:{start}/{start_of}:{end}/{end_of}"
        for content, kind, start, start_of, end, end_of in zip(contents, kinds, *parts, strict=True)
    ]


def numbers(strings: Sequence[str]) -> Ints:
    """A 64-bit number for each string, the same everywhere.

    Two of n strings share one with a probability of n^2 / 2^65: 3e-8 for a million. Nothing is dropped by number alone: exact copies
    are told by their whole identity, near ones by their hashes.
    """
    data = b"".join(blake2b(string.encode(), digest_size=8).digest() for string in strings)
    return np.frombuffer(data, "<i8").astype(np.int64)


def sequences(phash: pa.ChunkedArray | pa.Array, uids: Sequence[str]) -> tuple[Hashes, Ints]:
    """All hashes of a column in one array, and how many each row has. Raises `ValueError` naming a row whose bytes are no hashes."""
    values = [value or b"" for value in phash.to_pylist()]
    lengths = np.array([len(value) for value in values], np.int64)
    wrong = np.flatnonzero(lengths % 8)
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"clip {uids[i]}: phash has {lengths[i]} bytes, which is no whole number of 64-bit hashes; run scan and cut again"
        )
    return np.frombuffer(b"".join(values), "<u8").astype(np.uint64), lengths // 8
