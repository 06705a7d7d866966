"""Marks on the files that commands write of generated media."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from cluster.config import ConfigError, located_messages, parse_document, validate
from training.sampling.mark_settings import MarkSettings

if TYPE_CHECKING:
    from training.sampling.marks import Marker


def open_marker(settings: MarkSettings | None) -> Marker:
    """Return what marks files, by default with all marks. Raises `ConfigError` for a certificate that does not sign."""
    from training.sampling.marks import Marker  # imports cryptography, which other commands need not wait for

    try:
        return Marker(settings)
    except ValueError as error:
        raise ConfigError(f"marks: {error}") from error


def parse_marks(text: str) -> MarkSettings:
    """Return the settings of the option `--marks`, written as in a recipe. Raises `ConfigError` for other text."""
    document = parse_document(text, "--marks")
    try:
        return validate(MarkSettings, document.data)
    except ValidationError as error:
        messages = [str(document.error(*found)) for found in located_messages(MarkSettings, error)]
        raise ConfigError("\n".join(messages)) from None
