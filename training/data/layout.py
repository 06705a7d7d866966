"""Where the values of fixed-size columns are in a Parquet file, from its footer alone.

A column chunk that is neither compressed nor encoded, and is one data page, is that page's header, its definition levels, and then its
values one after the other: the chunk's last bytes. (Apache Parquet format, "Data Pages" and "Plain encoding".)
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq

from training.data.footer import DamagedError

PAGE_HEADER_BYTES = 17
"""Least size of a data page's header: seven numbers of one byte with a tag each, a struct's tag, and two ends (Thrift's compact protocol).
So a chunk with less than twice that beside its values has one page."""

ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Of values and of definition levels."""


@dataclass(frozen=True)
class Layout:
    """Rows of each row group, and where each column's first value is in it. 8 bytes a row group, and 8 a column of it."""

    uri: str
    widths: Mapping[str, int]
    """Bytes of a value, by column."""
    n_rows: array[int]
    starts: Mapping[str, array[int]]

    def offset(self, column: str, row_group: int, row: int) -> int:
        """Of a value in the file."""
        return self.starts[column][row_group] + row * self.widths[column]

    def check(self, row_group: int, row: int) -> None:
        """Raises `DamagedError` for a row that is not there."""
        if not 0 <= row_group < len(self.n_rows):
            raise DamagedError(f"{self.uri}: no row group {row_group}; it has {len(self.n_rows)}")
        if not 0 <= row < self.n_rows[row_group]:
            raise DamagedError(f"{self.uri}: row group {row_group} has no row {row}; it has {self.n_rows[row_group]}")


def locate(uri: str, metadata: pq.FileMetaData, widths: Mapping[str, int]) -> Layout | None:
    """Where the values of some columns are, `widths` bytes each and 0 for a column of nulls; None for a file that is laid out in another way."""
    names = metadata.schema.names
    if not set(widths) <= set(names):
        return None
    places = {name: names.index(name) for name in widths}
    if any(width and metadata.schema.column(places[name]).length != width for name, width in widths.items()):
        return None
    n_rows, starts = array("q"), {name: array("q") for name in widths}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        n_rows.append(group.num_rows)
        for name, width in widths.items():
            start = _start(group.column(places[name]), group.num_rows * width, group.num_rows)
            if start is None:
                return None
            starts[name].append(start)
    return Layout(uri, widths, n_rows, starts)


def _start(chunk: pq.ColumnChunkMetaData, n_bytes: int, n_rows: int) -> int | None:
    size = chunk.total_compressed_size
    plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page and set(chunk.encodings) <= ENCODINGS
    one_page = PAGE_HEADER_BYTES <= size - n_bytes < 2 * PAGE_HEADER_BYTES
    return int(chunk.data_page_offset + size - n_bytes) if plain and one_page and chunk.num_values == n_rows else None
