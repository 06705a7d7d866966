"""Text tables: Parquet files of unpadded text embeddings, each stored once, however many samples share its caption."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.encoder import TextEmbedding
from cluster import storage
from training.data.footer import DamagedError, metadata, parse_metadata
from training.data.row_groups import RowGroups, remove_values

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


@dataclass(frozen=True)
class TextEncoding:
    """The encoder and the dimensions of a text table, by its footer."""

    identity: str
    """Identity of the text encoder."""
    dim: int
    """D of the embeddings."""
    pooled_dim: int
    """P of the pooled vectors; 0 if there are none."""


def parse_encoding(schema: pa.Schema, uri: str) -> TextEncoding:
    """Return what a table holds, by some of its columns. Raises `DamagedError` if it is no text table."""
    description = parse_metadata(schema, "texts", uri)
    try:
        found = TextEncoding(str(description["identity"]), int(description["dim"]), int(description["pooled_dim"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{uri}: its footer is incomplete: it has only {sorted(description)}") from error
    if found.dim < 1:
        raise DamagedError(f"{uri}: its footer is damaged: embeddings of {found.dim} dimensions")
    return found


def read_encoding(uri: str) -> TextEncoding:
    """Return what the table at a URI holds. Raises `DamagedError` if it is no text table of this version."""
    return _encoding_of_table(RowGroups([]).schema(uri), uri)


def _encoding_of_table(schema: pa.Schema, uri: str) -> TextEncoding:
    found = parse_encoding(schema, uri)
    if schema.names != SCHEMA.names:
        raise DamagedError(
            f"{uri}: is not a text table of this version: its columns are {schema.names}; run curation again"
        )
    return found


class TextPlace(NamedTuple):
    """The place of an embedding."""

    uri: str
    """URI of the text table."""
    row_group: int
    row: int
    checksum: int
    key: str
    """Key of the caption, for messages."""


class TextReader:
    """A reader of embeddings by their places, from any thread, that opens the tables it reads from and no others."""

    def __init__(self, identity: str) -> None:
        """Read embeddings by the text encoder of this identity."""
        self._identity = identity
        self._groups = RowGroups(["embedding", "pooled"])
        self._encodings: dict[str, TextEncoding] = {}
        """The encoding of each table that was read from, by its URI."""

    def get(self, place: TextPlace) -> Tensor:
        """Return an embedding, bfloat16 `[n, D]`.

        Raises `DamagedError` if it is altered, or its table is missing or by another encoder.
        """
        embedding, _ = self._read(place)
        return _from_bytes(embedding).reshape(-1, self._encodings[place.uri].dim)

    def pooled(self, place: TextPlace) -> Tensor | None:
        """Return a pooled vector, bfloat16 `[P]`, or None if the encoder has none. Raises as `get` does."""
        _, pooled = self._read(place)
        return None if pooled is None else _from_bytes(pooled)

    def _read(self, place: TextPlace) -> tuple[pa.Buffer, pa.Buffer | None]:
        """Return the bytes of an embedding and of its pooled vector."""
        uri, row_group, row, checksum, key = place
        table = self._groups.read(uri, row_group)
        encoding = self._encodings.get(uri) or self._checked_encoding(uri)
        if row >= len(table):
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {len(table)}")
        embedding, pooled = table["embedding"][row].as_buffer(), table["pooled"][row].as_buffer()
        if (
            _checksum(embedding, pooled) != checksum
            or embedding.size % (encoding.dim * BYTES_PER_VALUE)
            or (0 if pooled is None else pooled.size) != encoding.pooled_dim * BYTES_PER_VALUE
        ):
            raise DamagedError(
                f"{uri}: row {row} of row group {row_group}, text {key}: its bytes are not those that were written"
            )
        return embedding, pooled

    def _checked_encoding(self, uri: str) -> TextEncoding:
        found = _encoding_of_table(self._groups.schema(uri), uri)
        if found.identity != self._identity:
            raise DamagedError(
                f"{uri}: holds embeddings by {found.identity}, and the manifest says {self._identity}; curate again"
            )
        return self._encodings.setdefault(uri, found)


def remove_keys(uri: str, keys: Collection[str]) -> int:
    """Rewrite a table without these keys, in place and atomically, and return how many rows were removed.

    A table without rows left is deleted.
    """

    def rewrite(is_kept: pa.Array) -> None:
        table = storage.read_table(uri)
        _write_rows(uri, table.filter(is_kept).cast(SCHEMA.with_metadata(table.schema.metadata)))

    return remove_values(uri, "key", keys, rewrite)
