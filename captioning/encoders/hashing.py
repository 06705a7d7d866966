"""Encoder `hashing`: one token per word, embedded as a pseudo-random vector of unit variance that the word seeds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from pydantic import Field

from captioning.encoder import TextEmbedding, TextEncoder, TextEncoderSettings
from cluster.arrays import Float32Array

VERSION = 1
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
NULL_TOKEN = "\x00null"
"""Token of captions without words. It differs from every word because words contain no NUL."""


class Hashing(TextEncoderSettings):
    """Settings of feature hashing (Weinberger et al. 2009) with dense signs; embeddings of words are near-orthogonal.

    The encoder represents neither meaning nor word order. It needs no weights and is the same on every machine. The
    embedding of a word is `dim` signs from the SHAKE-128 hash of the lower-cased word; the null caption is one token.
    """

    lightweight: ClassVar[bool] = True

    name: str = "hashing"
    dim: int = Field(128, ge=8, le=8192, multiple_of=8, description="Width D of the token embeddings.")
    max_tokens: int = Field(
        256, ge=1, description="Words per caption; a longer caption is cut off, and its row is marked as truncated."
    )

    def identity(self) -> str:
        return f"hashing-v{VERSION}-{self.dim}-{self.max_tokens}"

    def open(self, device: str | None = None) -> TextEncoder:
        """Return the encoder, which computes with numpy on every device."""
        return HashingEncoder(self)


class HashingEncoder(TextEncoder):
    """A text encoder with `Hashing` settings."""

    def __init__(self, settings: Hashing) -> None:
        self.dim = settings.dim
        self.identity = settings.identity()
        self._max_tokens = settings.max_tokens

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> TextEmbedding:
        words = WORD.findall(caption.lower()) or [NULL_TOKEN]
        kept = words[: self._max_tokens]
        return TextEmbedding(np.stack([word_vector(word, self.dim) for word in kept]), truncated=len(words) > len(kept))


@lru_cache(maxsize=65536)
def word_vector(word: str, dim: int) -> Float32Array:
    """Return the embedding `[dim]` of a word, whose values are +1 and -1."""
    bits = np.frombuffer(hashlib.shake_128(word.encode()).digest(dim // 8), np.uint8)
    return (np.unpackbits(bits).astype(np.float32) * 2 - 1).astype(np.float32)
