"""Where the values of a shard's binary columns are in the file: written into its footer, so that a row's bytes can be read without decoding.

A column chunk that is neither compressed nor encoded, and is one data page, is that page's header, its definition levels, and then its
values one after the other: the chunk's last bytes. (Apache Parquet format, "Data Pages" and "Plain encoding".)
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq
from zlib_ng.zlib_ng import crc32

from training.data.footer import DamagedError

KEY = b"worldloom.layout"

PAGE_HEADER_BYTES = 17
"""Least size of a data page's header: seven numbers of one byte with a tag each, a struct's tag, and two ends (Thrift's compact protocol).
So a chunk with less than twice that beside its values has one page."""

ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Of values and of definition levels."""


@dataclass(frozen=True)
class Layout:
    """Rows of each row group, and where each column's first value is in it: 8 bytes each."""

    data_end: int
    """Where the file's footer begins. A file that another program has written anew has it elsewhere, and its values too."""
    widths: Mapping[str, int]
    """Bytes of a value, by column; 0 for a column of nulls."""
    n_rows: array[int]
    starts: Mapping[str, array[int]]

    def offset(self, column: str, row_group: int, row: int) -> int:
        """Of a value in the file."""
        return self.starts[column][row_group] + row * self.widths[column]

    def check(self, uri: str, row_group: int, row: int) -> None:
        """Raises `DamagedError` for a row that is not there."""
        if not 0 <= row_group < len(self.n_rows):
            raise DamagedError(f"{uri}: no row group {row_group}; it has {len(self.n_rows)}")
        if not 0 <= row < self.n_rows[row_group]:
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {self.n_rows[row_group]}")

    def dump(self) -> dict[bytes, bytes]:
        """As metadata of a file: the CRC-32 of what follows, and that as JSON."""
        starts = {name: list(values) for name, values in self.starts.items()}
        data = json.dumps(
            {"data_end": self.data_end, "widths": dict(self.widths), "n_rows": list(self.n_rows), "starts": starts}
        ).encode()
        return {KEY: b"%08x " % crc32(data) + data}


def parse_layout(metadata: Mapping[bytes, bytes] | None, uri: str) -> Layout | None:
    """The layout in a file's metadata; None where there is none. Raises `DamagedError` when it is not what was written."""
    checksum, _, data = (metadata or {}).get(KEY, b"").partition(b" ")
    if not data:
        return None
    if checksum != b"%08x" % crc32(data):
        raise DamagedError(
            f"{uri}: its footer is damaged: the checksum of its layout is not {checksum.decode(errors='replace')}"
        )
    found = json.loads(data)
    starts = {name: array("q", values) for name, values in found["starts"].items()}
    return Layout(found["data_end"], found["widths"], array("q", found["n_rows"]), starts)


def locate(metadata: pq.FileMetaData, size_bytes: int, widths: Mapping[str, int]) -> Layout | None:
    """The layout of a file that was just written; None when it is none of plain values, one page a column chunk.

    Not for any file: of a damaged footer pyarrow's accessors may abort the process.
    """
    names = metadata.schema.names
    places = {name: names.index(name) for name in widths}
    n_rows, starts = array("q"), {name: array("q") for name in widths}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        n_rows.append(group.num_rows)
        for name, width in widths.items():
            start = _start(group.column(places[name]), group.num_rows * width, group.num_rows)
            if start is None:
                return None
            starts[name].append(start)
    return Layout(size_bytes - metadata.serialized_size - 8, widths, n_rows, starts)


def _start(chunk: pq.ColumnChunkMetaData, n_bytes: int, n_rows: int) -> int | None:
    size = chunk.total_compressed_size
    plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page and set(chunk.encodings) <= ENCODINGS
    one_page = PAGE_HEADER_BYTES <= size - n_bytes < 2 * PAGE_HEADER_BYTES
    return int(chunk.data_page_offset + size - n_bytes) if plain and one_page and chunk.num_values == n_rows else None
