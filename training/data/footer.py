"""The footer of worldloom's Parquet files: their kind, the version of their format, and a description as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

VERSION = 1
"""Version of the format; readers refuse any other."""

METADATA_KEY = b"worldloom"
"""Key of the footer's metadata."""

READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""Exceptions from reading a missing or altered Parquet file; the last comes from a column name with a flipped bit."""


class DamagedError(ValueError):
    """A stored file or row differs from what was written; the message names it."""


def metadata(kind: str, description: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the schema metadata of a file of `kind`: latents, texts or manifest."""
    return {METADATA_KEY: json.dumps({"kind": kind, "version": VERSION, **description}, sort_keys=True).encode()}


def parse_metadata(schema: pa.Schema, kind: str, uri: str) -> dict[str, Any]:
    """Return the description. Raises `DamagedError` if there is none, or if the kind or the version is another."""
    try:
        data: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
        found, version = data.pop("kind"), data.pop("version")
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{uri}: its footer has no description by worldloom, so it holds no {kind}") from error
    if found != kind:
        raise DamagedError(f"{uri}: is a file of {found}, not of {kind}")
    if version != VERSION:
        raise DamagedError(
            f"{uri}: has format version {version}, and this program reads version {VERSION}; write it again with this "
            "program"
        )
    return data
