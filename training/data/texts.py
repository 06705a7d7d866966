"""Text tables: embeddings of captions, unpadded, stored once however many samples share a caption."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import storage
from training.data.footer import DamagedError, metadata, parse_metadata
from training.data.row_groups import RowGroups, read_scalars

BYTES_PER_VALUE = 2
ROW_GROUP_BYTES = 2 * 2**20
"""Middle of 1 to 4 MB, as in latent shards."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("embedding", pa.binary(), nullable=False),
        pa.field("checksum", pa.int64(), nullable=False),
    ]
)
"""`embedding` is bfloat16 `[n, D]`, little-endian, and `checksum` its CRC-32."""


def write_texts(uri: str, embeddings: Mapping[str, NDArray[np.float32]], identity: str) -> None:
    """Write embeddings `[n, D]` by key, atomically, rounded to bfloat16. `identity` is the text encoder's.

    Raises `ValueError` naming the key whose embedding has no token, another D than the first, or a value that is not finite.
    """
    if not embeddings:
        raise ValueError(f"{uri}: a text table needs at least one embedding")
    dim = next(iter(embeddings.values())).shape[-1]
    rows = []
    for key in sorted(embeddings):
        tokens = embeddings[key]
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] != dim:
            raise ValueError(f"text {key}: embedding of shape {tokens.shape}; give [n, {dim}] with n of at least 1")
        rounded = torch.tensor(tokens, dtype=torch.float32).to(torch.bfloat16)
        if not torch.isfinite(rounded).all():
            raise ValueError(f"text {key}: its embedding holds a value that is not finite")
        data = rounded.view(torch.int16).numpy().astype("<i2", copy=False).tobytes()
        rows.append({"key": key, "n": tokens.shape[0], "embedding": data, "checksum": zlib.crc32(data)})
    _write_rows(uri, pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata("texts", {"identity": identity, "dim": dim}))))


def _write_rows(uri: str, table: pa.Table) -> None:
    longest_bytes = pc.max(pc.binary_length(table["embedding"])).as_py()
    storage.write_table(
        uri,
        table,
        row_group_size=max(1, ROW_GROUP_BYTES // longest_bytes),
        compression="NONE",
        use_dictionary=False,
        write_statistics=["key", "n", "checksum"],
    )


def text_lengths(folder: str) -> dict[str, int]:
    """Number of tokens n of every key of a folder's tables; empty where there is no folder."""
    lengths: dict[str, int] = {}
    for entry in storage.list_files(folder, ".parquet"):
        table = read_scalars(entry.uri, ["key", "n"])
        lengths.update(zip(table["key"].to_pylist(), table["n"].to_pylist(), strict=True))
    return lengths


def text_keys(folder: str) -> set[str]:
    """Keys whose embeddings a folder holds."""
    return set(text_lengths(folder))


class TextReader:
    """Embeddings by key, from any thread. Only keys and places are kept in memory."""

    def __init__(self, folder: str) -> None:
        """Reads the keys of every table in the folder. Raises `DamagedError` for tables of different encoders or versions."""
        self._folder = folder
        self._groups = RowGroups(["embedding"])
        self._places: dict[str, tuple[str, int, int, int, int]] = {}
        self.identity: str | None = None
        """Identity of the text encoder; None for an empty folder."""
        self.dim = 0
        for entry in storage.list_files(folder, ".parquet"):
            self._add(entry.uri)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Tensor:
        """bfloat16 `[n, D]`. Raises `DamagedError` for a key that is not there and for bytes that are not those written."""
        if key not in self._places:
            raise DamagedError(f"{self._folder}: no embedding of text {key}; run curation again")
        uri, row_group, row, n, checksum = self._places[key]
        table = self._groups.read(uri, row_group)
        if row >= len(table):
            raise DamagedError(f"{uri}: row group {row_group} has no row {row}; it has {len(table)}")
        buffer = table["embedding"][row].as_buffer()
        if zlib.crc32(buffer) != checksum or buffer.size != n * self.dim * BYTES_PER_VALUE:
            raise DamagedError(f"{uri}: row {row} of row group {row_group}, text {key}: its bytes are not those that were written")
        values = np.frombuffer(buffer, "<i2").astype(np.int16)
        return torch.from_numpy(values).view(torch.bfloat16).reshape(n, self.dim)

    def _add(self, uri: str) -> None:
        description = parse_metadata(self._groups.schema(uri), "texts", uri)
        if not {"identity", "dim"} <= description.keys():
            raise DamagedError(f"{uri}: its footer is incomplete: it says {sorted(description)}")
        identity, dim = str(description["identity"]), int(description["dim"])
        if self.identity is not None and (identity, dim) != (self.identity, self.dim):
            raise DamagedError(f"{uri}: was written by text encoder {identity}, other tables of the folder by {self.identity}; keep them apart")
        self.identity, self.dim = identity, dim
        names = ("row_group", "row", "n", "checksum")
        index = read_scalars(uri, ["key", "n", "checksum"])
        places = zip(*(index[name].to_pylist() for name in names), strict=True)
        self._places |= {key: (uri, *place) for key, place in zip(index["key"].to_pylist(), places, strict=True)}


def read_identity(uri: str) -> str:
    """Identity of the text encoder of one table. Raises `DamagedError` for a file that is none."""
    return str(parse_metadata(RowGroups([]).schema(uri), "texts", uri)["identity"])


def remove_keys(uri: str, keys: Collection[str]) -> int:
    """Rewrite a table without these keys, in place and atomically; returns how many it had. A table without rows is removed."""
    stored = read_scalars(uri, ["key"])["key"]
    left = pc.invert(pc.is_in(stored, pa.array(sorted(keys), pa.string())))
    count = len(stored) - int(pc.sum(left).as_py() or 0)
    if count == len(stored):
        storage.remove(uri)
    elif count:
        table = storage.read_table(uri)
        _write_rows(uri, table.filter(left).cast(SCHEMA.with_metadata(table.schema.metadata)))
    return count
