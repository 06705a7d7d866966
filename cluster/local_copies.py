"""Copies of files of object stores on this machine, one for all its processes, which map it into their memory."""

from __future__ import annotations

import fcntl
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs

from cluster import storage
from cluster.unreadable import UnreadableError, unreadable_errors

PIECE_BYTES = 256 << 20
"""Bytes of a request. Stores send about 100 MB/s per request, so several are made at the same time."""
THREADS = 4


class CopyError(RuntimeError):
    """The copy of a file cannot be kept on this machine."""


def local_copy(uri: str) -> Path:
    """Return the path of a file on this machine: its own, or that of its copy if it is in an object store.

    The first process that asks makes the copy, in the folder of temporary files, and others wait for it. A file that
    has changed is copied anew, and the copy of before is removed. Raises `FileNotFoundError` if there is no such file,
    `UnreadableError` if a store does not give it, and `CopyError` if this machine has no room for it.
    """
    if storage.is_local(uri):
        return storage.local_path(uri)
    filesystem, path = storage.resolve(uri)
    with unreadable_errors(uri):
        info = filesystem.get_file_info(path)
    if not info.is_file:
        raise FileNotFoundError(f"{uri}: no such file")
    try:
        return _made_once(uri, info)
    except UnreadableError:
        raise
    except OSError as error:
        fix = "set TMPDIR to a folder of your own, with room for it"
        raise CopyError(f"{uri}: cannot be copied to this machine: {error}; {fix}") from error


def _made_once(uri: str, info: pafs.FileInfo) -> Path:
    folder = Path(tempfile.gettempdir()) / f"worldloom-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    name = storage.digest(uri)
    copy = folder / f"{name}-{storage.digest(str(info.size), str(info.mtime_ns))}"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            for older in folder.glob(f"{name}-*"):
                older.unlink()
            _download(uri, info.size, copy)
    return copy


def _download(uri: str, size: int, copy: Path) -> None:
    partial = copy.with_name(f"{copy.name}.partial")
    with storage.open_input(uri) as source, partial.open("wb") as target, ThreadPoolExecutor(THREADS) as pool:

        def fetch(start: int) -> None:
            with unreadable_errors(uri):
                data = source.read_at(min(PIECE_BYTES, size - start), start)  # type: ignore[attr-defined]
            os.pwrite(target.fileno(), data, start)

        for _ in pool.map(fetch, range(0, size, PIECE_BYTES)):
            pass
    partial.rename(copy)
