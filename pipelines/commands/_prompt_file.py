"""Files of prompts for `worldloom sample --prompts`: text, CSV, JSON lines or Parquet, one sample a row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cluster import storage
from cluster.config import ConfigError, located_messages, unknown_message, validate
from pipelines.engine.csv_rows import read_csv
from training.sampling.settings import SampleSettings

COLUMNS = ("prompt", "negative", "seed", "seconds", "size")
"""Columns that a file may have; `prompt` is required."""
NUMBERS = {"seed": int, "seconds": float}
"""Columns of numbers, which CSV has as text."""
SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
MAX_LISTED_ERRORS = 3

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class PromptRow:
    """A row of a file of prompts."""

    position: str
    """Where the row stands: `prompts.csv line 3`."""
    settings: SampleSettings


def read_prompts(path: str, defaults: Cells) -> list[PromptRow]:
    """Return the samples that a file lists. A row without a value takes that of `defaults`, by field of the settings.

    Raises `ConfigError` if the file is missing, empty or cannot be read, has an unknown column, or has bad rows, of
    which the first ones are named with their line.
    """
    uri = storage.absolute(path)
    if not uri.lower().endswith(SUFFIXES):
        raise ConfigError(f"--prompts {path}: a file of prompts ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    rows, errors = [], []
    try:
        for position, cells in _read_rows(uri, storage.read_bytes(uri)):
            try:
                rows.append(PromptRow(position, _settings(cells, defaults)))
            except ValueError as error:
                errors.append(f"{position}: {error}")
    except FileNotFoundError:
        raise ConfigError(f"--prompts {path}: no such file") from None
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise ConfigError(f"{uri}: cannot be read as a file of prompts: {error}") from error
    if errors:
        n_more = len(errors) - MAX_LISTED_ERRORS
        more = [f"and {n_more} more rows"] if n_more > 0 else []
        raise ConfigError("\n".join([*errors[:MAX_LISTED_ERRORS], *more]))
    if not rows:
        raise ConfigError(f"{uri}: has no prompts")
    return rows


def _settings(cells: Cells, defaults: Cells) -> SampleSettings:
    """Return the settings of a row. Raises `ValueError` naming the column that is wrong."""
    if not cells.get("prompt"):
        raise ValueError("no prompt")
    try:
        return validate(SampleSettings, {**defaults, **cells})
    except ValidationError as error:
        messages = located_messages(SampleSettings, error)
        raise ValueError("; ".join(f"{'.'.join(map(str, location))}: {text}" for location, text in messages)) from None


def _read_rows(uri: str, data: bytes) -> Iterable[tuple[str, Cells]]:
    """Yield the position and the cells of each row, without empty ones."""
    if uri.lower().endswith(".parquet"):
        return _parquet_rows(uri, data)
    text = data.decode("utf-8-sig")
    if uri.lower().endswith(".csv"):
        return _csv_rows(uri, text)
    # Not splitlines: a prompt may hold the line separators of Unicode.
    lines = ((f"{uri} line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1))
    if uri.lower().endswith(".jsonl"):
        return ((position, _json_cells(position, line)) for position, line in lines if line)
    return ((position, {"prompt": line}) for position, line in lines if line)


def _csv_rows(uri: str, text: str) -> Iterator[tuple[str, Cells]]:
    names, rows = read_csv(uri, text)
    _check_columns(uri, names)
    for position, values in rows:
        if len(values) != len(names):
            raise ConfigError(
                f"{position}: {len(values)} cells, but the header names {len(names)} columns; "
                'quote a prompt that holds a comma: "a red, round ball"'
            )
        yield position, _present(dict(zip(names, (value.strip() for value in values), strict=True)))


def _json_cells(position: str, line: str) -> Cells:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{position}: is not JSON: {error}") from error
    if not isinstance(cells, dict):
        raise ConfigError(f'{position}: must be an object, such as {{"prompt": "a red ball"}}')
    _check_columns(position, list(cells))
    return _present(cells)


def _parquet_rows(uri: str, data: bytes) -> Iterator[tuple[str, Cells]]:
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    _check_columns(uri, table.column_names)
    for number, cells in enumerate(table.to_pylist(), 1):
        yield f"{uri} row {number}", _present(cells)


def _check_columns(where: str, names: list[str]) -> None:
    """Raise `ConfigError` for unknown columns, and if there is none of prompts."""
    for name in names:
        if name not in COLUMNS:
            raise ConfigError(f"{where}: {unknown_message('column', name, COLUMNS)}")
    if "prompt" not in names:
        raise ConfigError(f"{where}: has no column prompt; it has {', '.join(names) or 'nothing'}")


def _present(cells: Cells) -> Cells:
    """Return the cells that have a value; numbers that are text or whole floats, as CSV and pandas have them, as such.

    Text that is no number stays, and is refused with the settings.
    """
    return {name: _number(name, value) for name, value in cells.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(name: str, value: Any) -> Any:
    if name not in NUMBERS:
        return value
    if isinstance(value, str):
        try:
            return NUMBERS[name](value)
        except ValueError:
            return value
    return int(value) if name == "seed" and isinstance(value, float) and value.is_integer() else value
