"""Work over all rows of a table, which need not fit in the memory of one process. `Global` steps use it.

There are two operations: a function of any rows (`map`), and a function of all rows that share a key (`grouped`).
`LocalRows` holds the rows in this process and its files; `pipelines.run` holds them in Ray Data.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from cluster.arrays import Int64Array

RowsFunction = Callable[[pa.Table], pa.Table]
"""A function from tables to tables of one schema; both may be empty. It is picklable: a module's function, or a
`functools.partial` of one."""

MAX_BLOCK_BYTES = 1 << 27
"""Bytes of rows from which on `LocalRows` groups them in files. Up to four times as many are in memory meanwhile."""
N_FILES = 64
"""Files that rows are grouped in: for a million clips of 16 hashes, each holds 70 MB of the search's largest rows."""


class Rows(Protocol):
    """Rows of one schema, in no particular order, as any number of tables."""

    def map(self, function: RowsFunction) -> Rows:
        """Apply a function that does not depend on which rows it gets together, each time the result is read."""
        ...

    def grouped(self, key: str, function: RowsFunction) -> Rows:
        """Apply a function to tables that hold all rows of a value of the column `key`, possibly of several values."""
        ...

    def union(self, *others: Rows) -> Rows:
        """Return these rows and those of others of the same schema."""
        ...

    def stored(self) -> Rows:
        """Return these rows, computed once: for rows that several operations read."""
        ...

    def collect(self) -> pa.Table:
        """Return all rows as one table in this process, for small results such as pairs and clusters."""
        ...


@dataclass(frozen=True)
class LocalRows:
    """Rows of this process, as tables in memory or tables that are made while they are read.

    Only what is `stored` or collected stays in memory. Rows over `MAX_BLOCK_BYTES` are grouped in files in the folder
    for temporary files (`TMPDIR`).
    """

    tables: Iterable[pa.Table]
    """Tables that can be read several times, at least one."""

    def map(self, function: RowsFunction) -> LocalRows:
        return LocalRows(_Made(lambda: map(function, self.tables)))

    def grouped(self, key: str, function: RowsFunction) -> LocalRows:
        return LocalRows(_Made(lambda: map(function, _groups(self.tables, key))))

    def union(self, *others: Rows) -> LocalRows:
        assert all(isinstance(other, LocalRows) for other in others)
        every = [self.tables, *(other.tables for other in others if isinstance(other, LocalRows))]
        return LocalRows(_Made(lambda: chain.from_iterable(every)))

    def stored(self) -> LocalRows:
        return LocalRows(list(self.tables))

    def collect(self) -> pa.Table:
        return pa.concat_tables(self.tables).combine_chunks()


@dataclass(frozen=True)
class _Made:
    """Tables that are made anew each time they are read."""

    make: Callable[[], Iterator[pa.Table]]

    def __iter__(self) -> Iterator[pa.Table]:
        return self.make()


def partition_numbers(keys: pa.ChunkedArray | pa.Array, n: int) -> Int64Array:
    """Return for each key, a string or an integer, which of `n` partitions it belongs to, the same everywhere."""
    if pa.types.is_string(keys.type):
        numbers = np.array([zlib.crc32(value.encode()) for value in keys.to_pylist()], np.uint64)
    else:
        # Neighbouring keys are spread by a multiplication with 2^64 / golden ratio (Knuth, TAOCP vol. 3, 6.4).
        numbers = (np.asarray(keys).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
    return (numbers % np.uint64(n)).astype(np.int64)


def _groups(tables: Iterable[pa.Table], key: str) -> Iterator[pa.Table]:
    """Yield all rows, those of a key in one table: as a single table, or from files if they are too large for one."""
    blocks = _blocks(tables)
    block, following = next(blocks), next(blocks, None)
    if following is None:
        yield block
        return
    with tempfile.TemporaryDirectory(prefix="worldloom-") as folder:
        paths = [Path(folder, f"{number}.arrows") for number in range(N_FILES)]
        with ExitStack() as stack:
            files = [stack.enter_context(pa.ipc.new_stream(str(path), block.schema)) for path in paths]
            while following is not None:
                _write_by_key(block, key, files)
                block, following = following, next(blocks, None)
            _write_by_key(block, key, files)
            del block
        for path in paths:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
            path.unlink()
            if len(table):
                yield table.combine_chunks()


def _blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of about `MAX_BLOCK_BYTES`."""
    pending: list[pa.Table] = []
    n_bytes = 0
    for table in tables:
        if pending and n_bytes + table.nbytes > MAX_BLOCK_BYTES:
            block = pa.concat_tables(pending).combine_chunks()
            pending, n_bytes = [], 0
            yield block
        pending.append(table)
        n_bytes += table.nbytes
    yield pa.concat_tables(pending).combine_chunks()


def _write_by_key(block: pa.Table, key: str, files: list[pa.RecordBatchStreamWriter]) -> None:
    """Write each row to the file of its key."""
    numbers = partition_numbers(block[key], len(files)).astype(np.uint8)  # of bytes, the sort is a radix sort
    block = block.take(pa.array(np.argsort(numbers, kind="stable")))
    end = 0
    for file, count in zip(files, np.bincount(numbers, minlength=len(files)).tolist(), strict=True):
        file.write_table(block.slice(end, count))
        end += count
