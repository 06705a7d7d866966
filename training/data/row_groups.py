"""Random access to row groups of Parquet files, local or remote, from any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from training.data.footer import READ_ERRORS, DamagedError

MAX_OPEN_FILES = 128
"""Most files kept open, well below the usual limit of 1,024 a process."""

CACHE_BYTES = 64 * 2**20
"""Row groups kept in memory: a small data set is read once, and neighbouring rows cost one read."""


def read_scalars(uri: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of every row of a file, and `row_group` and `row` within it (int64). Raises `DamagedError` when they cannot be read."""
    try:
        with storage.open_input(uri) as handle:
            file = pq.ParquetFile(handle)
            table = file.read(list(columns))
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            names = file.schema_arrow.names
        # A flipped bit can make text that is not UTF-8, which Arrow reads and Python cannot.
        table.validate(full=True)
    except READ_ERRORS as error:
        raise DamagedError(f"{uri}: cannot be read: {error}") from error
    if table.column_names != list(columns) or len(table) != sum(sizes):
        raise DamagedError(f"{uri}: has {sum(sizes)} rows of {names}; {len(table)} of {list(columns)} can be read")
    groups = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    rows = np.concatenate([np.arange(0, dtype=np.int64), *(np.arange(size, dtype=np.int64) for size in sizes)])
    return table.append_column("row_group", pa.array(groups)).append_column("row", pa.array(rows))


class RowGroups:
    """Reads whole row groups of some columns; recent ones come from memory, and files stay open.

    A row group is 1 to 4 MB as we write them, so one row costs one short read and no conversion.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._cache: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def read(self, uri: str, row_group: int) -> pa.Table:
        """The columns of one row group. Raises `DamagedError` when they cannot be read."""
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
        """Schema and metadata of a file. Raises `DamagedError` when it has no readable footer."""
        return self._file(uri).schema

    def _file(self, uri: str) -> _OpenFile:
        with self._lock:
            if uri in self._files:
                self._files.move_to_end(uri)
                return self._files[uri]
        # Opened outside the lock, so that a slow object store delays nobody else; of two that race, the first stays.
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
            raise DamagedError(f"{uri}: cannot be opened: {error}") from error

    def read(self, row_group: int, columns: list[str]) -> pa.Table:
        count = self._parquet.num_row_groups
        if not 0 <= row_group < count:
            raise DamagedError(f"{self._uri}: no row group {row_group}; it has {count}")
        # A ParquetFile seeks as it reads, so two threads must take turns.
        with self._lock:
            try:
                return self._parquet.read_row_group(row_group, columns, use_threads=False)
            except READ_ERRORS as error:
                raise DamagedError(f"{self._uri}: row group {row_group} cannot be read: {error}") from error
