"""CSV files whose rows are named in messages by file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any


def read_csv(uri: str, text: str) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the names of the columns in lower case, and an iterator of the rows: position, and cells as they are.

    A position names file and line, `clips.csv line 3`, also after cells with line breaks. Empty lines are left out.
    Both raise `csv.Error` for text that is not CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    return [name.strip().lower() for name in next(reader, [])], _rows(uri, reader)


def _rows(uri: str, reader: Any) -> Iterator[tuple[str, list[str]]]:
    line = reader.line_num + 1
    for cells in reader:
        position, line = f"{uri} line {line}", reader.line_num + 1
        if cells:
            yield position, cells
