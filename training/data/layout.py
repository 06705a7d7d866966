"""Where the values of fixed-size columns are in a Parquet file, from its footer alone.

A column chunk that is neither compressed nor encoded, and is one data page, is that page's header, its definition levels, and then its
values one after the other: the chunk's last bytes. (Apache Parquet format, "Data Pages" and "Plain encoding".)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.data.footer import DamagedError

PAGE_HEADER_BYTES = 17
"""Least size of a data page's header: seven numbers of one byte with a tag each, a struct's tag, and two ends (Thrift's compact protocol).
So a chunk with less than twice that beside its values has one page."""

ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Of values and of definition levels."""


@dataclass(frozen=True)
class Layout:
    """Rows of each row group, and the offset of each column's first value in it. 8 bytes a row group and column."""

    n_rows: NDArray[np.int64]
    """`[G]`."""
    starts: Mapping[str, NDArray[np.int64]]
    """`[G]` by column."""

    def check(self, uri: str, row_group: int, row: int) -> None:
        """Raises `DamagedError` for a row that is not there."""
        if not 0 <= row_group < len(self.n_rows):
            raise DamagedError(f"{uri}: no row group {row_group}; it has {len(self.n_rows)}")
        if not 0 <= row < self.n_rows[row_group]:
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {self.n_rows[row_group]}")


def locate(metadata: pq.FileMetaData, widths: Mapping[str, int]) -> Layout | None:
    """Where the values of some columns are, `widths` bytes each and 0 for a column of nulls; None for a file that is laid out in another way."""
    names = metadata.schema.names
    if not set(widths) <= set(names):
        return None
    places = {name: names.index(name) for name in widths}
    if any(width and metadata.schema.column(places[name]).length != width for name, width in widths.items()):
        return None
    n_rows = np.empty(metadata.num_row_groups, np.int64)
    starts = {name: np.empty(metadata.num_row_groups, np.int64) for name in widths}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        n_rows[number] = group.num_rows
        for name, width in widths.items():
            chunk = group.column(places[name])
            size = chunk.total_compressed_size
            plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page and set(chunk.encodings) <= ENCODINGS
            one_page = PAGE_HEADER_BYTES <= size - group.num_rows * width < 2 * PAGE_HEADER_BYTES
            if not plain or not one_page or chunk.num_values != group.num_rows:
                return None
            starts[name][number] = chunk.data_page_offset + size - group.num_rows * width
    return Layout(n_rows, starts)
