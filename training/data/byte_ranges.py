"""Reading of byte ranges of files, local or remote, from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

from cluster import storage
from training.data.footer import READ_ERRORS, DamagedError, reading_error

MAX_OPEN_FILES = 128
"""Largest number of files kept open, well below the usual limit of 1,024 per process."""


class OpenFile(Protocol):
    """An open file."""

    def read_into(self, offset: int, targets: Sequence[memoryview], wanted: int) -> int:
        """Fill `targets`, `wanted` bytes together, with the bytes from `offset` on; return how many were read."""


class _LocalFile:
    def __init__(self, uri: str) -> None:
        self._descriptor = os.open(storage.local_path(uri), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # Close the file when the last thread that reads from it drops its reference.
        weakref.finalize(self, os.close, self._descriptor)

    def read_into(self, offset: int, targets: Sequence[memoryview], wanted: int) -> int:
        done = os.preadv(self._descriptor, targets, offset)
        while 0 < done < wanted:
            more = os.preadv(self._descriptor, _after(targets, done), offset + done)
            if not more:
                break
            done += more
        return done


class _RemoteFile:
    def __init__(self, uri: str) -> None:
        # `read_at` is one ranged GET and keeps no position, so threads need no lock.
        self._handle = storage.open_input(uri)

    def read_into(self, offset: int, targets: Sequence[memoryview], wanted: int) -> int:
        data = memoryview(self._handle.read_at(wanted, offset))  # type: ignore[attr-defined]
        start = 0
        for target in targets:
            part = data[start : start + len(target)]
            target[: len(part)] = part
            start += len(target)
        return len(data)


def _after(targets: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return the views without their first `done` bytes."""
    left = []
    for target in targets:
        left.append(target[min(done, len(target)) :])
        done = max(0, done - len(target))
    return left


class ByteRanges:
    """A reader of byte ranges of any files; the files opened last stay open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, OpenFile] = {}

    def read_into(self, uri: str, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets`, views of single bytes, with the bytes from `offset` on, in one read.

        Raises `DamagedError` if there are not enough bytes or they cannot be read.
        """
        wanted = sum(map(len, targets))
        try:
            found = (self._files.get(uri) or self._open(uri)).read_into(offset, targets, wanted)
        except READ_ERRORS as error:
            raise reading_error(f"{uri}: {wanted} bytes at {offset} cannot be read", error) from error
        if found != wanted:
            raise DamagedError(f"{uri}: {wanted} bytes at {offset} cannot be read: the file has only {found} of them")

    def _open(self, uri: str) -> OpenFile:
        # Opened outside the lock, so that a slow object store delays no other thread; the first of two that race stays.
        opened: OpenFile = _LocalFile(uri) if storage.is_local(uri) else _RemoteFile(uri)
        with self._lock:
            kept = self._files.setdefault(uri, opened)
            if len(self._files) > MAX_OPEN_FILES:
                del self._files[next(iter(self._files))]
            return kept
