"""Rows of a table, one part at a time, and the rows with the smallest keys."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.arrays import BoolArray, Float64Array, Int64Array
from pipelines.engine import tables
from pipelines.engine.table_index import Index
from pipelines.report.causes import Cause, cause_of

RowRef = tuple[str, str]
"""Reference to a stored row: the URI of its part and its uid."""

SEPARATOR = "\x1f"
"""Separates the fields of a joined key: the unit separator, which no label contains."""


@dataclass(frozen=True)
class Batch:
    """Rows of one part, N of them, with some of their columns."""

    part: str
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, name: str) -> bool:
        """Return whether the rows have a column."""
        return name in self.table.column_names

    def floats(self, name: str) -> Float64Array:
        """Return the values `[N]` of a numeric column, NaN for null; all NaN if the column does not exist."""
        if not self.has(name):
            return np.full(len(self), np.nan)
        return np.asarray(pc.fill_null(self.table[name].cast(pa.float64()), np.nan).to_numpy(), np.float64)

    def texts(self, name: str) -> list[str]:
        """Return the N values of a text column, empty for null; all empty if the column does not exist."""
        if not self.has(name):
            return [""] * len(self)
        values: list[str] = pc.fill_null(self.table[name], "").to_pylist()
        return values

    @cached_property
    def uids(self) -> NDArray[np.str_]:
        """Uids `[N]`."""
        return np.array(self.table["uid"].to_pylist(), np.str_)

    @cached_property
    def is_clip(self) -> BoolArray:
        """Mask `[N]` of the rows that are clips; each other row is a source without clips."""
        return np.asarray(pc.is_valid(self.table["clip_index"]).to_numpy(), np.bool_)

    @cached_property
    def is_image(self) -> BoolArray:
        """Mask `[N]` of the rows whose source is an image."""
        return np.asarray(pc.equal(self.table["kind"], "image").to_numpy(), np.bool_)

    @cached_property
    def is_kept(self) -> BoolArray:
        """Mask `[N]` of the kept rows."""
        return np.asarray(pc.equal(self.table["fate"], "kept").to_numpy(), np.bool_)

    def microseconds(self, name: str) -> Float64Array:
        """Return a column of seconds in whole microseconds `[N]`, 0 for null.

        Sums of whole numbers in float64 are exact in any order, up to 2.5 million hours.
        """
        return np.rint(np.nan_to_num(self.floats(name)) * 1e6)

    @cached_property
    def causes(self) -> tuple[Int64Array, list[Cause]]:
        """Indices `[N]` into the distinct causes of these rows, and those causes."""
        joined = pc.binary_join_element_wise(
            *(pc.fill_null(self.table[name], "") for name in ("fate", "fate_step", "fate_reason")), SEPARATOR
        )
        encoded = joined.combine_chunks().dictionary_encode()
        causes = [cause_of(*value.split(SEPARATOR, 2)) for value in encoded.dictionary.to_pylist()]
        distinct = sorted(set(causes))
        position = np.array([distinct.index(cause) for cause in causes], np.int64)
        return position[encoded.indices.to_numpy()], distinct


def read_batches(index: Index, columns: Sequence[str]) -> Iterator[Batch]:
    """Yield the rows of an index part by part. Only these columns are read, and a few parts are in memory."""
    for part, rows in index.pieces(columns):
        yield Batch(part, rows)


class SmallestRows:
    """References to the `size` rows with the smallest keys. Rows of equal keys are ordered by uid.

    The result does not depend on the order in which rows are added.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._items: list[tuple[object, str, str]] = []

    def add(self, batch: Batch, mask_N: BoolArray, keys_N: Float64Array | NDArray[np.str_]) -> None:
        """Add the rows of a batch that are in the mask. NaN is the largest key."""
        if len(self._items) == self.size:
            mask_N = mask_N & (keys_N <= self._items[-1][0])  # type: ignore[operator]
        found = np.flatnonzero(mask_N)
        if not len(found):
            return
        first = found[np.lexsort((batch.uids[found], keys_N[found]))[: self.size]]
        new = [(keys_N[i].item(), str(batch.uids[i]), batch.part) for i in first]
        self._items = list(heapq.merge(self._items, new))[: self.size]

    @property
    def refs(self) -> list[RowRef]:
        """References to the rows, in the order of their keys."""
        return [(part, uid) for _, uid, part in self._items]


def read_refs(refs: Sequence[RowRef], columns: Sequence[str]) -> dict[RowRef, dict[str, object]]:
    """Return the values of the referenced rows by column name. One part is in memory at a time."""
    uids_of_part: dict[str, list[str]] = {}
    for part, uid in refs:
        uids_of_part.setdefault(part, []).append(uid)
    found: dict[RowRef, dict[str, object]] = {}
    for part, uids in sorted(uids_of_part.items()):
        values = tables.read_rows(part, uids, columns).to_pylist()
        found.update({(part, uid): value for uid, value in zip(uids, values, strict=True)})
    return found
