"""Selection of the rows that the page holds: at most `MAX_ROWS`, the same ones for the same table.

First come the clips nearest to each threshold, duplicates with the clips they repeat, and failures of every class.
Then come some rows of every cause, and kept clips. The counts on the page are always those of all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.batches import Batch, RowRef, SmallestRows
from pipelines.report.causes import Cause

MAX_ROWS = 3000
MAX_ROWS_PER_CAUSE = 150
MAX_ROWS_PER_ERROR = 40
MAX_KEPT_ROWS = 1500
MAX_GROUPS = 24
"""Largest number of duplicate groups."""
MAX_COPIES = 4
"""Largest number of duplicates in a group on the page."""
N_HEADER_CLIPS = 18
"""Number of kept clips at the top of the page."""

DUPLICATE_COLUMNS = ("duplicate_of", "duplicate_kind", "duplicate_distance", "duplicate_overlap")


@dataclass
class Candidates:
    """Rows that the page may hold, by cause, and the sizes of all duplicate groups."""

    by_cause: dict[Cause, SmallestRows] = field(default_factory=dict)
    least_similar: SmallestRows = field(default_factory=lambda: SmallestRows(MAX_GROUPS))
    """Duplicates with the largest distance to the clip that they repeat: where a mistake is most likely."""
    group_sizes: Counter[str] = field(default_factory=Counter)
    """Number of duplicates of each kept clip, by its uid."""

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        codes_N, causes = batch.causes
        for code, cause in enumerate(causes):
            size = MAX_ROWS_PER_ERROR if cause.fate == "failed" else MAX_ROWS_PER_CAUSE
            rows = self.by_cause.setdefault(cause, SmallestRows(size if cause.is_loss else MAX_KEPT_ROWS))
            rows.add(batch, codes_N == code, batch.uids)
        if batch.has("duplicate_of"):
            duplicate_N = np.asarray(pc.is_valid(batch.table["duplicate_of"]).to_numpy(), np.bool_)
            self.least_similar.add(batch, duplicate_N, -np.nan_to_num(batch.floats("duplicate_distance")))
            self.group_sizes.update(batch.table["duplicate_of"].drop_null().to_pylist())

    def choose_groups(self, least_similar_groups: Iterable[str]) -> list[str]:
        """Return the uids of the kept clips whose duplicate groups are on the page.

        Up to half of them are groups of the least similar duplicates; the rest are the largest groups.
        """
        first = list(dict.fromkeys(least_similar_groups))[: MAX_GROUPS // 2]
        largest = sorted(self.group_sizes, key=lambda uid: (-self.group_sizes[uid], uid))
        return list(dict.fromkeys([*first, *largest]))[:MAX_GROUPS]


class DuplicateGroups:
    """The rows of chosen duplicate groups, by the uid of the kept clip: that clip and its duplicates."""

    def __init__(self, kept_uids: Sequence[str]) -> None:
        self._kept_uids = pa.array(sorted(kept_uids), pa.string())
        self._kept: dict[str, RowRef] = {}
        self._copies = {uid: SmallestRows(MAX_COPIES) for uid in kept_uids}

    def add(self, batch: Batch) -> None:
        """Add the members of the groups in a batch."""
        if not len(self._kept_uids):
            return
        for i in np.flatnonzero(pc.is_in(batch.table["uid"], self._kept_uids).to_numpy()).tolist():
            uid = str(batch.uids[i])
            self._kept[uid] = (batch.part, uid)
        duplicate_of = pc.fill_null(batch.table["duplicate_of"], "")
        duplicate_of_N = np.array(duplicate_of.to_pylist())
        for uid in pc.unique(duplicate_of.filter(pc.is_in(duplicate_of, self._kept_uids))).to_pylist():
            self._copies[uid].add(batch, duplicate_of_N == uid, batch.uids)

    @property
    def members(self) -> dict[str, tuple[RowRef, list[RowRef]]]:
        """The kept clip and its duplicates, of each group whose kept clip was found."""
        return {uid: (self._kept[uid], copies.refs) for uid, copies in self._copies.items() if uid in self._kept}


def interleave(lists: Sequence[Sequence[RowRef]]) -> list[RowRef]:
    """Return the first item of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


def select_rows(
    by_cause: Mapping[Cause, SmallestRows], first: Sequence[RowRef], max_rows: int = MAX_ROWS
) -> list[RowRef]:
    """Return the rows of the page, the most important ones first: `first`, then rows of every cause in turn."""
    lost = [rows.refs for cause, rows in sorted(by_cause.items()) if cause.is_loss]
    kept = [ref for cause, rows in by_cause.items() if not cause.is_loss for ref in rows.refs]
    selected = [
        *first,
        *kept[:N_HEADER_CLIPS],
        *interleave([*(refs[:MAX_ROWS_PER_ERROR] for refs in lost), kept[: 2 * MAX_ROWS_PER_ERROR]]),
        *kept[: MAX_KEPT_ROWS // 3],
        *interleave(lost),
        *kept,
    ]
    return list(dict.fromkeys(selected))[:max_rows]
