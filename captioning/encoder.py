"""The contract of a text encoder: it turns captions into unpadded token embeddings."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cluster.arrays import Float32Array
from cluster.plugins import Plugin
from cluster.resources import Resources
from cluster.storage import digest

FOLDER = "captioning.encoders"

NULL_CAPTION = ""
"""Caption of unconditional samples. Its embedding is computed like any other and has at least one token."""


@dataclass(frozen=True)
class TextEmbedding:
    """Embedding of one caption."""

    tokens: Float32Array
    """Token embeddings `[n, D]` without padding, with n >= 1."""
    truncated: bool = False
    """Whether the caption had more tokens than the encoder takes."""
    pooled: Float32Array | None = None
    """Embedding `[P]` of the whole caption; None if the encoder has none."""


class TextEncoder(abc.ABC):
    """A loaded text encoder. `dim` is the width D of its token embeddings."""

    dim: int
    identity: str
    padding_tokens: int = 0
    """Number of padding tokens computed so far to fill batches."""

    @abc.abstractmethod
    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        """Return the embedding of each caption.

        It depends on the other captions by rounding errors only, and on a CPU not at all.
        """


class TextEncoderSettings(Plugin):
    """Settings of a text encoder. Each file in `captioning/encoders/` adds one subclass."""

    lightweight: ClassVar[bool] = False
    """Whether the encoder needs no loading and a fraction of a millisecond per caption. Then it is not worth
    starting Ray for a few captions."""

    @abc.abstractmethod
    def open(self, device: str | None = None) -> TextEncoder:
        """Load the encoder on a torch device; by default cuda if the settings request GPUs, else cpu.

        The device does not change the identity. Raises `EngineError` with the fix if the encoder cannot be loaded.
        """

    @abc.abstractmethod
    def identity(self) -> str:
        """Return everything that embeddings depend on: code version, weights, precision, token limit, GPU or CPU.

        The batch size is no part of it. Computing the identity loads no weights.
        """

    def resources(self) -> Resources:
        """Return the resources of one worker with this encoder."""
        return Resources()


def text_key(caption: str, encoder_identity: str) -> str:
    """Return the key of an embedding: a hash of the caption and of the identity of the encoder."""
    return digest(encoder_identity, caption)
