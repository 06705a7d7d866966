"""Which rows the page holds, out of any number: always the same ones, chosen so that every question has some to look at.

First come the clips nearest to each threshold, duplicates with what they repeat, and failures of every class; then some of
every cause, and kept clips. Counts on the page are of all rows all the same.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines.curation import Curation
from pipelines.engine import tables
from pipelines.report.batches import Batch, Place, Smallest
from pipelines.report.causes import Cause

MAX_ROWS = 3000
MAX_STRIPS = 600
MAX_FRAMES = 4
STRIP_BYTES = 8_500_000
"""All pictures of the page together, before base64 makes them a third larger."""
SMALL_BYTES = 6_000
"""A stored picture up to this size goes into the page as it is; a larger one is scaled down first."""
PICTURE_WIDTH = 208

PER_CAUSE = 150
PER_ERROR = 40
KEPT = 1500
GROUPS = 24
GROUP_SIZE = 4
HERO = 18

DUPLICATE_COLUMNS = ("duplicate_of", "duplicate_kind", "duplicate_distance", "duplicate_overlap")


@dataclass
class Picks:
    """Rows of each cause, and of duplicate groups, by place."""

    causes: dict[Cause, Smallest] = field(default_factory=dict)
    unsure: Smallest = field(default_factory=lambda: Smallest(GROUPS))
    """Duplicates least like what they repeat: where a wrong one is most likely."""
    group_sizes: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch) -> None:
        codes_N, causes = batch.causes
        for code, cause in enumerate(causes):
            size = KEPT if not cause.is_loss else PER_ERROR if cause.fate == "failed" else PER_CAUSE
            self.causes.setdefault(cause, Smallest(size)).add(batch, codes_N == code, batch.uids)
        if batch.has("duplicate_of"):
            copies_N = np.asarray(pc.is_valid(batch.table["duplicate_of"]).to_numpy(), np.bool_)
            self.unsure.add(batch, copies_N, -np.nan_to_num(batch.floats("duplicate_distance")))
            self.group_sizes.update(batch.table["duplicate_of"].drop_null().to_pylist())

    def leaders(self, unsure_rows: Sequence[dict[str, Any]]) -> list[str]:
        """Kept clips whose duplicates are shown: those of the least sure duplicates and of the largest groups."""
        first = list(dict.fromkeys(str(row["duplicate_of"]) for row in unsure_rows))[: GROUPS // 2]
        largest = sorted(self.group_sizes, key=lambda uid: (-self.group_sizes[uid], uid))
        return list(dict.fromkeys([*first, *largest]))[:GROUPS]


class Groups:
    """The members of chosen duplicate groups: the kept clip, and its duplicates by uid."""

    def __init__(self, leaders: Sequence[str]) -> None:
        self._wanted = pa.array(sorted(leaders), pa.string())
        self.kept: dict[str, Place] = {}
        self.copies: dict[str, Smallest] = {uid: Smallest(GROUP_SIZE) for uid in leaders}

    def add(self, batch: Batch) -> None:
        if not len(self._wanted):
            return
        for i in np.flatnonzero(pc.is_in(batch.table["uid"], self._wanted).to_numpy()).tolist():
            self.kept[str(batch.uids[i])] = (batch.part, int(batch.numbers_N[i]))
        copies = pc.fill_null(batch.table["duplicate_of"], "")
        copies_N = np.array(copies.to_pylist())
        for leader in pc.unique(copies.filter(pc.is_in(copies, self._wanted))).to_pylist():
            self.copies[leader].add(batch, copies_N == leader, batch.uids)


def in_turn(lists: Sequence[Sequence[Place]]) -> list[Place]:
    """The first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


def chosen(picks: Picks, first: Sequence[Place], limit: int = MAX_ROWS) -> list[Place]:
    """Rows of the page in order of need, none twice: `first`, then a turn of every cause until the page is full."""
    lost = [smallest.places for cause, smallest in sorted(picks.causes.items()) if cause.is_loss]
    kept = [place for cause, smallest in picks.causes.items() if not cause.is_loss for place in smallest.places]
    order = [
        *first,
        *kept[:HERO],
        *in_turn([*(places[:PER_ERROR] for places in lost), kept[: 2 * PER_ERROR]]),
        *kept[: KEPT // 3],
    ]
    order += [*in_turn(lost), *kept]
    return list(dict.fromkeys(order))[:limit]


def strips(curation: Curation, uids: Sequence[str]) -> dict[str, list[bytes]]:
    """A few small JPEG pictures of each of these clips, in time order, from the table that still holds some.

    Clips come in order of need: when the pictures of all exceed `STRIP_BYTES`, those that come last get fewer, then none.
    """
    found: dict[str, list[bytes]] = {}
    wanted = list(dict.fromkeys(uids))
    for column in ("thumbnails", "frames"):
        for state in curation.segments:
            if column not in state.segment.schema.names or "clip_index" not in state.segment.schema.names:
                continue
            left = pa.array([uid for uid in wanted if uid not in found], pa.string())
            rows = state.rows.rows
            index = tables.Index(rows.filter(pc.is_in(rows["uid"], left)))
            for part, numbers in index.by_part():
                for row in tables.read_rows(part, numbers, ["uid", column]).to_pylist():
                    if row[column]:
                        found[row["uid"]] = [small(picture) for picture in evenly(row[column], MAX_FRAMES)]
    return _within(found, wanted, STRIP_BYTES)


def evenly(items: Sequence[bytes], n: int) -> list[bytes]:
    """At most n of the items, spread over all."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)] if n > 1 else [items[len(items) // 2]]


def small(picture: bytes) -> bytes:
    """A JPEG of at most `PICTURE_WIDTH` pixels a side, unless it is a light one already; one that cannot be read stays as it is."""
    if len(picture) <= SMALL_BYTES:
        return picture
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.draft("RGB", (PICTURE_WIDTH, PICTURE_WIDTH))
            image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
            handle = io.BytesIO()
            image.convert("RGB").save(handle, "JPEG", quality=72, optimize=True)
            return handle.getvalue()
    except OSError:
        return picture


def _within(found: dict[str, list[bytes]], order: Sequence[str], limit: int) -> dict[str, list[bytes]]:
    """Strips in order, each with fewer pictures where all of them together would be too many bytes."""
    order = [uid for uid in order if uid in found]
    for n in range(MAX_FRAMES, 0, -1):
        fewer = {uid: evenly(found[uid], n) for uid in order}
        if n == 1 or sum(len(picture) for pictures in fewer.values() for picture in pictures) <= limit:
            break
    left = limit
    kept: dict[str, list[bytes]] = {}
    for uid, pictures in fewer.items():
        left -= sum(map(len, pictures))
        if left < 0:
            break
        kept[uid] = pictures
    return kept
