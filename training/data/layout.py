"""The layout of a shard: the offsets of the values of its binary columns, so that a row's bytes are read directly.

The layout is written into the shard's footer. A column chunk that is neither compressed nor encoded and has one data
page is that page's header, its definition levels, and its values one after the other: so the values are the chunk's
last bytes (Apache Parquet format, "Data Pages" and "Plain encoding").
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq
from zlib_ng.zlib_ng import crc32

from training.data.footer import DamagedError

LAYOUT_KEY = b"worldloom.layout"
"""Key of the footer's metadata."""

MIN_PAGE_HEADER_BYTES = 17
"""Smallest size of a data page's header: seven numbers of one byte with a tag each, a struct's tag, and two ends
(Thrift's compact protocol). So a chunk with less than twice that besides its values has one page."""

PLAIN_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Encodings that leave values as they are: PLAIN of values, the others of definition levels."""


@dataclass(frozen=True)
class Layout:
    """The number of rows of each row group and the offset of each column's first value in it, 8 bytes each."""

    data_end: int
    """Offset of the file's footer. If another program rewrote the file, its footer and its values are elsewhere."""
    widths: Mapping[str, int]
    """Bytes per value, by column; 0 for a column of nulls."""
    n_rows: array[int]
    starts: Mapping[str, array[int]]
    """Offset of the first value of each row group, by column."""

    def offset(self, column: str, row_group: int, row: int) -> int:
        """Return the offset of a value in the file."""
        return self.starts[column][row_group] + row * self.widths[column]

    def check(self, uri: str, row_group: int, row: int) -> None:
        """Raise `DamagedError` if the file has no such row."""
        if not 0 <= row_group < len(self.n_rows):
            raise DamagedError(f"{uri}: no row group {row_group}; it has {len(self.n_rows)}")
        if not 0 <= row < self.n_rows[row_group]:
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {self.n_rows[row_group]}")

    def dump(self) -> dict[bytes, bytes]:
        """Return the layout as metadata of a file: the CRC-32 of the JSON, a space, and the JSON."""
        starts = {name: list(values) for name, values in self.starts.items()}
        data = json.dumps(
            {"data_end": self.data_end, "widths": dict(self.widths), "n_rows": list(self.n_rows), "starts": starts}
        ).encode()
        return {LAYOUT_KEY: b"%08x " % crc32(data) + data}


def parse_layout(metadata: Mapping[bytes, bytes] | None, uri: str) -> Layout | None:
    """Return the layout in a file's metadata, None if there is none. Raises `DamagedError` if its checksum differs."""
    checksum, _, data = (metadata or {}).get(LAYOUT_KEY, b"").partition(b" ")
    if not data:
        return None
    if checksum != b"%08x" % crc32(data):
        raise DamagedError(
            f"{uri}: its footer is damaged: the checksum of its layout is not {checksum.decode(errors='replace')}"
        )
    found = json.loads(data)
    starts = {name: array("q", values) for name, values in found["starts"].items()}
    return Layout(found["data_end"], found["widths"], array("q", found["n_rows"]), starts)


def locate(metadata: pq.FileMetaData, data_end: int, widths: Mapping[str, int]) -> Layout | None:
    """Return the layout of a file that was just written, or None if its chunks are not one page of plain values each.

    Call it only for files of this process: on a damaged footer, pyarrow's accessors may abort the process.
    """
    names = metadata.schema.names
    columns = {name: names.index(name) for name in widths}
    n_rows, starts = array("q"), {name: array("q") for name in widths}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        n_rows.append(group.num_rows)
        for name, width in widths.items():
            start = _values_start(group.column(columns[name]), group.num_rows * width, group.num_rows)
            if start is None:
                return None
            starts[name].append(start)
    return Layout(data_end, widths, n_rows, starts)


def _values_start(chunk: pq.ColumnChunkMetaData, n_bytes: int, n_rows: int) -> int | None:
    """Return the offset of a chunk's values, or None if it is not one page of `n_bytes` plain values."""
    size = chunk.total_compressed_size
    plain = (
        chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
        and set(chunk.encodings) <= PLAIN_ENCODINGS
    )
    one_page = MIN_PAGE_HEADER_BYTES <= size - n_bytes < 2 * MIN_PAGE_HEADER_BYTES
    return int(chunk.data_page_offset + size - n_bytes) if plain and one_page and chunk.num_values == n_rows else None
