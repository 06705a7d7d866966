"""Byte ranges of files, local or remote, from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

from cluster import storage
from training.data.footer import READ_ERRORS, DamagedError

MAX_OPEN_FILES = 128
"""Most files kept open, well below the usual limit of 1,024 a process."""


class OpenFile(Protocol):
    """A file that is open."""

    def read_into(self, offset: int, targets: Sequence[memoryview], wanted: int) -> int:
        """Fill `targets`, of `wanted` bytes, one after the other with what is at `offset`; returns how many bytes there were."""


class _LocalFile:
    def __init__(self, uri: str) -> None:
        self._descriptor = os.open(storage.local_path(uri), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # When the last thread that reads from it lets go of it.
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
        # Its `read_at` is one ranged GET and keeps no position, so threads need not take turns.
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
    left = []
    for target in targets:
        left.append(target[min(done, len(target)) :])
        done = max(0, done - len(target))
    return left


class ByteRanges:
    """Reads byte ranges of any files; the files opened last stay open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, OpenFile] = {}

    def read_into(self, uri: str, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets`, views of single bytes, with what is at `offset`, in one read. Raises `DamagedError` when it is not all there."""
        wanted = sum(map(len, targets))
        try:
            found = (self._files.get(uri) or self._open(uri)).read_into(offset, targets, wanted)
        except READ_ERRORS as error:
            raise DamagedError(f"{uri}: {wanted} bytes at {offset} cannot be read: {error}") from error
        if found != wanted:
            raise DamagedError(f"{uri}: {wanted} bytes at {offset} cannot be read: {found} are there")

    def _open(self, uri: str) -> OpenFile:
        # Opened outside the lock, so that a slow object store delays nobody else; of two that race, the first stays.
        opened: OpenFile = _LocalFile(uri) if storage.is_local(uri) else _RemoteFile(uri)
        with self._lock:
            kept = self._files.setdefault(uri, opened)
            if len(self._files) > MAX_OPEN_FILES:
                del self._files[next(iter(self._files))]
            return kept
