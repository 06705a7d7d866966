"""Rows of a table a part at a time, with the columns that are asked for, and the few rows of it that come first by some key."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.engine import tables
from pipelines.engine.tables import Index
from pipelines.report.causes import Cause, cause_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Place = tuple[str, int]
"""Where a row is stored: part and number of the row in it."""

BETWEEN = "\x1f"
"""Between the parts of a joined key: the unit separator, which no label holds."""


@dataclass(frozen=True)
class Batch:
    """The rows of one part, N of them."""

    part: str
    numbers_N: NDArray[np.int64]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, name: str) -> bool:
        return name in self.table.column_names

    def floats(self, name: str) -> Floats:
        """`[N]` values of a number's column, NaN for null; all NaN where the table has no such column."""
        if not self.has(name):
            return np.full(len(self), np.nan)
        return np.asarray(pc.fill_null(self.table[name].cast(pa.float64()), np.nan).to_numpy(), np.float64)

    def texts(self, name: str) -> list[str]:
        """`[N]` values of a text column, empty for null or a column that is not there."""
        return pc.fill_null(self.table[name], "").to_pylist() if self.has(name) else [""] * len(self)  # type: ignore[no-any-return]

    @cached_property
    def uids(self) -> NDArray[np.str_]:
        """`[N]`"""
        return np.array(self.table["uid"].to_pylist(), np.str_)

    @cached_property
    def is_clip(self) -> Bools:
        """Whether a row is a clip; the others stand for a source that gave none."""
        return np.asarray(pc.is_valid(self.table["clip_index"]).to_numpy(), np.bool_)

    @cached_property
    def is_image(self) -> Bools:
        return np.asarray(pc.equal(self.table["kind"], "image").to_numpy(), np.bool_)

    @cached_property
    def is_kept(self) -> Bools:
        return np.asarray(pc.equal(self.table["fate"], "kept").to_numpy(), np.bool_)

    def micros(self, name: str) -> Floats:
        """`[N]` a column of seconds as whole microseconds, 0 for null: their sums are exact in any order, up to 2.5 million hours."""
        return np.rint(np.nan_to_num(self.floats(name)) * 1e6)

    @cached_property
    def causes(self) -> tuple[NDArray[np.int64], list[Cause]]:
        """`[N]` indices into the distinct causes of this part, and these."""
        joined = pc.binary_join_element_wise(
            *(pc.fill_null(self.table[name], "") for name in ("fate", "fate_step", "fate_reason")), BETWEEN
        )
        encoded = joined.combine_chunks().dictionary_encode()
        causes = [cause_of(*value.split(BETWEEN, 2)) for value in encoded.dictionary.to_pylist()]
        distinct = sorted(set(causes))
        position = np.array([distinct.index(cause) for cause in causes], np.int64)
        return position[encoded.indices.to_numpy()], distinct


def batches(index: Index, columns: Sequence[str]) -> Iterator[Batch]:
    """The rows of an index, part by part. Only these columns are read, and only one part is in memory at a time."""
    for part, rows in index.by_part():
        yield Batch(part, np.array(rows, np.int64), tables.read_rows(part, rows, columns))


class Smallest:
    """The places of the `size` rows with the smallest keys, whatever the order in which rows come; rows of equal keys by uid."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._items: list[tuple[object, str, str, int]] = []

    def add(self, batch: Batch, chosen_N: Bools, keys_N: NDArray[np.float64] | NDArray[np.str_]) -> None:
        """Offer the chosen rows of a batch. A key of NaN comes last."""
        if len(self._items) == self.size:
            chosen_N = chosen_N & (keys_N <= self._items[-1][0])  # type: ignore[operator]
        at = np.flatnonzero(chosen_N)
        if not len(at):
            return
        first = at[np.lexsort((batch.uids[at], keys_N[at]))[: self.size]]
        new = [(keys_N[i].item(), str(batch.uids[i]), batch.part, int(batch.numbers_N[i])) for i in first]
        self._items = list(heapq.merge(self._items, new))[: self.size]

    @property
    def places(self) -> list[Place]:
        """The rows in order of their keys."""
        return [(part, row) for _, _, part, row in self._items]


def fetch(places: Sequence[Place], columns: Sequence[str]) -> dict[Place, dict[str, object]]:
    """The rows at these places, one part in memory at a time."""
    rows_of_part: dict[str, list[int]] = {}
    for part, row in places:
        rows_of_part.setdefault(part, []).append(row)
    found: dict[Place, dict[str, object]] = {}
    for part, rows in sorted(rows_of_part.items()):
        values = tables.read_rows(part, rows, columns).to_pylist()
        found.update({(part, row): value for row, value in zip(rows, values, strict=True)})
    return found
