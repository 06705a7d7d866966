"""The contract of a text encoder: captions to unpadded token embeddings."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.plugins import Plugin
from cluster.storage import digest

FOLDER = "captioning.encoders"


@dataclass(frozen=True)
class TextEmbedding:
    """Embedding of one caption: `tokens` is float32 `[n, D]` without padding; `truncated` when the caption was longer."""

    tokens: NDArray[np.float32]
    truncated: bool = False
    pooled: NDArray[np.float32] | None = None
    """float32 `[P]`: the caption as one vector, of encoders that have one."""


class TextEncoder(abc.ABC):
    """Captions to embeddings. The empty caption is the null caption, and its embedding is a real one with n >= 1."""

    dim: int
    identity: str

    @abc.abstractmethod
    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]: ...


class TextEncoderSettings(Plugin):
    """Settings of a text encoder, by `name`. One subclass a file in `captioning/encoders/`."""

    @abc.abstractmethod
    def open(self) -> TextEncoder: ...

    @abc.abstractmethod
    def identity(self) -> str:
        """As `TextEncoder.identity`, without loading anything large."""


NULL_CAPTION = ""


def text_key(caption: str, encoder_identity: str) -> str:
    """Key of a caption's embedding: a hash of the caption and of who encoded it."""
    return digest(encoder_identity, caption)
