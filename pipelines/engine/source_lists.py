"""Lists of source files: text with one path or URI per line, or a CSV or Parquet table with a column of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from captioning.cleaning import UnfitAnswerError, clean_caption
from cluster import listing, storage
from cluster.config import ConfigError
from pipelines.engine.csv_rows import read_csv

SUFFIXES = (".txt", ".csv", ".parquet")
PATH_COLUMNS = ("source", "path", "url")
CAPTION_COLUMN = "caption"
MAX_LISTED_ERRORS = 3


@dataclass(frozen=True)
class ListedFile:
    """A file that a list names, with its caption there, and where the list names it: `clips.csv line 3`."""

    entry: storage.Entry
    caption: str
    position: str


@dataclass(frozen=True)
class _Row:
    position: str
    path: Any
    caption: Any = None


def is_list(pattern: str) -> bool:
    """Return whether a pattern of sources names a list."""
    return pattern.lower().endswith(SUFFIXES)


def read_list(pattern: str) -> Iterator[ListedFile]:
    """Yield the files of a list in its order; a path that is not absolute starts at the list's own folder.

    Raises `ConfigError` naming list and line if the list cannot be read, a row is bad or a file does not exist.
    """
    uri = storage.absolute(pattern)
    try:
        rows = list(_read_rows(uri, storage.read_bytes(uri)))
    except FileNotFoundError:
        raise ConfigError(f"sources: {uri}: no such list") from None
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise ConfigError(f"sources: {uri}: cannot be read as a list: {error}") from error
    folder = uri.rpartition("/")[0]
    errors: list[str] = []
    paths, captions = [], []
    for row in rows:
        try:
            paths.append(_absolute(row.path, folder))
            captions.append(_caption(row.caption))
        except ValueError as error:
            errors.append(f"{row.position}: {error}")
    _raise_first(errors)
    entries = listing.look_up(paths)
    _raise_first(
        [
            f"{row.position}: {path}: no such file"
            for row, path, entry in zip(rows, paths, entries, strict=True)
            if entry is None
        ]
    )
    for row, caption, entry in zip(rows, captions, entries, strict=True):
        assert entry is not None
        yield ListedFile(entry, caption, row.position)


def _raise_first(errors: list[str]) -> None:
    if errors:
        more = f"\nsources: and {len(errors) - MAX_LISTED_ERRORS} more rows" if len(errors) > MAX_LISTED_ERRORS else ""
        raise ConfigError("\n".join(f"sources: {error}" for error in errors[:MAX_LISTED_ERRORS]) + more)


def _read_rows(uri: str, data: bytes) -> Iterable[_Row]:
    """Return the rows of a list. Raises `ConfigError` if a table has no column of paths."""
    if uri.lower().endswith(".parquet"):
        return _parquet_rows(uri, data)
    text = data.decode("utf-8-sig")
    if uri.lower().endswith(".csv"):
        return _csv_rows(uri, text)
    # Not splitlines: a name may hold the line separators of Unicode.
    lines = enumerate(text.split("\n"), 1)
    return (_Row(f"{uri} line {number}", line.strip()) for number, line in lines if line.strip())


def _csv_rows(uri: str, text: str) -> Iterator[_Row]:
    names, rows = read_csv(uri, text)
    path_column, caption_column = _columns(uri, names)
    for position, cells in rows:
        if len(cells) != len(names):
            raise ConfigError(f"sources: {position}: {len(cells)} cells, but the header names {len(names)} columns")
        yield _Row(position, cells[path_column].strip(), None if caption_column is None else cells[caption_column])


def _parquet_rows(uri: str, data: bytes) -> Iterator[_Row]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    path_column, caption_column = _columns(uri, [name.lower() for name in names])
    wanted = [names[index] for index in (path_column, caption_column) if index is not None]
    table = file.read(wanted)
    captions = [None] * len(table) if caption_column is None else table[names[caption_column]].to_pylist()
    for number, (path, caption) in enumerate(zip(table[names[path_column]].to_pylist(), captions, strict=True), 1):
        yield _Row(f"{uri} row {number}", path, caption)


def _columns(uri: str, names: list[str]) -> tuple[int, int | None]:
    """Return the indices of the columns of paths and of captions. Raises `ConfigError` if there is none of paths."""
    found = next((names.index(name) for name in PATH_COLUMNS if name in names), None)
    if found is None:
        listed = ", ".join(names) or "nothing"
        raise ConfigError(
            f"sources: {uri}: no column {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}; it has {listed}"
        )
    return found, names.index(CAPTION_COLUMN) if CAPTION_COLUMN in names else None


def _absolute(path: Any, folder: str) -> str:
    """Return the absolute URI of a path in a list. Raises `ValueError` if it is none."""
    if not isinstance(path, str) or not path:
        raise ValueError("no path" if path in (None, "") else f"a path is text, not {path!r}")
    if "\0" in path:
        raise ValueError(f"a path cannot hold NUL: {path[:80]!r}")
    if not storage.is_local(path):
        storage.resolve(path)
    elif not path.startswith(("/", "file://")):
        path = storage.join(folder, path)
    return storage.absolute(path)


def _caption(caption: Any) -> str:
    """Return a caption of a list, cleaned; empty if there is none. Raises `ValueError` if it is unfit."""
    if caption is None:
        return ""
    if not isinstance(caption, str):
        raise ValueError(f"a caption is text, not {caption!r}")
    try:
        return clean_caption(caption)
    except UnfitAnswerError as error:
        raise ValueError(f"no caption: {error}") from error
