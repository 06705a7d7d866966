"""Text tables: Parquet files of unpadded text embeddings, each stored once, however many samples share its caption."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.encoder import TextEmbedding
from cluster import storage
from training.data.footer import DamagedError, metadata, parse_metadata
from training.data.row_groups import RowGroups, read_scalars, remove_values

if TYPE_CHECKING:
    from torch import Tensor

BYTES_PER_VALUE = 2
ROW_GROUP_BYTES = 2 * 2**20
"""Middle of 1 to 4 MB, as in latent shards."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("embedding", pa.binary(), nullable=False),
        pa.field("checksum", pa.int64(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("pooled", pa.binary()),
    ]
)
"""`embedding` is bfloat16 `[n, D]`, little-endian. `truncated` is true if the encoder took only the beginning of the
caption. `pooled` is bfloat16 `[P]`, null if the encoder has no pooled vector. `checksum` is the CRC-32 of the bytes of
both, one after the other."""


def write_text_table(uri: str, embeddings: Mapping[str, TextEmbedding], identity: str) -> None:
    """Write embeddings by key, atomically, rounded to bfloat16; `identity` is that of the text encoder.

    Raises `ValueError` for no embeddings, and naming the key of an embedding without tokens, with other dimensions than
    the first, or with a value that is not finite.
    """
    if not embeddings:
        raise ValueError(f"{uri}: a text table needs at least one embedding")
    first = next(iter(embeddings.values()))
    dim, pooled_dim = first.tokens.shape[-1], 0 if first.pooled is None else first.pooled.shape[-1]
    rows = []
    for key in sorted(embeddings):
        tokens, pooled = embeddings[key].tokens, embeddings[key].pooled
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] != dim:
            raise ValueError(f"text {key}: embedding of shape {tokens.shape}; give [n, {dim}] with n of at least 1")
        if (() if pooled is None else pooled.shape) != ((pooled_dim,) if pooled_dim else ()):
            raise ValueError(
                f"text {key}: pooled of shape {None if pooled is None else pooled.shape}; give [{pooled_dim}] with "
                "every text, or none"
            )
        try:
            data, vector = _to_bytes(tokens), None if pooled is None else _to_bytes(pooled)
        except ValueError as error:
            raise ValueError(f"text {key}: its embedding {error}") from error
        rows.append((key, tokens.shape[0], data, _checksum(data, vector), embeddings[key].truncated, vector))
    description = {"identity": identity, "dim": dim, "pooled_dim": pooled_dim}
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    _write_rows(uri, pa.table(columns, SCHEMA.with_metadata(metadata("texts", description))))


def _to_bytes(values: NDArray[np.float32]) -> bytes:
    import torch  # takes 2 s, which commands that only count captions need not wait for

    rounded = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    if not torch.isfinite(rounded).all():
        raise ValueError("holds a value that is not finite")
    return rounded.view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


def _from_bytes(buffer: pa.Buffer) -> Tensor:
    import torch

    return torch.from_numpy(np.frombuffer(buffer, "<i2").astype(np.int16)).view(torch.bfloat16)


def _checksum(embedding: bytes | pa.Buffer, pooled: bytes | pa.Buffer | None) -> int:
    return zlib.crc32(pooled or b"", zlib.crc32(embedding))


def _write_rows(uri: str, table: pa.Table) -> None:
    longest_bytes = pc.max(pc.binary_length(table["embedding"])).as_py()
    storage.write_table(
        uri,
        table,
        row_group_size=max(1, ROW_GROUP_BYTES // longest_bytes),
        compression="NONE",
        use_dictionary=False,
        write_statistics=["key", "n", "checksum", "truncated"],
    )


def read_text_tables(folder: str) -> pa.Table:
    """Return `key`, `n` and `truncated` of every embedding in a folder of tables, each key once.

    A folder that does not exist gives no rows.
    """
    schema = pa.schema([SCHEMA.field(name) for name in ("key", "n", "truncated")])
    tables = [
        read_scalars(entry.uri, schema.names).select(schema.names).cast(schema)
        for entry in storage.list_files(folder, ".parquet")
    ]
    table = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
    # Two runs at the same time may have written the same key.
    first = (
        table.append_column("row", pa.array(range(len(table)), pa.int64())).group_by("key").aggregate([("row", "min")])
    )
    return table.take(first["row_min"])


class TextTableReader:
    """A reader of embeddings by key, from any thread, that keeps only keys and the rows they refer to in memory."""

    def __init__(self, folder: str) -> None:
        """Read the keys of every table in the folder.

        Raises `DamagedError` for tables of different encoders or of another version.
        """
        self._folder = folder
        self._groups = RowGroups(["embedding", "pooled"])
        self._entries: dict[str, tuple[str, int, int, int, int]] = {}
        """File, row group, row, number of tokens and checksum of each key."""
        self.identity: str | None = None
        """Identity of the text encoder; None for an empty folder."""
        self.dim = 0
        """D of the embeddings; 0 for an empty folder."""
        self.pooled_dim = 0
        """P of the pooled vectors; 0 if there are none."""
        for entry in storage.list_files(folder, ".parquet"):
            self._add(entry.uri)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Tensor:
        """Return the embedding of a key, bfloat16 `[n, D]`. Raises `DamagedError` if it is missing or altered."""
        embedding, _ = self._read(key)
        return _from_bytes(embedding).reshape(-1, self.dim)

    def pooled(self, key: str) -> Tensor | None:
        """Return the pooled vector of a key, bfloat16 `[P]`, or None if the encoder has none. Raises as `get` does."""
        _, pooled = self._read(key)
        return None if pooled is None else _from_bytes(pooled)

    def _read(self, key: str) -> tuple[pa.Buffer, pa.Buffer | None]:
        """Return the bytes of an embedding and of its pooled vector."""
        if key not in self._entries:
            raise DamagedError(f"{self._folder}: no embedding of text {key}; run curation again")
        uri, row_group, row, n, checksum = self._entries[key]
        table = self._groups.read(uri, row_group)
        if row >= len(table):
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {len(table)}")
        embedding, pooled = table["embedding"][row].as_buffer(), table["pooled"][row].as_buffer()
        sizes = embedding.size, 0 if pooled is None else pooled.size
        if _checksum(embedding, pooled) != checksum or sizes != (
            n * self.dim * BYTES_PER_VALUE,
            self.pooled_dim * BYTES_PER_VALUE,
        ):
            raise DamagedError(
                f"{uri}: row {row} of row group {row_group}, text {key}: its bytes are not those that were written"
            )
        return embedding, pooled

    def _add(self, uri: str) -> None:
        schema = self._groups.schema(uri)
        description = parse_metadata(schema, "texts", uri)
        if schema.names != SCHEMA.names:
            raise DamagedError(
                f"{uri}: is not a text table of this version: its columns are {schema.names}; run curation again"
            )
        if not {"identity", "dim", "pooled_dim"} <= description.keys():
            raise DamagedError(f"{uri}: its footer is incomplete: it has only {sorted(description)}")
        identity, dim, pooled_dim = (
            str(description["identity"]),
            int(description["dim"]),
            int(description["pooled_dim"]),
        )
        if self.identity is not None and (identity, dim, pooled_dim) != (self.identity, self.dim, self.pooled_dim):
            raise DamagedError(
                f"{uri}: was written by text encoder {identity}, other tables of the folder by {self.identity}; "
                "keep them in separate folders"
            )
        self.identity, self.dim, self.pooled_dim = identity, dim, pooled_dim
        names = ("row_group", "row", "n", "checksum")
        index = read_scalars(uri, ["key", "n", "checksum"])
        entries = zip(*(index[name].to_pylist() for name in names), strict=True)
        self._entries |= {key: (uri, *entry) for key, entry in zip(index["key"].to_pylist(), entries, strict=True)}


def read_encoder_identity(uri: str) -> str:
    """Return the identity of the text encoder of a table. Raises `DamagedError` for any other file."""
    return str(parse_metadata(RowGroups([]).schema(uri), "texts", uri)["identity"])


def remove_keys(uri: str, keys: Collection[str]) -> int:
    """Rewrite a table without these keys, in place and atomically, and return how many rows were removed.

    A table without rows left is deleted.
    """

    def rewrite(is_kept: pa.Array) -> None:
        table = storage.read_table(uri)
        _write_rows(uri, table.filter(is_kept).cast(SCHEMA.with_metadata(table.schema.metadata)))

    return remove_values(uri, "key", keys, rewrite)
