"""Random access to row groups of Parquet files, local or remote, from any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from training.data.byte_ranges import MAX_OPEN_FILES
from training.data.footer import READ_ERRORS, DamagedError, reading_error

CACHE_BYTES = 64 * 2**20
"""Bytes of row groups kept in memory: a small data set is read once, and neighbouring rows cost one read."""


def read_scalars(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of every row of a file, and its `row_group` and its `row` within that (int64).

    Raises `DamagedError` if they cannot be read.
    """
    try:
        with storage.open_input(uri) as handle:
            # A column chunk is a request to an object store, unless those that lie together are read together.
            file = pq.ParquetFile(handle, pre_buffer=not storage.is_local(uri))
            table = file.read(list(columns))
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            names = file.schema_arrow.names
        # A flipped bit can give text that is not UTF-8, which Arrow reads and Python cannot.
        table.validate(full=True)
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be read", error) from error
    if table.column_names != list(columns) or len(table) != sum(sizes):
        raise DamagedError(f"{uri}: has {sum(sizes)} rows of {names}; {len(table)} of {list(columns)} can be read")
    groups = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    rows = np.concatenate([np.arange(0, dtype=np.int64), *(np.arange(size, dtype=np.int64) for size in sizes)])
    return table.append_column("row_group", pa.array(groups)).append_column("row", pa.array(rows))


def remove_values(uri: str, column: str, values: Collection[str], rewrite: Callable[[pa.Array], None]) -> int:
    """Remove the rows of a file whose `column` is one of `values`, and return how many there were.

    `rewrite` writes the file again with the rows of a mask; it is called only if some rows are removed and others are
    kept. A file without rows left is deleted.
    """
    stored = read_scalars(uri, [column])[column]
    is_kept = pc.invert(pc.is_in(stored, pa.array(sorted(values), pa.string())))
    n_removed = len(stored) - int(pc.sum(is_kept).as_py() or 0)
    if n_removed == len(stored):
        storage.remove(uri)
    elif n_removed:
        rewrite(is_kept)
    return n_removed


class RowGroups:
    """A reader of whole row groups of some columns; recent ones come from memory, and files stay open.

    Row groups are written with 1 to 4 MB, so one row costs one short read and no conversion.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._cache: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def read(self, uri: str, row_group: int) -> pa.Table:
        """Return the columns of one row group. Raises `DamagedError` if they cannot be read."""
        key = uri, row_group
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        table = self._file(uri).read(row_group, self._columns)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = table
                self._cached_bytes += table.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.nbytes
        return table

    def schema(self, uri: str) -> pa.Schema:
        """Return the schema and metadata of a file. Raises `DamagedError` if it has no readable footer."""
        return self._file(uri).schema

    def _file(self, uri: str) -> _OpenFile:
        with self._lock:
            if uri in self._files:
                self._files.move_to_end(uri)
                return self._files[uri]
        # Opened outside the lock, so that a slow object store delays no other thread; the first of two that race stays.
        opened = _OpenFile(uri)
        with self._lock:
            kept = self._files.setdefault(uri, opened)
            if len(self._files) > MAX_OPEN_FILES:
                # Not closed here: another thread may be reading from it. The last reference closes it.
                self._files.popitem(last=False)
            return kept


class _OpenFile:
    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        try:
            self._parquet = pq.ParquetFile(storage.open_input(uri), pre_buffer=not storage.is_local(uri))
            self.schema: pa.Schema = self._parquet.schema_arrow
        except READ_ERRORS as error:
            raise reading_error(f"{uri}: cannot be opened", error) from error

    def read(self, row_group: int, columns: list[str]) -> pa.Table:
        count = self._parquet.num_row_groups
        if not 0 <= row_group < count:
            raise DamagedError(f"{self._uri}: no row group {row_group}; it has {count}")
        # A ParquetFile seeks as it reads, so only one thread may read at a time.
        with self._lock:
            try:
                return self._parquet.read_row_group(row_group, columns, use_threads=False)
            except READ_ERRORS as error:
                raise reading_error(f"{self._uri}: row group {row_group} cannot be read", error) from error
