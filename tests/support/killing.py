"""A process that dies at any of its file operations: before one takes effect, or right after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from cluster import storage


class Killed(BaseException):
    """The process is dead; no handler of errors may catch it."""


class Killer:
    """Kills at moment `at`: 2k is before the k-th file operation takes effect, 2k + 1 right after it; never if it is None.

    A writer killed before its file is renamed leaves what it wrote under a temporary name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.moments = 0
        self._at = at
        output, remove = storage.atomic_output, storage.remove

        @contextlib.contextmanager
        def killing_output(uri: str) -> Iterator[BinaryIO]:
            if self._dies():
                aside = storage.local_path(uri)
                aside = aside.with_name(f"{storage.TEMPORARY}dead-{aside.name}")
                aside.parent.mkdir(parents=True, exist_ok=True)
                with Path(aside).open("wb") as handle:
                    yield handle
                raise Killed
            with output(uri) as handle:
                yield handle
            if self._dies():
                raise Killed

        def killing_remove(uri: str) -> None:
            if self._dies():
                raise Killed
            remove(uri)
            if self._dies():
                raise Killed

        monkeypatch.setattr(storage, "atomic_output", killing_output)
        monkeypatch.setattr(storage, "remove", killing_remove)

    def _dies(self) -> bool:
        self.moments += 1
        return self.moments - 1 == self._at


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Content of every file under a folder, leftovers of killed writers included."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
