"""Index of a table: which part holds which row, and with which fate.

Reading a table is idempotent. If two writers did the same input row, because a worker was taken for dead or a run was
started twice, the rows in the first part by name count and the others do not, whoever reads them.

The index of all parts is stored beside them (`cluster.part_index`), so that a command opens one file for a table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import part_index, storage
from cluster.large_tables import codes, is_among, join_sorted, one_array, sort_by
from cluster.part_index import PartRows
from pipelines.engine import tables

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("input_uid", pa.string()),
        ("fate", pa.string()),
        ("fate_step", pa.string()),
        ("part", part_index.PART),
    ]
)
"""Columns of an index; `part` is the URI of a part."""


@dataclass(frozen=True)
class Index:
    """An index of rows of a table: uid, uid of the input row (`input_uid`), fate, step that gave it, and part."""

    rows: pa.Table
    n_doubled: int = 0
    """Number of rows of the table that are left out, since an earlier part has the rows of the same input row."""
    is_stored: bool = True
    """Whether no part had to be opened for it, or only one."""

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.rows["uid"]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def of_inputs(self, uids: pa.ChunkedArray) -> Index:
        """Return the index of rows that came from these input rows."""
        wanted = is_among(self.rows["input_uid"], uids)
        return Index(self.rows if pc.all(wanted, min_count=0).as_py() else self.rows.filter(wanted))

    def live(self) -> Index:
        """Return the index of kept rows."""
        return Index(self.rows.filter(pc.equal(self.rows["fate"], "kept")))

    def without_inputs(self, done: pa.ChunkedArray) -> Index:
        """Return the index of rows whose uid is not in `done`."""
        return Index(self.rows.filter(pc.invert(is_among(self.uids, done))))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows, sorted by uid, so that the result does not depend on how rows are divided into parts."""
        if not len(self):
            return pa.table({name: pa.array([], pa.string()) for name in columns or ["uid"]})
        return join_sorted((rows for _, rows in self.pieces(columns)), "uid")

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Yield (part, its rows), sorted by part. `READER_THREADS` parts are read ahead; no others are in memory."""
        with ThreadPoolExecutor(storage.READER_THREADS) as pool:
            ahead: deque[tuple[str, Future[pa.Table]]] = deque()
            for part, uids in self.by_part():
                ahead.append((part, pool.submit(tables.read_rows, part, uids, columns)))
                if len(ahead) > storage.READER_THREADS:
                    first, rows = ahead.popleft()
                    yield first, rows.result()
            while ahead:
                first, rows = ahead.popleft()
                yield first, rows.result()

    def by_part(self) -> Iterator[tuple[str, pa.Array]]:
        """Yield (part, uids of its rows in the order of the index), sorted by part."""
        code_N, names = codes(self.rows["part"])
        order_N = np.argsort(code_N, kind="stable")
        ends = np.bincount(code_N, minlength=len(names)).cumsum().tolist()
        uids = one_array(self.uids)
        for start, end, name in zip([0, *ends], ends, names.to_pylist(), strict=False):
            if start < end:
                yield name, uids.take(pa.array(order_N[start:end])).cast(pa.string())

    def tasks(self, rows_per_part: int) -> list[pa.Table]:
        """Return tasks for these rows: about `TARGET_TASKS`, or more if `rows_per_part` is smaller."""
        size = tables.task_size(len(self), rows_per_part)
        tasks: list[pa.Table] = []
        pending: dict[str, pa.Array] = {}
        n_pending = 0
        for part, uids in self.by_part():
            start = 0
            while start < len(uids):
                pending[part] = uids.slice(start, size - n_pending)
                start += len(pending[part])
                n_pending += len(pending[part])
                if n_pending == size:
                    tasks.append(tables.task_of(pending))
                    pending, n_pending = {}, 0
        return [*tasks, tables.task_of(pending)] if pending else tasks


def index_table(folder: str, input_column: str = "uid") -> Index:
    """Return the index of every row in a table's visible parts, an input row's rows once."""
    found = _read_parts(folder, input_column)
    first = _first_of_each_input(found.rows)
    return Index(first, len(found.rows) - len(first), found.is_stored)


def fates_of_table(folder: str) -> pa.Table:
    """Return uid, fate, step that gave it, and part of every row of a table, for tables of any step."""
    return _read_parts(folder, None).rows.drop_columns(["input_uid"])


def repair(folder: str, input_column: str) -> int:
    """Remove the rows of input rows that an earlier part holds already; return their number.

    Only a command that holds the lease of the tables may call it.
    """
    rows = _read_parts(folder, input_column).rows
    first = _first_of_each_input(rows)
    kept, none = dict(Index(first).by_part()), pa.array([], pa.string())
    for part, uids in Index(rows).by_part():
        left = kept.get(part, none)
        if len(left) < len(uids):
            table = storage.read_table(part)
            tables.replace_part(part, table.filter(pc.is_in(table["uid"], left)))
    return len(rows) - len(first)


def store_index(folder: str, input_column: str) -> None:
    """Store the index of a table beside its parts. Only a command that holds the lease of the tables may call it."""
    part_index.store(folder, _read_parts(folder, input_column), input_column)


def _read_parts(folder: str, input_column: str | None) -> PartRows:
    """Return a row for each row of each part. Without an input column, `input_uid` is undefined."""
    return part_index.read_parts(folder, SCHEMA, partial(_rows_of_part, input_column or "uid"), input_column)


def _rows_of_part(input_column: str, part: str) -> pa.Table:
    columns = storage.read_table(part, list(dict.fromkeys(["uid", input_column, "fate", "fate_step"])))
    values = [columns["uid"], columns[input_column], columns["fate"], columns["fate_step"]]
    return pa.table(values, names=SCHEMA.names[:-1])


def _first_of_each_input(rows: pa.Table) -> pa.Table:
    """Return the rows, sorted by part, without those of an input row that an earlier part, by name, also holds."""
    part_N, _ = codes(rows["part"])
    if (part_N[1:] < part_N[:-1]).any():
        rows, part_N = sort_by(rows, "part"), np.sort(part_N)
    input_N, inputs = codes(rows["input_uid"])
    first_S = np.full(len(inputs), len(rows))
    np.minimum.at(first_S, input_N, part_N)
    is_first_N = part_N == first_S[input_N]
    return rows if is_first_N.all() else rows.filter(pa.array(is_first_N))
