"""What the footer of each of our Parquet files says: its kind, the version of the format, and a description as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

VERSION = 1
"""Version of the format; a reader refuses another."""

KEY = b"worldloom"


READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What reading a missing or altered Parquet file raises; the last is a column's name with a flipped bit."""


class DamagedError(ValueError):
    """A stored file or row is not what was written; the message names it."""


def metadata(kind: str, description: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata of a file of `kind`: latents, texts or manifest."""
    return {KEY: json.dumps({"kind": kind, "version": VERSION, **description}, sort_keys=True).encode()}


def parse_metadata(schema: pa.Schema, kind: str, uri: str) -> dict[str, Any]:
    """The description. Raises `DamagedError` when there is none, or it is of another kind or version."""
    try:
        data: dict[str, Any] = json.loads((schema.metadata or {})[KEY])
        found, version = data.pop("kind"), data.pop("version")
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise DamagedError(
            f"{uri}: its footer holds no description by worldloom, so it is no file of {kind}"
        ) from error
    if found != kind:
        raise DamagedError(f"{uri}: is a file of {found}, not of {kind}")
    if version != VERSION:
        raise DamagedError(
            f"{uri}: has format version {version}, and this program reads version {VERSION}; write it again with this program"
        )
    return data
