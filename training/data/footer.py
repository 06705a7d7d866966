"""The footer of worldloom's Parquet files: their kind, the version of their format, and a description as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from zlib_ng.zlib_ng import crc32

from cluster import storage
from cluster.unreadable import UnreadableError, comes_from_store, unreadable

VERSION = 1
"""Version of the format; readers refuse any other."""

METADATA_KEY = b"worldloom"
"""Key of the footer's metadata."""

READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""Exceptions from reading a missing or altered Parquet file; the last comes from a column name with a flipped bit."""


TAIL_BYTES = 2**16
"""Bytes at the end of a file that are read first: nearly every footer is in them, so that it takes one read."""


class DamagedError(ValueError):
    """A stored file or row differs from what was written; the message names it."""


def reading_error(message: str, error: BaseException) -> DamagedError | UnreadableError:
    """Return what to raise for one of `READ_ERRORS`: what an object store answers is no damage of a file."""
    text = f"{message}: {error}"
    return unreadable(text) if comes_from_store(error) else DamagedError(text)


def tail_checksum(uri: str) -> int:
    """Return the CRC-32 of a file's size and of its last `TAIL_BYTES`: most of a footer, in one read.

    It tells a Parquet file from any that was written in its place: the offsets of its last row groups are in it.
    """
    try:
        with storage.open_input(uri) as handle:
            size: int = handle.size()  # type: ignore[attr-defined]
            return crc32(_read_end(handle, size, min(size, TAIL_BYTES)), crc32(str(size).encode()))
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be opened", error) from error


def read_footer(uri: str) -> tuple[bytes, int]:
    """Return the footer of a Parquet file up to the file's end, and the file's size in bytes.

    The bytes are whatever is there if the file is no Parquet file. Raises `DamagedError` if they cannot be read.
    """
    try:
        with storage.open_input(uri) as handle:
            size: int = handle.size()  # type: ignore[attr-defined]
            tail = _read_end(handle, size, min(size, TAIL_BYTES))
            length = min(size, int.from_bytes(tail[-8:-4], "little") + 8)
            return (tail[-length:] if length <= len(tail) else _read_end(handle, size, length)), size
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be opened", error) from error


def _read_end(handle: Any, size: int, length: int) -> bytes:
    data: bytes = handle.read_at(length, size - length)
    return data


def metadata(kind: str, description: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the schema metadata of a file of `kind`: latents, texts or manifest."""
    return {METADATA_KEY: json.dumps({"kind": kind, "version": VERSION, **description}, sort_keys=True).encode()}


def parse_metadata(schema: pa.Schema, kind: str, uri: str) -> dict[str, Any]:
    """Return the description. Raises `DamagedError` if there is none, or if the kind or the version is another."""
    try:
        data: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
        found, version = data.pop("kind"), data.pop("version")
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{uri}: its footer has no description by worldloom, so it holds no {kind}") from error
    if found != kind:
        raise DamagedError(f"{uri}: is a file of {found}, not of {kind}")
    if version != VERSION:
        raise DamagedError(
            f"{uri}: has format version {version}, and this program reads version {VERSION}; write it again with this "
            "program"
        )
    return data
