"""Check that a source file is still the one that was listed: its pixels must not get the uid and caption of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.fs as pafs

from cluster import storage
from cluster.unreadable import UnreadableError, unreadable_errors

VERSION_COLUMNS = ("size_bytes", "version")
"""Columns of a row that identify the version of its source file."""

NS_PER_S = 10**9


class ChangedSourceError(UnreadableError):
    """A row's source file is not the one that was listed. The row is pending: the next run lists the file as it is."""

    may_pass_soon = False


@contextlib.contextmanager
def unchanged_source(row: Mapping[str, Any]) -> Iterator[None]:
    """Run a block that reads a row's source, and raise `ChangedSourceError` if the file is another or gone.

    The file is looked up once, after the block, whether it failed or not. So a change before the block is noticed, and
    one while it ran. It is not looked up in a store that does not answer. A row without `version` is not checked.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UnreadableError):
            _check(row, error)
        raise
    _check(row, None)


def _check(row: Mapping[str, Any], cause: Exception | None) -> None:
    uri, version = row["source"], row.get("version")
    if version is None:
        return
    filesystem, path = storage.resolve(uri)
    with unreadable_errors(uri):
        info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise ChangedSourceError(f"{uri}: was removed since it was listed") from cause
    if info.size != row["size_bytes"] or _time(uri, str(info.mtime_ns)) != _time(uri, version):
        raise ChangedSourceError(f"{uri}: changed since it was listed") from cause


def _time(uri: str, version: str) -> str | int:
    """Return a modification time as it can be compared; object stores give fractions of a second in listings only."""
    return version if storage.is_local(uri) or not version.isdecimal() else int(version) // NS_PER_S
