"""Search of everything under `out` for words, independent of `pipelines.forgetting`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.engine import exclusions


def files_naming(out: str, *words: str) -> list[str]:
    """Return the files, except removal records, in whose bytes or name any of the words occurs.

    Of Parquet files the decoded rows and the footer are searched too, since compression hides words.
    """
    found = []
    for path in sorted(Path(out).rglob("*")):
        if not path.is_file() or exclusions.FOLDER in path.relative_to(out).parts:
            continue
        data = path.read_bytes() + path.name.encode()
        if path.suffix == ".parquet":
            rows, footer = pq.read_table(path, partitioning=None).to_pylist(), pq.read_metadata(path).metadata
            data += repr(rows).encode() + repr(footer).encode()
        if any(word.encode() in data for word in words):
            found.append(str(path))
    return found


def without_records(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files without removal records, which hold the time at which they were written."""
    return {name: data for name, data in files.items() if not name.startswith(exclusions.FOLDER)}
