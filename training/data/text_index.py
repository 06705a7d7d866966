"""Index of a folder of text tables: where each embedding is. Loads without torch.

It is stored beside the tables (`cluster.part_index`), so that counting captions opens one file and not each table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from cluster import part_index
from cluster.large_tables import first_of_each
from cluster.part_index import PartRows
from cluster.storage import digest
from training.data.footer import DamagedError
from training.data.row_groups import read_scalars
from training.data.text_tables import TextEncoding, TextPlace, parse_encoding, read_encoding

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("n", pa.int64()),
        ("truncated", pa.bool_()),
        ("checksum", pa.int64()),
        ("row_group", pa.int64()),
        ("row", pa.int64()),
        ("encoding", pa.int64()),
        ("part", part_index.PART),
    ]
)
"""Columns of an index: those of a text table besides the embeddings, the row reference, a hash of the table's
`TextEncoding`, and the URI of the table."""


@dataclass(frozen=True)
class TextIndex:
    """The embeddings of a folder of text tables, each key once: two runs may have written the same."""

    folder: str
    found: PartRows

    @cached_property
    def rows(self) -> pa.Table:
        """The rows, in `SCHEMA`."""
        return first_of_each(self.found.rows, "key")

    def names(self, rows: pa.Table) -> pa.DictionaryArray:
        """Return the table of each row, relative to the folder."""
        return part_index.relative_to(self.folder, rows["part"])

    def encoding(self) -> TextEncoding | None:
        """Return what the tables hold, None if there are none. Raises `DamagedError` if they differ."""
        codes = pc.unique(self.found.rows["encoding"])
        firsts = [self.found.rows["part"][self.found.rows["encoding"].index(code).as_py()].as_py() for code in codes]
        found = [read_encoding(part) for part in firsts]
        for part, other in zip(firsts[1:], found[1:], strict=True):
            raise DamagedError(
                f"{part}: was written by text encoder {other.identity}, other tables of the folder by "
                f"{found[0].identity}; keep them in separate folders"
            )
        return found[0] if found else None

    def places(self, rows: pa.Table) -> Iterator[TextPlace]:
        """Yield the places of rows of the index."""
        for row in rows.select(["part", "row_group", "row", "checksum", "key"]).to_batches():
            yield from map(TextPlace._make, zip(*(column.to_pylist() for column in row.columns), strict=True))

    def store(self) -> None:
        """Store the index beside the tables. Only a command that holds the lease of the folder may call it."""
        part_index.store(self.folder, self.found)


def read_text_index(folder: str) -> TextIndex:
    """Return the index of a folder of text tables, which may be missing; tables that were stored in it are not opened.

    Raises `DamagedError` for a file that is no text table of this version.
    """
    return TextIndex(folder, part_index.read_parts(folder, SCHEMA, _rows_of_table))


def _rows_of_table(uri: str) -> pa.Table:
    try:
        table = read_scalars(uri, ["key", "n", "truncated", "checksum"])
    except DamagedError:
        read_encoding(uri)  # says so if it is no text table, or one of another version
        raise
    encoding = parse_encoding(table.schema, uri)
    code = int(digest(encoding.identity, str(encoding.dim), str(encoding.pooled_dim), size_bytes=8), 16) >> 1
    return table.append_column("encoding", pa.array([code] * len(table), pa.int64()))
