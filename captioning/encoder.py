"""The contract of a text encoder: captions to unpadded token embeddings."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cluster.plugins import Plugin
from cluster.resources import Resources
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
    padding: int = 0
    """Tokens that were computed so far only to fill up batches."""

    @abc.abstractmethod
    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        """Embeds each caption by itself: what is said with it makes no difference but that of rounding."""


class TextEncoderSettings(Plugin):
    """Settings of a text encoder, by `name`. One subclass a file in `captioning/encoders/`."""

    light: ClassVar[bool] = False
    """Whether opening it costs next to nothing, and a caption a fraction of a millisecond: a few are then not worth a start of Ray."""

    @abc.abstractmethod
    def open(self, device: str | None = None) -> TextEncoder:
        """Loads it on a device of torch: cuda where the settings want GPUs, else cpu, if none is given.

        The identity is that of the settings on every device. Raises `EngineError` with the fix where it cannot be loaded.
        """

    @abc.abstractmethod
    def identity(self) -> str:
        """What embeddings depend on: version, weights, precision, most tokens, GPU or CPU; not how many captions go at once.

        Found without loading anything large.
        """

    def resources(self) -> Resources:
        """What one worker with this encoder holds."""
        return Resources()


NULL_CAPTION = ""


def text_key(caption: str, encoder_identity: str) -> str:
    """Key of a caption's embedding: a hash of the caption and of who encoded it."""
    return digest(encoder_identity, caption)
