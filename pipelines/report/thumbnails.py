"""Thumbnails of clips for the page, within a limit of bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines.curation import Curation
from pipelines.engine import tables
from pipelines.engine.table_index import Index

MAX_CLIPS = 600
"""Largest number of clips with thumbnails."""
MAX_PER_CLIP = 4
MAX_BYTES = 8_500_000
"""Largest size of all thumbnails together, before base64 makes them a third larger."""
SMALL_BYTES = 6_000
"""A stored thumbnail up to this size is used unchanged; a larger one is scaled down."""
MAX_SIDE_PX = 208


def read_thumbnails(curation: Curation, uids: Sequence[str]) -> dict[str, list[bytes]]:
    """Return a few JPEG thumbnails of each clip in time order, from the tables that hold some.

    If all of them together exceed `MAX_BYTES`, every clip gets fewer, and the clips at the end of `uids` get none.
    """
    found: dict[str, list[bytes]] = {}
    uids = list(dict.fromkeys(uids))
    for column in ("thumbnails", "frames"):
        for state in curation.segments:
            if column not in state.segment.schema.names or "clip_index" not in state.segment.schema.names:
                continue
            missing = pa.array([uid for uid in uids if uid not in found], pa.string())
            rows = state.rows.rows
            index = Index(rows.filter(pc.is_in(rows["uid"], missing)))
            for part, found_uids in index.by_part():
                for row in tables.read_rows(part, found_uids, ["uid", column]).to_pylist():
                    if row[column]:
                        images = evenly_spaced(row[column], MAX_PER_CLIP)
                        found[row["uid"]] = [small_thumbnail(image) for image in images]
    return _limit_bytes({uid: found[uid] for uid in uids if uid in found}, MAX_BYTES)


def evenly_spaced(items: Sequence[bytes], n: int) -> list[bytes]:
    """Return n evenly spaced items, the first and the last included; all items if there are not more."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)] if n > 1 else [items[len(items) // 2]]


def small_thumbnail(image: bytes) -> bytes:
    """Return a JPEG of at most `MAX_SIDE_PX` per side.

    An image of at most `SMALL_BYTES`, or one that cannot be decoded, is returned unchanged.
    """
    if len(image) <= SMALL_BYTES:
        return image
    try:
        return scaled_jpeg(image, (MAX_SIDE_PX, MAX_SIDE_PX), quality=72)
    except OSError:
        return image


def scaled_jpeg(image: bytes, max_size: tuple[int, int], quality: int) -> bytes:
    """Return a JPEG or PNG file as a JPEG of at most this width and height. Raises `OSError` for any other data."""
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
        opened.draft("RGB", max_size)
        opened.thumbnail(max_size)
        handle = io.BytesIO()
        opened.convert("RGB").save(handle, "JPEG", quality=quality, optimize=True)
        return handle.getvalue()


def _limit_bytes(images: Mapping[str, list[bytes]], max_bytes: int) -> dict[str, list[bytes]]:
    """Return fewer thumbnails per clip, until all fit or there is one per clip; then leave out the last clips."""
    for n in range(MAX_PER_CLIP, 0, -1):
        fewer = {uid: evenly_spaced(items, n) for uid, items in images.items()}
        if n == 1 or sum(len(image) for items in fewer.values() for image in items) <= max_bytes:
            break
    left_bytes = max_bytes
    kept: dict[str, list[bytes]] = {}
    for uid, items in fewer.items():
        left_bytes -= sum(map(len, items))
        if left_bytes < 0:
            break
        kept[uid] = items
    return kept
