"""A stand-in for an object store: a local folder whose requests are counted, each of which takes a while."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cluster import stores

NAMES_PER_LISTING = 1000
"""Names in one answer to a listing, as S3 gives them."""


class SlowStore(pafs.FileSystemHandler):  # type: ignore[misc]
    """Objects are the files below a folder; a bucket is its first level.

    Counted are a HEAD for each look-up and for each file that is opened, a GET for each read, a LIST for each 1,000
    names and a PUT for each file that is written, as Arrow's client of S3 makes them.
    """

    def __init__(self, root: Path, latency_s: float) -> None:
        self._root, self._latency_s = root, latency_s
        self._local = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()

    def count(self, kind: str, number: int = 1) -> None:
        """Count requests and wait for their answers, one after the other."""
        with self._lock:
            self.requests[kind] += number
        time.sleep(self._latency_s * number)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Take the place of every bucket of s3:// while the block runs."""
        real = stores.filesystem
        mounted = pafs.PyFileSystem(self)
        stores.filesystem = lambda scheme, bucket: mounted  # type: ignore[assignment]
        try:
            yield
        finally:
            stores.filesystem = real

    def get_type_name(self) -> str:
        return "slow"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self.count("HEAD", len(paths))
        found: list[pafs.FileInfo] = self._local.get_file_info(paths)
        return found

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found: list[pafs.FileInfo] = self._local.get_file_info(selector)
        self.count("LIST", max(1, -(-len(found) // NAMES_PER_LISTING)))
        return found

    def open_input_file(self, path: str) -> pa.PythonFile:
        self.count("HEAD")
        if not (self._root / path).is_file():
            raise FileNotFoundError(path)
        return pa.PythonFile(_Object(self, self._root / path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        self.count("PUT")
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        return self._local.open_output_stream(path)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("object stores do not append")

    def create_dir(self, path: str, recursive: bool) -> None:
        (self._root / path).mkdir(parents=recursive, exist_ok=True)

    def delete_dir(self, path: str) -> None:
        self.count("DELETE")
        self._local.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self.count("DELETE")
        self._local.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the folder stays")

    def delete_file(self, path: str) -> None:
        self.count("DELETE")
        self._local.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.count("PUT")
        self._local.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self.count("PUT")
        self._local.copy_file(source, target)


class _Object(io.FileIO):
    """An object that is read by requests; its size is known since it was opened."""

    def __init__(self, store: SlowStore, path: Path) -> None:
        super().__init__(path)
        self._store = store

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        self._store.count("GET")
        return super().read(-1 if size is None else size)
