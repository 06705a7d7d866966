"""A process that is killed at one of its file operations: before the operation takes effect, or right after it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from cluster import leases, storage


class Killed(BaseException):
    """The end of a killed process, which no handler of errors catches."""


class Killer:
    """A patch of `cluster.storage` that raises `Killed` at kill point `at`, or never if it is None.

    Kill point 2k is before file operation k takes effect, 2k + 1 right after it. A writer that is killed before its
    file is renamed leaves its bytes under a temporary name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.kill_points = 0
        """Number of kill points passed so far."""
        self._at = at
        atomic_output, remove = storage.atomic_output, storage.remove

        @contextlib.contextmanager
        def killed_output(uri: str) -> Iterator[BinaryIO]:
            if self._is_killed():
                target = storage.local_path(uri)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.with_name(f"{storage.TEMPORARY_PREFIX}dead-{target.name}").open("wb") as handle:
                    yield handle
                raise Killed
            with atomic_output(uri) as handle:
                yield handle
            if self._is_killed():
                raise Killed

        def killed_remove(uri: str) -> None:
            if self._is_killed():
                raise Killed
            remove(uri)
            if self._is_killed():
                raise Killed

        monkeypatch.setattr(storage, "atomic_output", killed_output)
        monkeypatch.setattr(storage, "remove", killed_remove)

    def _is_killed(self) -> bool:
        self.kill_points += 1
        return self.kill_points - 1 == self._at


def void_leases(folder: str | Path) -> None:
    """Remove the leases of `Killed` commands: they would be void if their process, which is this one, had ended."""
    shutil.rmtree(Path(folder, leases.FOLDER), ignore_errors=True)


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Return the content of every file under a folder by relative path, leftovers of killed writers included."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
