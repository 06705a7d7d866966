"""List, read and atomically write files on local disks, s3:// and gs://.

A URI without a scheme is a local path. A file becomes visible whole or not at all. A local file is written under a
temporary name, synced and renamed. An object store shows an object only when its upload is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster import stores
from cluster.unreadable import comes_from_store, unreadable, unreadable_errors

TEMPORARY_PREFIX = ".part-"
"""Prefix of the name of a local file that is still being written. Listings leave such files out."""


READER_THREADS = 16
"""Small files that one process reads at the same time: an object store answers each after tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing. `version` is its modification time in nanoseconds, which changes with its content."""

    uri: str
    size_bytes: int
    version: str
    real: str = field(default="", compare=False)
    """Path without links, which two URIs of one file share; empty in `list_files`."""


def is_local(uri: str) -> bool:
    """Return whether a URI is a path of the local file system."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the absolute path of a local URI."""
    return Path(uri.removeprefix("file://")).absolute()


def absolute(uri: str) -> str:
    """Return a local URI as a normalised absolute path, and a remote URI without a slash at its end."""
    return os.path.normpath(str(local_path(uri))) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *names: str) -> str:
    """Return the URI of a file or folder below another, by the names on the way to it."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


LOCAL = pafs.LocalFileSystem()


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path on it.

    Raises `ValueError` if the scheme is not supported or the URI has credentials, and `UnreadableError` if the bucket
    cannot be reached.
    """
    if is_local(uri):
        return LOCAL, str(local_path(uri))
    stores.check_uri(uri)
    scheme, _, path = uri.partition("://")
    return stores.filesystem(scheme, path.partition("/")[0]), path


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    filesystem, path = resolve(uri)
    with unreadable_errors(uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(uri: str, suffix: str = "") -> list[Entry]:
    """Return the files below a folder, recursively, whose name ends in `suffix`, sorted by URI.

    A folder that does not exist has no files.
    """
    filesystem, path = resolve(uri)
    with unreadable_errors(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = "" if is_local(uri) else uri.partition("://")[0] + "://"
    return sorted(
        (
            Entry(prefix + info.path, info.size, str(info.mtime_ns))
            for info in infos
            if info.is_file and info.path.endswith(suffix) and not info.base_name.startswith(TEMPORARY_PREFIX)
        ),
        key=lambda entry: entry.uri,
    )


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders in a folder, sorted, however many files they hold; none if it does not exist."""
    if uri.startswith("gs://"):
        # Arrow's client of Google's store lists all files in any case, and knows no folders but by their files.
        below = (entry.uri.removeprefix(f"{uri.rstrip('/')}/") for entry in list_files(uri))
        return sorted({name.partition("/")[0] for name in below if "/" in name})
    filesystem, path = resolve(uri)
    with unreadable_errors(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def open_input(uri: str) -> BinaryIO:
    """Open a file for reading at any offset. Raises `UnreadableError` if a store does not give it."""
    filesystem, path = resolve(uri)
    with unreadable_errors(uri):
        handle: BinaryIO = filesystem.open_input_file(path)
    return handle


class TooLargeError(ValueError):
    """A file is larger than any that its reader is made for, and is not read."""


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Read a whole file. Raises `UnreadableError` if a store does not give it.

    Raises `TooLargeError`, before anything is read, for a file of more than `max_bytes`.
    """
    with open_input(uri) as handle, unreadable_errors(uri):
        if max_bytes is not None and (size := handle.seek(0, os.SEEK_END)) > max_bytes:
            raise TooLargeError(f"{uri}: has {size:,} bytes; at most {max_bytes:,} are read")
        handle.seek(0)
        return handle.read()


MAX_JSON_BYTES = 64 << 20
"""Largest JSON file that is read. The largest that are written list row counts of tables, about 10 MB; parsed values
take about ten times the bytes of their text."""


def read_json(uri: str) -> Any:
    """Return the value of a JSON file. Raises `ValueError` with its name if it is too large, too deep or no JSON."""
    try:
        return json.loads(read_bytes(uri, MAX_JSON_BYTES))
    except TooLargeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{uri}: is not JSON: {error}") from error


@contextlib.contextmanager
def atomic_output(uri: str) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only if the block ends without an error."""
    filesystem, path = resolve(uri)
    if not is_local(uri):
        # Closing an upload stream completes the object, even after an error. So the data is spooled to a local file
        # first, and the upload starts when the block has ended.
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            with unreadable_errors(uri), filesystem.open_output_stream(path) as stream:
                shutil.copyfileobj(spool, stream, 1 << 20)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{target.name}")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_output(uri) as handle:
        handle.write(data)


class DamagedFileError(pa.ArrowInvalid):  # type: ignore[misc]
    """A Parquet file cannot be read; the message names it. pyarrow's own errors do not."""


@contextlib.contextmanager
def _parquet_file(uri: str) -> Iterator[pq.ParquetFile]:
    with open_input(uri) as handle:
        try:
            yield pq.ParquetFile(handle)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            # The last of them is how pyarrow reports pages that cannot be decompressed, and a lost connection.
            if comes_from_store(error):
                raise unreadable(f"{uri}: {error}") from error
            raise DamagedFileError(f"{uri}: is damaged: {' '.join(str(error).split())}") from error


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file. Raises `DamagedFileError` if it cannot be read."""
    with _parquet_file(uri) as file:
        return file.read(columns)


def read_batches(uri: str, columns: list[str] | None, rows_per_batch: int) -> Iterator[pa.Table]:
    """Yield the rows of one Parquet file, some at a time. Raises `DamagedFileError` if it cannot be read."""
    with _parquet_file(uri) as file:
        names = columns or file.schema_arrow.names
        yield file.schema_arrow.empty_table().select(names)
        for batch in file.iter_batches(rows_per_batch, columns=columns):
            yield pa.Table.from_batches([batch]).select(names)


def read_schema(uri: str) -> pa.Schema:
    """Read the schema of one Parquet file, with the metadata of its footer, as `read_table` does."""
    with _parquet_file(uri) as file:
        return file.schema_arrow


def parse_metadata(uri: str, schema: pa.Schema, key: bytes) -> dict[str, Any]:
    """Return the JSON object under a key of the metadata of a Parquet file's footer, empty if there is none.

    Raises `DamagedFileError` for anything else than a JSON object.
    """
    try:
        value = json.loads((schema.metadata or {}).get(key, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{uri}: is damaged: the metadata in its footer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{uri}: is damaged: the metadata in its footer is not a JSON object")
    return value


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Write one Parquet file atomically; `options` are those of `pyarrow.parquet.write_table`."""
    with atomic_output(uri) as handle:
        pq.write_table(table, handle, **options)


def remove(uri: str) -> None:
    """Remove a file, or a folder with its content. Removing a path that does not exist is no error."""
    filesystem, path = resolve(uri)
    with unreadable_errors(uri):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def file_digest(uri: str) -> str:
    """Return `digest(read_bytes(uri))` without holding the file in memory."""
    filesystem, path = resolve(uri)
    state = hashlib.blake2b(digest_size=10)
    with unreadable_errors(uri):
        state.update(filesystem.get_file_info(path).size.to_bytes(8, "little"))
    with open_input(uri) as handle, unreadable_errors(uri):
        while data := handle.read(8 << 20):
            state.update(data)
    return state.hexdigest()


def digest(*parts: str | bytes, size_bytes: int = 10) -> str:
    """Return the BLAKE2b digest of a sequence of strings as hexadecimal digits.

    Each string is hashed with its length, so `digest("a", "b")` and `digest("ab")` differ.
    """
    return digest_of(parts, size_bytes)


def digest_of(parts: Iterable[str | bytes], size_bytes: int = 10) -> str:
    """Return the `digest` of strings that need not be in memory together."""
    state = hashlib.blake2b(digest_size=size_bytes)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
