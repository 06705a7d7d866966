"""The error of a file that cannot be decoded."""

from __future__ import annotations

from pathlib import PurePosixPath


class DecodeError(ValueError):
    """A file that cannot be decoded: the message has the file's name and the decoder's error, class and text."""


def decode_error(uri: str, error: BaseException) -> DecodeError:
    """A `DecodeError` that carries the class and the text of the error that caused it."""
    return DecodeError(f"{PurePosixPath(uri).name}: {type(error).__name__}: {error}")
